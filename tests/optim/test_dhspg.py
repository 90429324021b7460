"""DHSPG against a plain, slow reference, and what it promises: the target, exact zeros, the base's own behaviour."""

from __future__ import annotations

import copy
import math
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from support.training import BASES, IMAGE, batches, make_net, prepared, train
from torch import nn

import fx_oto
from fx_oto.optim.dhspg import Moments, dual_step


def moments_of(x, d, rate=0.1):
    square, dot = x.square().sum(1), (x * d).sum(1)
    return Moments(square, dot, d.square().sum(1), rate * dot, rate * square)


def reference_step(x, after, rate, lam, amplify, hat, epsilon, small=0.0):
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
        if norm < small:
            lam_g = max(lam_g, amplify * lower) if lam_g <= lower else lam_g
        elif not lower < lam_g < upper:
            lam_g = (lower + upper) / 2
    trial = [b - rate * lam_g * a / norm for a, b in zip(x, after, strict=True)]
    if sum(t * a for t, a in zip(trial, x, strict=True)) < epsilon * norm * norm:
        return [0.0] * len(x)
    return trial


def test_on_the_border_of_its_half_space_a_zig_stays():
    """Of ‖x‖² = 4 the step leaves ⟨x̃, x⟩ = 2."""
    moments = moments_of(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), rate=1.0)
    for epsilon, projected in ((0.5, False), (0.51, True)):
        assert dual_step(moments, lam=1.0, amplify=2.0, hat=10.0, epsilon=epsilon).project.item() is projected


def test_a_zig_of_the_small_norm_is_not_small_yet():
    """λ_min is 1, λ_max 2 and λ_g in the middle; of a smaller one λ_g is three times λ_min."""
    moments = moments_of(torch.tensor([[2.0, 0.0]]), torch.tensor([[-1.0, 1.0]]))
    for small, expected in ((2.0, 1.5), (2.1, 3.0)):
        shrink = dual_step(moments, lam=0.1, amplify=3.0, hat=100.0, epsilon=0.0, small=small).shrink
        assert shrink.item() * 2 == pytest.approx(expected)


def entries_of(family, zig):
    return [(slot.tensor, slot.dim, index) for slot in family.variables for index in slot.index[zig].tolist()]


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


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("epsilon", [0.0, 0.95])
@pytest.mark.parametrize("name", BASES)
def test_a_hundred_steps_equal_the_reference(name, epsilon, stride):
    """Two nets side by side: one trained by DHSPG, one by the base and the reference, one ZIG at a time."""
    base, options = BASES[name]
    gm = prepared()
    twin = copy.deepcopy(gm)
    settings = {"lam": {"SGD": 1.0, "AdamW": 100.0}[name], "amplify": 2.0, "hat": 10.0, "epsilon": epsilon}
    window = {"start_step": 0, "end_step": 1000, "periods": 1, "stride": stride}
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, **window, **settings, **options)
    plain = base(twin.parameters(), **options)
    tensors = dict(twin.named_parameters())
    families = fx_oto.partition(twin).families
    zero = set()
    for step, (image, label) in enumerate(batches(100)):
        if step % stride == 0:
            before = {key: value.detach().clone() for key, value in tensors.items()}
        for model, stepper in ((gm, optimizer), (twin, plain)):
            stepper.zero_grad()
            F.cross_entropy(model(image), label).backward()
            stepper.step()
        if step == 0:
            phases = optimizer.state_dict()["param_groups"][0]["zigs"]["phases"]
            chosen = [(i, zig) for i, phase in enumerate(phases) for zig in phase.nonzero().flatten().tolist()]
            mine = {one: entries_of(families[one[0]], one[1]) for one in chosen}
            norms = {one: math.hypot(*read(entries, before)) for one, entries in mine.items()}
            small = [0.2 * mean(norms[one] for one in chosen if one[0] == i) for i in range(len(families))]
        for (i, zig), entries in mine.items():
            if (i, zig) not in zero and (step + 1) % stride == 0:
                scaled = settings | {"lam": stride * settings["lam"], "small": small[i]}
                new = reference_step(read(entries, before), read(entries, tensors), options["lr"], **scaled)
                write(entries, tensors, new)
                if not any(new):
                    zero.add((i, zig))
                    fx_oto.partition(twin).zero_zigs_(i, torch.tensor([zig]))
            if (i, zig) in zero:
                clear(entries, tensors, plain)
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
    gm = fx_oto.prepare(model, IMAGE)
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
    small = fx_oto.compress(gm)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)


def test_an_important_group_takes_the_base_step():
    base, options = BASES["SGD"]
    gm = prepared()
    twin = copy.deepcopy(gm)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.4, start_step=0, end_step=50, **options)
    train(gm, optimizer, 1)
    train(twin, base(twin.parameters(), **options), 1)
    phases = optimizer.state_dict()["param_groups"][0]["zigs"]["phases"]
    for family, phase in zip(fx_oto.partition(gm).families, phases, strict=True):
        important = phase == 0
        for slot in family.variables:
            rows = slot.index[important].reshape(-1)
            expected = twin.get_parameter(slot.tensor).index_select(slot.dim, rows)
            torch.testing.assert_close(
                gm.get_parameter(slot.tensor).index_select(slot.dim, rows), expected, rtol=0, atol=0
            )
    assert sum(int((phase > 0).sum()) for phase in phases) > 0


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


