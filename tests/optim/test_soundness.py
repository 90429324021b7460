"""What was once wrong: second rounds, other schedules, copies, NaN, and what users do between two steps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.training import IMAGE, batches, make_net, prepared, train
from torch import nn

import fx_oto
from fx_oto.optim import rows
from fx_oto.optim.latency import Latency
from fx_oto.optim.schedule import Schedule

SGD = {"lr": 0.05, "momentum": 0.9}
WINDOW = {"start_step": 2, "end_step": 8, "saliency_batches": 1}


def make(gm, **options):
    return fx_oto.DHSPG(gm, torch.optim.SGD, **{"target_group_sparsity": 0.5, **SGD, **WINDOW} | options)


def test_a_second_round_keeps_what_the_first_made_zero():
    """Also in the eager model, where no mask holds it at zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 3)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)

    def round_of(optimizer):
        for _ in range(10):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    round_of(make(gm))
    assert fx_oto.partition(gm).removed().tolist() == [16]
    round_of(make(gm, target_group_sparsity=0.6))
    assert fx_oto.partition(gm).removed().tolist() == [20]
    torch.testing.assert_close(fx_oto.compress(gm)(x), model(x), rtol=1e-10, atol=1e-12)


def test_latency_is_that_of_the_widths_asked_for_whatever_is_zero_already():
    gm = prepared()
    zigs = fx_oto.partition(gm)
    zigs.zero_zigs_(0, torch.tensor([8, 9, 10, 11]))
    widths = []
    cut = fx_oto.PhysicalSlicing.transform

    def spy(self, gm, context):
        compact = cut(self, gm, context)
        widths.append(compact.get_submodule("0").out_channels)
        return compact

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fx_oto.PhysicalSlicing, "transform", spy)
        for count in (4, 7):
            Latency(gm, rounds=1).left(torch.tensor([count, 0]))
    assert widths == [8, 5]


def test_after_a_bad_batch_the_training_can_go_on():
    gm = prepared()
    optimizer = make(gm)
    train(gm, optimizer, 2)
    image, label = next(batches(1))
    for bad in (True, False):
        optimizer.zero_grad()
        F.cross_entropy(gm(image), label).backward()
        if bad:
            gm.get_submodule("3").weight.grad.fill_(float("nan"))
            with pytest.raises(fx_oto.TrainingError, match="NaN or infinite"):
                optimizer.step()
        else:
            optimizer.step()
    train(gm, optimizer, 6)
    assert optimizer.group_sparsity == 0.5


def test_divergence_inside_the_window_is_announced():
    gm = prepared()
    optimizer = make(gm, stride=1)
    train(gm, optimizer, 4)
    image, label = next(batches(1))
    optimizer.zero_grad()
    F.cross_entropy(gm(image), label).backward()
    for parameter in gm.parameters():
        parameter.grad.fill_(float("nan"))
    optimizer.step()
    optimizer.zero_grad()
    gm(image).sum().backward()
    with pytest.warns(fx_oto.FxOtoWarning, match="the training diverged") as warned:
        optimizer.step()
    assert warned[0].filename == __file__


@pytest.mark.parametrize("options", [{"end_step": 9}, {"target_group_sparsity": 0.6}, {"periods": 2}])
def test_a_state_of_other_settings_is_refused(options):
    gm = prepared()
    optimizer = make(gm)
    train(gm, optimizer, 4)
    other = make(prepared(), **options)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(fx_oto.SettingsError, match="build it with the same target, steps, limits and stride"):
        other.load_state_dict(optimizer.state_dict())
    assert str(other.state_dict()) == str(before)


def test_the_state_of_another_optimizer_is_refused():
    state = make(prepared()).state_dict()
    hesso = fx_oto.HESSO(prepared(), torch.optim.SGD, target_group_sparsity=0.5, **SGD, **WINDOW)
    with pytest.raises(fx_oto.SettingsError, match=r"with DHSPG.*this one has HESSO"):
        hesso.load_state_dict(state)


def test_a_window_that_begins_late_is_no_cliff():
    assert Schedule.of(1000, None, None, 1, 0.6) == Schedule(100, 600, 1)
    late = Schedule.of(1000, 700, None, 1, 0.6)
    assert late.end - late.start > 150


