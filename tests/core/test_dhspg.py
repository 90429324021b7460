"""DHSPG against a plain, slow reference, and what it promises: the target, exact zeros, the base's own behaviour."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto
from fx_oto.dhspg import dual_step
from fx_oto.saliency import Moments, redundancy, select_redundant

IMAGE = torch.randn(2, 3, 8, 8)


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Conv2d(12, 20, 3, padding=1, bias=False),
        *(nn.BatchNorm2d(20), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)),
    ).double()


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        image = torch.randn(8, 3, 8, 8, generator=generator, dtype=torch.float64)
        yield image, torch.randint(0, 5, (8,), generator=generator)


def train(model, optimizer, steps, seed=1, schedule=None):
    for image, label in batches(steps, seed):
        optimizer.zero_grad()
        F.cross_entropy(model(image), label).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def prepared(seed=0):
    return fx_oto.prepare(make_net(seed), IMAGE.double())


BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "AdamW": (torch.optim.AdamW, {"lr": 2e-3}),
}


def moments_of(x, d, rate=0.1):
    return Moments.zeros(len(x), x).add(x, d, rate)


def reference_step(x, after, rate, lam, amplify, hat, epsilon):
    """One ZIG, as plain lists of numbers, from the formulas of the docstring."""
    gradient = [(a - b) / rate for a, b in zip(x, after, strict=True)]
    norm = math.sqrt(sum(a * a for a in x))
    if norm == 0:
        return [0.0] * len(x)
    dot = sum(a * g for a, g in zip(x, gradient, strict=True))
    if dot >= 0:
        lam_g = lam
    else:
        lower = -dot / norm
        upper = -sum(g * g for g in gradient) * norm / dot
        lam_g = max(lam, min(amplify * lower, hat * lam))
        if not lower < lam_g < upper:
            lam_g = (lower + upper) / 2
    trial = [b - rate * lam_g * a / norm for a, b in zip(x, after, strict=True)]
    if sum(t * a for t, a in zip(trial, x, strict=True)) < epsilon * norm * norm:
        return [0.0] * len(x)
    return trial


def read(entries, tensors):
    return [v for name, dim, i in entries for v in tensors[name].detach().select(dim, i).reshape(-1).tolist()]


@torch.no_grad()
def write(entries, tensors, values):
    values = iter(values)
    for name, dim, i in entries:
        part = tensors[name].select(dim, i)
        part.copy_(part.new_tensor([next(values) for _ in range(part.numel())]).view(part.shape))


@torch.no_grad()
def clear(entries, tensors, optimizer):
    for name, dim, i in entries:
        for buffer in (tensors[name], *optimizer.state[tensors[name]].values()):
            if buffer.shape == tensors[name].shape:
                buffer.select(dim, i).zero_()


@pytest.mark.parametrize("epsilon", [0.0, 0.95])
@pytest.mark.parametrize("name", BASES)
def test_a_hundred_steps_equal_the_reference(name, epsilon):
    """Two nets side by side: one trained by DHSPG, one by the base and the reference, one ZIG at a time."""
    base, options = BASES[name]
    gm = prepared()
    twin = copy.deepcopy(gm)
    settings = {"lam": {"SGD": 1.0, "AdamW": 100.0}[name], "amplify": 2.0, "hat": 10.0, "epsilon": epsilon}
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=0, end_step=1000, **settings, **options)
    plain = base(twin.parameters(), **options)
    tensors = dict(twin.named_parameters())
    families = fx_oto.partition(twin).families
    chosen, zero = None, set()
    for image, label in batches(100):
        for model, stepper in ((gm, optimizer), (twin, plain)):
            stepper.zero_grad()
            F.cross_entropy(model(image), label).backward()
            if model is twin:
                before = {key: value.detach().clone() for key, value in tensors.items()}
            stepper.step()
        if chosen is None:
            chosen = [part.redundant.tolist() for part in optimizer._parts]
        for i, zig in [(f, zig) for f, zigs in enumerate(chosen) for zig in zigs]:
            variables = families[i].variables
            entries = [(s.tensor, s.dim, index) for s in variables for index in s.index[zig].tolist()]
            new = reference_step(read(entries, before), read(entries, tensors), options["lr"], **settings)
            if (i, zig) in zero or not any(new):
                zero.add((i, zig))
                fx_oto.partition(twin).zero_zigs_(i, torch.tensor([zig]))
                clear(entries, tensors, plain)
            else:
                write(entries, tensors, new)
    for key, value in gm.named_parameters():
        torch.testing.assert_close(value, tensors[key], rtol=1e-9, atol=1e-12)
    assert zero, "nothing was projected, so the test shows little"


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("target", [0.3, 0.61, 0.9])
def test_the_target_is_reached_by_the_end_whatever_lambda(name, target):
    base, options = BASES[name]
    for lam in (1e-9, None, 10.0):
        gm = prepared()
        optimizer = fx_oto.DHSPG(
            gm, base, target_group_sparsity=target, start_step=3, end_step=12, lam=lam, min_kept=0.0, **options
        )
        train(gm, optimizer, 12)
        assert optimizer.group_sparsity == math.ceil(target * 32) / 32
        assert all(torch.isfinite(p).all() for p in gm.parameters())


@pytest.mark.parametrize("train_eager", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_zero_groups_stay_exactly_zero(name, train_eager):
    base, options = BASES[name]
    model = make_net()
    gm = fx_oto.prepare(model, IMAGE.double())
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=2, end_step=8, **options)
    trained = model if train_eager else gm
    train(trained, optimizer, 8)
    zeros = fx_oto.partition(gm).zeros()
    train(trained, optimizer, 10, seed=5)
    zigs = fx_oto.partition(gm)
    assert all(torch.equal(a, b) for a, b in zip(zigs.zeros(), zeros, strict=True))
    parameters = dict(gm.named_parameters())
    for family, zero in zip(zigs.families, zeros, strict=True):
        for slot in family.variables:
            gone = slot.index[zero].reshape(-1)
            assert not parameters[slot.tensor].index_select(slot.dim, gone).any()
            for buffer in optimizer.base.state[parameters[slot.tensor]].values():
                if buffer.shape == parameters[slot.tensor].shape:
                    assert not buffer.index_select(slot.dim, gone).any()
    small = fx_oto.compress(gm)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)


def test_before_the_window_it_is_the_base():
    base, options = BASES["SGD"]
    gm, plain = prepared(), make_net()
    train(gm, fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=6, end_step=9, **options), 6)
    train(plain, base(plain.parameters(), **options), 6)
    for name, value in plain.named_parameters():
        torch.testing.assert_close(gm.get_parameter(name), value, rtol=0, atol=0)


def test_an_important_group_takes_the_base_step():
    base, options = BASES["SGD"]
    gm = prepared()
    twin = copy.deepcopy(gm)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.4, start_step=0, end_step=50, **options)
    train(gm, optimizer, 1)
    train(twin, base(twin.parameters(), **options), 1)
    for part in optimizer._parts:
        for slot, tensor in part.variables:
            important = torch.ones(part.count, dtype=torch.bool)
            important[part.redundant] = False
            rows = slot.index[important].reshape(-1)
            expected = twin.get_parameter(slot.tensor).index_select(slot.dim, rows)
            torch.testing.assert_close(tensor.index_select(slot.dim, rows), expected, rtol=0, atol=0)


@pytest.mark.parametrize("stop", [2, 6, 11])
@pytest.mark.parametrize("name", BASES)
def test_resuming_is_bit_for_bit_the_run_that_was_not_stopped(name, stop):
    base, options = BASES[name]

    def start():
        gm = prepared()
        optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.6, start_step=4, end_step=9, **options)
        return gm, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 14)

    data = list(batches(14))

    def run(gm, optimizer, schedule, part):
        for image, label in part:
            optimizer.zero_grad()
            F.cross_entropy(gm(image), label).backward()
            optimizer.step()
            schedule.step()

    whole = start()
    run(*whole, data)
    first = start()
    run(*first, data[:stop])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    second = start()
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*second, data[stop:])
    for key, value in whole[0].state_dict().items():
        assert torch.equal(second[0].state_dict()[key], value), key


def test_when_both_goals_agree_lambda_is_used_as_it_is():
    x = torch.tensor([[3.0, 4.0]])
    dual = dual_step(moments_of(x, x), 0.5, 2.0, 10.0, 0.0)
    torch.testing.assert_close(dual.shrink, torch.tensor([0.5 / 5]))


def test_when_they_disagree_lambda_is_between_its_bounds():
    torch.manual_seed(0)
    x, d = torch.randn(1000, 7, dtype=torch.float64), torch.randn(1000, 7, dtype=torch.float64)
    moments = moments_of(x, d)
    disagree = moments.dot < 0
    lam_g = dual_step(moments, 1e-3, 2.0, 10.0, 0.0).shrink * moments.square.sqrt()
    lower, upper = -moments.dot / moments.square.sqrt(), -moments.gradient * moments.square.sqrt() / moments.dot
    assert ((lam_g > lower) & (lam_g < upper))[disagree].all()
    step = d + (lam_g / moments.square.sqrt())[:, None] * x
    assert ((step * x).sum(1) > 0)[disagree].all()  # to first order ‖x‖ shrinks
    assert ((step * d).sum(1) > 0)[disagree].all()  # and f still descends


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 0.95])
def test_projection_fires_exactly_where_it_was_derived_to(epsilon):
    torch.manual_seed(0)
    x, d, rate, lam = torch.randn(2000, 5) * torch.logspace(-4, 0, 2000)[:, None], torch.randn(2000, 5).abs(), 0.1, 1e-3
    d = d * x.sign()  # both goals agree
    moments = moments_of(x, d, rate)
    fires = rate * (moments.dot + lam * moments.square.sqrt()) > (1 - epsilon) * moments.square
    assert torch.equal(dual_step(moments, lam, 2.0, 10.0, epsilon).project, fires)
    assert fires.any()
    assert not fires.all()


def test_score_is_the_authors_formula():
    torch.manual_seed(0)
    x, g = [torch.randn(4, 6), torch.randn(3, 9)], [torch.randn(4, 6), torch.randn(3, 9)]
    scores = redundancy([moments_of(a, b) for a, b in zip(x, g, strict=True)], [6, 9])
    cosine = torch.cat([F.cosine_similarity(-a, -b) for a, b in zip(x, g, strict=True)])
    small = torch.cat([1 / (a.norm(dim=1) / a.shape[1] + 1e-6) for a in x])
    torch.testing.assert_close(torch.cat(scores), cosine / cosine.norm() / 2 + small / small.norm() / 2)


def test_selection_takes_the_highest_scores_and_respects_the_minimum():
    chosen = select_redundant([torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 3.0, 2.0])], 3, [2, 2])
    assert [part.tolist() for part in chosen] == [[0, 1], [1]]


def test_a_base_instance_with_parameter_groups_is_kept():
    gm = prepared()
    norms = [p for name, p in gm.named_parameters() if p.ndim == 1]
    rest = [p for name, p in gm.named_parameters() if p.ndim > 1]
    base = torch.optim.SGD([{"params": rest, "weight_decay": 0.1}, {"params": norms, "lr": 0.01}], lr=0.05)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=1, end_step=6)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    train(gm, optimizer, 6, schedule=schedule)
    assert [group["lr"] for group in base.param_groups] == pytest.approx([0.05 * 0.01, 0.01 * 0.01])
    assert optimizer.group_sparsity == 0.5


def test_the_closures_loss_is_returned():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=10)

    def closure():
        optimizer.zero_grad()
        loss = gm(IMAGE.double()).square().mean()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_group_sparsity": 0.0}, r"must be between 0 and 1, both excluded; found 0.0"),
        ({"target_group_sparsity": 1.0}, r"must be between 0 and 1"),
        ({"target_group_sparsity": 0.99}, r"cannot be reached: with min_kept=0.05 of each family, at most 0.938"),
        ({"total_steps": None}, r"must know by when to be done: pass total_steps="),
        (
            {"start_step": 8, "end_step": 4},
            r"0 <= start_step < end_step <= total_steps; found start_step=8, end_step=4",
        ),
        ({"end_step": 99}, r"end_step=99, total_steps=20"),
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\)"),
        ({"lam": 0.0}, r"lam must be > 0"),
        ({"min_kept": 1.0}, r"min_kept must be in \[0, 1\), found 1.0"),
    ],
)
def test_settings_that_cannot_work(options, message):
    gm = prepared()
    before = copy.deepcopy(gm.state_dict())
    with pytest.raises(fx_oto.SettingsError, match=message):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, **{"target_group_sparsity": 0.5, "total_steps": 20, **options})
    torch.testing.assert_close(gm.state_dict(), before, rtol=0, atol=0)


def test_a_base_over_other_parameters_is_refused():
    gm = prepared()
    base = torch.optim.SGD(make_net().parameters(), lr=0.1)
    with pytest.raises(fx_oto.SettingsError, match=r"the base optimizer does not hold '0.weight'"):
        fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, total_steps=20)


def test_an_instance_with_settings_for_a_class_is_refused():
    gm = prepared()
    with pytest.raises(fx_oto.SettingsError, match=r"base is an optimizer already, so \['lr'\] cannot be used"):
        fx_oto.DHSPG(gm, torch.optim.SGD(gm.parameters(), lr=0.1), lr=0.2, target_group_sparsity=0.5, total_steps=20)


def test_a_step_without_gradients_is_refused():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, start_step=0, end_step=5)
    with pytest.raises(fx_oto.SettingsError, match=r"no ZIG has a gradient .* call backward\(\) before step\(\)"):
        optimizer.step()


def test_an_unprepared_model_is_refused():
    with pytest.raises(fx_oto.MissingResultError, match=r"found Sequential"):
        fx_oto.DHSPG(make_net(), torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, total_steps=20)


def test_the_whole_job_in_one_call():
    model = make_net()
    small = fx_oto.compress(
        model,
        IMAGE.double(),
        train=lambda gm, optimizer: train(gm, optimizer, 20),
        base=torch.optim.SGD,
        lr=0.05,
        target_group_sparsity=0.5,
        total_steps=20,
    )
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


def test_frozen_parameters_are_never_written():
    model = make_net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    gm = fx_oto.prepare(model, IMAGE.double())
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, start_step=1, end_step=5)
    train(gm, optimizer, 6)
    assert torch.equal(model[0].weight, before)
    assert [int(zero.sum()) for zero in fx_oto.partition(gm).zeros()] == [0, 16]
    with pytest.raises(fx_oto.SettingsError, match=r"cannot be reached.*1 families have parameters with requires_grad"):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.7, total_steps=9)


def test_a_model_without_groups_is_refused():
    gm = fx_oto.prepare(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(fx_oto.SettingsError, match=r"no axis of this model can be pruned"):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9)


def test_groups_and_state_are_the_bases():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, momentum=0.9, target_group_sparsity=0.5, total_steps=9)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1})
    assert [group["lr"] for group in optimizer.base.param_groups] == [0.05, 0.1]
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state


def test_a_base_that_takes_several_steps_in_one_is_refused():
    with pytest.raises(fx_oto.SettingsError, match=r"LBFGS takes several steps in one"):
        fx_oto.DHSPG(prepared(), torch.optim.LBFGS, target_group_sparsity=0.5, total_steps=9)


def test_another_models_state_is_refused():
    optimizer = fx_oto.DHSPG(prepared(), torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9)
    other = fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    state = fx_oto.DHSPG(other, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=9).state_dict()
    with pytest.raises(fx_oto.SettingsError, match=r"this state has 1 families, the model has 2"):
        optimizer.load_state_dict(state)
    with pytest.raises(fx_oto.SettingsError, match=r"the key 'dhspg' is missing"):
        optimizer.load_state_dict(optimizer.base.state_dict())