def test_a_small_group_is_not_held_up_by_f():
    """Where x and d are antiparallel, as near zero before a normalization, the bounds meet; below ``small`` none is."""
    x = torch.randn(50, 4, dtype=torch.float64)
    moments = moments_of(x, -3 * x)
    shrinks = [dual_step(moments, 1e-3, 2.0, 10.0, 0.0, small).shrink for small in (0.0, 100.0)]
    torch.testing.assert_close(shrinks[0], torch.full((50,), 3.0, dtype=torch.float64))  # as much as f pushes outwards
    torch.testing.assert_close(shrinks[1], torch.full((50,), 6.0, dtype=torch.float64))


class Attention(nn.Module):
    """A patch embedding, a transformer layer and a head."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 32, 2, 2), nn.Linear(32, 5)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


NETS = {
    "batch norm, SGD": (make_net, *BASES["SGD"]),
    "batch norm, AdamW": (make_net, *BASES["AdamW"]),
    "no norm, SGD": (lambda: mlp(nn.Identity), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "layer norm, Adam": (lambda: mlp(lambda: nn.LayerNorm(48)), torch.optim.Adam, {"lr": 2e-3}),
    "attention, AdamW": (lambda: Attention().double(), torch.optim.AdamW, {"lr": 2e-3}),
}


def mlp(norm):
    torch.manual_seed(0)
    widths = zip((192, 48), (48, 48), strict=True)
    layers = [layer for i, o in widths for layer in (nn.Linear(i, o), norm(), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(48, 5)).double()


@pytest.mark.parametrize("steps", [100, 800])
@pytest.mark.parametrize("name", NETS)
def test_half_of_the_redundant_groups_are_projected_by_the_middle_of_the_window(name, steps):
    """By the half-space step alone: the fade that brings the rest to zero begins there."""
    if steps > 100 and name != "batch norm, SGD":
        pytest.skip("strides are tried on one network")
    make, base, options = NETS[name]
    gm = fx_oto.prepare(make(), IMAGE)
    optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.6, start_step=20, end_step=20 + steps, **options)
    train(gm, optimizer, 20 + steps // 4)
    early = optimizer.group_sparsity
    train(gm, optimizer, steps // 4, seed=2)
    assert early < 0.15
    assert optimizer.group_sparsity > 0.3
    train(gm, optimizer, steps // 2, seed=3)
    assert optimizer.group_sparsity == math.ceil(0.6 * optimizer.zigs.num_zigs) / optimizer.zigs.num_zigs


@pytest.mark.parametrize(
    ("steps", "stride", "epsilon"), [(200, 1, 1 - 12.5 / 200), (300, 4, 1 - 12.5 * 4 / 300), (12, 1, 0.0)]
)
def test_epsilon_follows_from_the_window(steps, stride, epsilon):
    """By it λ alone projects a ZIG once a fifth of the mean norm is left, of which it takes 1 / 0.08 of the window."""
    base, options = BASES["SGD"]
    ends = []
    for given in (None, epsilon, (1 + epsilon) / 2):
        gm = prepared()
        settings = {"start_step": 0, "end_step": steps, "stride": stride, "epsilon": given, **options}
        train(gm, fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, **settings), steps // 2)
        ends.append(torch.cat([p.detach().flatten() for p in gm.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-12)
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("periods", [1, 3])
@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("name", BASES)
def test_training_the_model_or_the_graph_gives_the_same_zeros(name, kind, periods):
    base, options = BASES[name]
    ends = []
    for eager in (True, False):
        model = make_net()
        gm = fx_oto.prepare(model, IMAGE)
        window = {"start_step": 2, "end_step": 14, "periods": periods, "saliency_batches": 2}
        train(model if eager else gm, kind(gm, base, target_group_sparsity=0.5, **window, **options), 18)
        ends.append((fx_oto.partition(gm).zeros(), model.state_dict()))
    assert all(torch.equal(left, right) for left, right in zip(ends[0][0], ends[1][0], strict=True))
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("small", [0.0, 1.2])
@pytest.mark.parametrize("lam", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize(("amplify", "hat", "epsilon"), [(2.0, 10.0, 0.0), (1.1, 1.5, 0.6), (50.0, 30.0, 0.95)])
def test_a_dual_step_is_that_of_the_formulas(lam, amplify, hat, epsilon, small):
    """Of every kind: both goals agree, they disagree, λ is outside of its bounds, the group is zero, x and d oppose."""
    torch.manual_seed(0)
    x, d, rate = torch.randn(300, 3).double(), torch.randn(300, 3).double(), 0.1
    x[0], d[1], d[2] = 0, -x[1], -0.99 * x[2] + 1e-3
    dual = dual_step(moments_of(x, d, rate), lam, amplify, hat, epsilon, small)
    after = x - rate * d
    trial = torch.where(dual.project[:, None], 0.0, after - rate * dual.shrink[:, None] * x)
    numbers = (rate, lam, amplify, hat, epsilon, small)
    expected = [reference_step(a, b, *numbers) for a, b in zip(x.tolist(), after.tolist(), strict=True)]
    torch.testing.assert_close(trial, torch.tensor(expected, dtype=torch.float64))
    assert 0 < dual.project.sum() < 300


@pytest.mark.parametrize(
    ("window", "given", "stride"),
    [
        ((0, 399), None, 1),
        ((0, 400), None, 2),
        ((5000, 5100), None, 1),  # the window counts, not when it begins
        ((5000, 5800), None, 4),
        ((0, 3199), None, 15),
        ((0, 3200), None, 16),
        ((0, 99999), None, 16),
        ((0, 99999), 40, 40),
    ],
)
def test_the_stride_is_a_two_hundredth_of_the_window(window, given, stride):
    start, end = window
    options = {"lr": 0.05, "target_group_sparsity": 0.5, "start_step": start, "end_step": end}
    optimizer = fx_oto.DHSPG(prepared(), stride=given, **options)
    assert optimizer._stride(optimizer.schedule.period(start)) == stride