def test_a_rising_learning_rate_does_not_make_the_regulariser_explode():
    """λ follows the learning rate, so that a ZIG's way to zero takes as long from whatever rate it starts."""
    gm = prepared()
    optimizer = make(gm, start_step=0, end_step=100, stride=1, momentum=0.0)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 50, 1.0))
    train(gm, optimizer, 10, schedule=warm_up)
    assert optimizer.group_sparsity == 0
    train(gm, optimizer, 90, schedule=warm_up)
    assert optimizer.group_sparsity == 0.5


def test_a_group_of_another_rate_does_not_set_lambda():
    """A head that learns a hundred times faster holds no redundant ZIG."""

    def gone_by(step, rate):
        gm = prepared()
        head = list(gm.get_submodule("8").parameters())
        body = [p for p in gm.parameters() if all(p is not q for q in head)]
        base = torch.optim.SGD([{"params": body}, {"params": head, "lr": rate}], lr=0.01)
        optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=0, end_step=100, stride=1)
        train(gm, optimizer, step)
        return optimizer.group_sparsity

    assert gone_by(90, 1e-9) > 0
    assert gone_by(90, 1.0) > 0


def test_a_base_without_a_learning_rate_is_refused():
    class Rateless(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

    with pytest.raises(fx_oto.SettingsError, match="param groups of Rateless have no learning rate"):
        fx_oto.DHSPG(prepared(), Rateless, target_group_sparsity=0.5, **WINDOW)


def test_scores_of_later_periods_are_normalised_over_the_living():
    seen = []

    def spy(zigs):
        seen.append(torch.cat([family.alive for family in zigs]))
        return [score.clone() for score in fx_oto.optim.saliency.CRITERIA["otov2"](zigs)]

    gm = prepared()
    optimizer = make(gm, periods=3, saliency=spy)
    train(gm, optimizer, 8)
    assert [int((~alive).sum()) for alive in seen] == [0, 6, 11]
    assert optimizer.group_sparsity == 0.5


def test_infinite_scores_are_the_ends_of_the_order():
    def never_the_first(zigs):
        return [torch.full((len(z.alive),), -torch.inf).index_fill(0, torch.arange(6, len(z.alive)), 1.0) for z in zigs]

    gm = prepared()
    train(gm, make(gm, saliency=never_the_first), 8)
    assert fx_oto.partition(gm).removed().sum() == 16
    assert not any(bool(zero[:6].any()) for zero in fx_oto.partition(gm).zeros())


class TwoWays(nn.Module):
    """A matrix that is used from both sides, so that its rows and its columns are variables."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(4, 10), nn.Linear(18, 3)
        self.matrix = nn.Parameter(torch.randn(8, 10))

    def forward(self, x):
        left = self.first(x) @ self.matrix
        right = self.second(x) @ self.matrix.T
        return self.third(torch.cat([left.tanh(), right.tanh()], 1))


def test_entries_of_two_groups_are_zero_with_either():
    torch.manual_seed(0)
    model = TwoWays().double()
    x = torch.randn(16, 4, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    optimizer = make(gm, start_step=0, end_step=30, stride=1, lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        zigs = fx_oto.partition(gm)
        parameters = dict(gm.named_parameters())
        for family, gone in zip(zigs.families, optimizer.trajectory.gone, strict=True):
            for slot in family.variables:
                rows = slot.index[gone].reshape(-1)
                assert not parameters[slot.tensor].index_select(slot.dim, rows).any()
    assert optimizer.group_sparsity > 0


def test_a_copy_trains_on_as_the_original():
    gm = prepared()
    optimizer = make(gm, end_step=12)
    train(gm, optimizer, 5)
    twin, its = copy.deepcopy((gm, optimizer))
    train(gm, optimizer, 8, seed=3)
    assert fx_oto.partition(twin).group_sparsity() < 0.5
    train(twin, its, 8, seed=3)
    for left, right in zip(gm.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left, right)


def test_what_was_moved_is_pruned():
    gm = fx_oto.prepare(make_net().float(), IMAGE.float())
    optimizer = make(gm)
    gm.double()
    train(gm, optimizer, 9)
    assert sum(int(zero.sum()) for zero in fx_oto.partition(gm).zeros()) == 16


def test_what_is_frozen_before_the_choice_is_left_alone():
    gm = prepared()
    optimizer = make(gm)
    train(gm, optimizer, 2)
    gm.get_submodule("0").weight.requires_grad_(False)
    before = gm.get_submodule("0").weight.clone()
    gm.get_submodule("0").weight.grad = None
    with pytest.warns(fx_oto.FxOtoWarning, match=r"1 family is not trained now, such as '0.weight'"):
        train(gm, optimizer, 8)
    assert torch.equal(gm.get_submodule("0").weight, before)
    assert fx_oto.partition(gm).removed().tolist() == [0, 16]


def test_a_closure_may_return_anything():
    gm = prepared()
    optimizer = make(gm)

    def closure():
        optimizer.zero_grad()
        loss = gm(IMAGE).square().mean()
        loss.backward()
        return {"loss": loss}

    assert set(optimizer.step(closure)) == {"loss"}
    assert optimizer.trajectory.rows() == [(0, 0.0, None)]


def test_sparse_gradients_are_read():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))
    gm = fx_oto.prepare(net, torch.arange(6))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, **WINDOW)
    for _ in range(9):
        optimizer.zero_grad()
        gm(torch.randint(20, (6,))).square().mean().backward()
        optimizer.step()
    assert optimizer.group_sparsity == 0.5


def test_fractions_of_whole_numbers_are_not_rounded_up():
    net = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 3))
    gm = fx_oto.prepare(net, torch.randn(2, 4))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, min_kept=0.07, **WINDOW)
    assert optimizer.limits.most == (93,)


def test_one_pattern_may_be_given_as_a_string():
    gm = prepared()
    optimizer = make(gm, unprunable="3*", target_group_sparsity=0.3)
    assert optimizer.limits.most[1] == 0


def test_a_model_without_multiply_adds_has_no_target_in_them():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

        def forward(self, x):
            return (x * self.first * self.second).sum(1)

    gm = fx_oto.prepare(Scale(), torch.randn(2, 1))
    with pytest.raises(fx_oto.SettingsError, match=r"no multiply-adds were counted|no axis of this model"):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_macs=0.5, **WINDOW)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("share", [0.1, 0.7])
@pytest.mark.parametrize("dim", [0, 1])
def test_what_is_gone_is_cleared_whatever_it_holds(dtype, share, dim):
    """Few by their indices, many by a pass over all bits; also of NaN, in a tensor that is not contiguous."""
    full = torch.randn(30, 20, 3).to(dtype).transpose(0, 2)[..., ::2].transpose(0, 1)
    gone = torch.randperm(full.size(dim))[: int(share * full.size(dim))]
    held = full.index_select(dim, gone)
    full.index_copy_(dim, gone, torch.full_like(held, float("nan")))
    expected = full.clone().index_fill_(dim, gone, 0)
    block, version = rows._Block(full, dim, gone, slice(0, len(gone)), None), full._version
    block.clear(full)
    block.clear(full)
    assert torch.equal(full, expected)
    assert full._version > version
    assert full.isfinite().all()


class Unweighted(nn.Module):
    """Behind its norms a channel is not zero, whatever the layers before them do."""

    def __init__(self):
        super().__init__()
        self.a, self.up, self.down, self.head = nn.Linear(6, 16), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.a(x)
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, (16,)))))
        return self.head(1.3 * F.layer_norm(x, (16,)))


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize(("base", "lr"), [(torch.optim.SGD, 0.05), (torch.optim.AdamW, 0.01)])
def test_weights_that_read_what_is_not_zero_are_driven_to_zero_with_it(kind, base, lr):
    model, x = Unweighted().double(), torch.randn(64, 6).double()
    gm = fx_oto.prepare(model, x[:4])
    optimizer = kind(gm, base, lr=lr, target_group_sparsity=0.5, total_steps=40)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    gone = (model.a.weight == 0).all(1)
    assert gone.any()
    for weight in (model.up.weight, model.head.weight):
        assert not weight[:, gone].any()
        assert weight[:, ~gone].any(0).all()
    small = fx_oto.compress(gm)
    assert small.get_submodule("a").out_features == int((~gone).sum())
    for training in (True, False):
        torch.testing.assert_close(small.train(training)(x), model.train(training)(x), rtol=1e-10, atol=1e-12)
