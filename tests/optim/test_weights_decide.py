"""What is zero in the weights is gone, wherever they come from; masks only try a pruning out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fx_oto

X = torch.randn(64, 10, dtype=torch.float64)
Y = X[:, :3].argmax(1)


def make_net(activation=nn.ReLU):
    layers = nn.Linear(10, 32), activation(), nn.Linear(32, 24), activation(), nn.Linear(24, 3)
    return nn.Sequential(*layers).double()


def train(optimizer, model, steps, after=lambda step: None, clip=0.0):
    for step in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after(step)


def prepared(activation=nn.ReLU, **settings):
    net = make_net(activation)
    gm = fx_oto.prepare(net, X[:4])
    settings = {"lr": 1e-2, "target_group_sparsity": 0.5, "total_steps": 40} | settings
    return net, gm, fx_oto.DHSPG(gm, torch.optim.Adam, **settings)


def is_exact(small, model):
    torch.testing.assert_close(small.eval()(X), model.eval()(X), rtol=1e-10, atol=1e-12)
    return True


def test_a_checkpoint_from_before_is_kept_as_it_is_unless_it_is_projected():
    net, gm, optimizer = prepared()
    kept = {}
    train(optimizer, net, 40, lambda step: kept.update(copy.deepcopy(net.state_dict())) if step == 2 else None)
    net.load_state_dict(kept)
    with pytest.raises(fx_oto.NothingToCompressError, match=r"28 of the 28 ZIGs that the optimizer has made zero are"):
        fx_oto.compress(gm)
    assert fx_oto.partition(gm).group_sparsity() == 0
    optimizer.project(net)
    assert fx_oto.partition(gm).group_sparsity() == 0.5
    assert is_exact(fx_oto.compress(gm), net)
    for name, value in net.state_dict().items():
        assert torch.equal(value[value != 0], kept[name][value != 0])


def test_what_came_back_is_counted_and_kept():
    net, gm, optimizer = prepared()
    train(optimizer, net, 40)
    family, back = fx_oto.partition(gm).families[0], optimizer.trajectory.gone[0][:2]
    with torch.no_grad():
        net[0].bias[family.variables[1].index[back].flatten()] = 1.0
    with pytest.warns(fx_oto.FxOtoWarning, match=r"2 of the 28 ZIGs .* are not zero any more, .*optimizer.project"):
        small = fx_oto.compress(gm)
    assert is_exact(small, net)
    assert sum(layer.out_features for layer in small.modules() if isinstance(layer, nn.Linear)) == 32 + 24 + 3 - 26


@pytest.mark.parametrize("doing", ["mask_", "zero_zigs_"])
def test_zigs_are_named_by_positions(doing):
    gm = prepared()[1]
    zigs = fx_oto.partition(gm)
    before = copy.deepcopy(gm.state_dict())
    for family, which, text in (
        ("2.weight", [0], "an integer below 2; found '2.weight'; '2.weight' is at 1"),
        ("stem", [0], "an integer below 2; found 'stem'$"),
        (2, [0], "an integer below 2; found 2"),
        (-1, [0], "an integer below 2; found -1"),
        (0, [3, 32], "positions in the family '0.weight', below 32; found 3 to 32"),
        (0, [0.5], "positions in the family '0.weight', as integers; found torch.float32"),
        (0, torch.ones(31) > 0, "positions in the family '0.weight', as integers; found torch.bool"),
    ):
        with pytest.raises(fx_oto.SettingsError, match=text):
            getattr(zigs, doing)(family, which)
    getattr(zigs, doing)(0, [])
    assert all(torch.equal(value, before[key]) for key, value in gm.state_dict().items())
    assert not any(hidden.any() for hidden in zigs.masked())
    getattr(zigs, doing)(1, torch.arange(24) < 3)
    found = zigs.masked() if doing == "mask_" else zigs.zeros()
    assert found[1].nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_projected_as_a_module_is(prefix):
    net, gm, optimizer = prepared()
    train(optimizer, net, 40)
    state = {prefix + name: torch.rand_like(value) + 1 for name, value in net.state_dict().items()} | {"steps": 3}
    optimizer.project(state)
    del state["steps"]
    net.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    assert fx_oto.partition(gm).group_sparsity() == 0.5
    assert is_exact(fx_oto.compress(gm), net)
    for what, text in (({}, "this dict has no such parameter"), (3, "project expects a module or a state dict, found")):
        with pytest.raises(fx_oto.SettingsError, match=text):
            optimizer.project(what)


def test_averaged_weights_are_projected():
    net, gm, optimizer = prepared()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(optimizer, net, 40, lambda step: average.update_parameters(net))
    optimizer.project(average)
    net.load_state_dict(average.module.state_dict())
    assert is_exact(fx_oto.compress(gm), average.module)


def test_what_is_no_copy_of_the_model_is_not_projected():
    _, _, optimizer = prepared()
    with pytest.raises(fx_oto.SettingsError, match=r"with '0.weight' of shape \(32, 10\); this Linear has no such"):
        optimizer.project(nn.Linear(4, 3))
    with pytest.raises(fx_oto.SettingsError, match=r"this Sequential has it as \(5, 10\)"):
        optimizer.project(nn.Sequential(nn.Linear(10, 5)))


def test_masks_are_refused_until_it_is_said_what_becomes_of_them():
    net = make_net()
    gm = fx_oto.prepare(net, X[:4])
    zigs = fx_oto.partition(gm)
    full = gm.eval()(X)
    masked = zigs.mask_(0, torch.arange(9)).mask_(1, torch.arange(4)).module.eval()(X)
    assert not torch.allclose(masked, full)
    assert zigs.group_sparsity() == 0
    with pytest.raises(fx_oto.SlicingError, match=r"not zero: 9 of '0.weight', 4 of '2.weight'.*zero_masked_.*unmask_"):
        fx_oto.compress(gm)
    assert torch.equal(zigs.unmask_().module(X), full)
    zigs.mask_(0, torch.arange(9)).mask_(1, torch.arange(4)).zero_masked_()
    assert not any(hidden.any() for hidden in zigs.masked())
    small = fx_oto.compress(gm)
    assert is_exact(small, net)
    torch.testing.assert_close(small(X), masked, rtol=1e-10, atol=1e-12)


def test_a_family_that_no_mask_acts_on_cannot_be_masked():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.LSTM(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x)[0])

    gm = fx_oto.prepare(Recurrent(), torch.randn(5, 2, 4))
    with pytest.raises(fx_oto.MissingResultError, match=r"no mask acts on the family 'a\.weight_ih_l0'"):
        fx_oto.partition(gm).mask_(0, torch.arange(2))


def test_masks_are_no_state_and_compute_nothing_while_they_are_open():
    net, gm, optimizer = prepared()
    assert list(gm.state_dict()) == list(net.state_dict())
    seen = []
    with torch.autograd.profiler.profile() as profile:
        seen.append(gm(X))
    assert torch.equal(seen[0], net(X))
    assert not any(event.name.removeprefix("aten::") == "mul" for event in profile.function_events)
    train(optimizer, gm, 40)
    assert all(bool((mask == 1).all()) for mask in gm.zig_masks.buffers())


def test_masks_stay_closed_in_copies_and_on_other_types():
    gm = fx_oto.prepare(make_net(), X[:4])
    masked = fx_oto.partition(gm).mask_(0, torch.arange(9)).module.eval()(X)
    assert torch.equal(copy.deepcopy(gm)(X), masked)
    torch.testing.assert_close(copy.deepcopy(gm).float()(X.float()), masked.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("which", ["model", "gm"])
def test_a_resumed_training_is_the_same_bit_for_bit(kind, which):
    def begin():
        torch.manual_seed(0)
        net = make_net(nn.GELU)
        gm = fx_oto.prepare(net, X[:4])
        return net, gm, kind(gm, torch.optim.SGD, lr=0.1, momentum=0.9, target_group_sparsity=0.5, total_steps=60)

    net, gm, optimizer = begin()
    trained = net if which == "model" else gm
    train(optimizer, trained, 45, clip=0.05)
    saved = copy.deepcopy((trained.state_dict(), optimizer.state_dict()))
    train(optimizer, trained, 15, clip=0.05)
    other, its_gm, resumed = begin()
    (other if which == "model" else its_gm).load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(resumed, other if which == "model" else its_gm, 15, clip=0.05)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))


def test_a_state_that_was_assigned_to_layers_is_theirs_in_the_graph_too():
    net, gm, _ = prepared()
    state = copy.deepcopy(net.state_dict())
    for name in ("0.weight", "0.bias"):
        state[name][:9] = 0
    net.load_state_dict(state, assign=True)
    assert is_exact(fx_oto.compress(gm), net)


class Scaled(nn.Module):
    """Has a parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(10, 8), nn.Parameter(torch.rand(8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.b((self.a(x) * self.scale).relu())


def test_a_parameter_that_was_replaced_is_named():
    net = Scaled().double()
    gm = fx_oto.prepare(net, X[:4])
    fx_oto.partition(gm).zero_(0.5)
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    found = r"1 parameter of the model, such as 'scale', is not what prepare found.*loaded with assign=True"
    with pytest.raises(fx_oto.InputError, match=found):
        fx_oto.compress(gm)
    with pytest.raises(fx_oto.InputError, match=found):
        fx_oto.DHSPG(gm, lr=0.1, target_group_sparsity=0.5, total_steps=20)
    assert fx_oto.compress(copy.deepcopy(gm)).get_submodule("a").out_features == 4


def test_an_optimizer_that_takes_no_step_does_not_empty_the_report():
    net, gm, optimizer = prepared()
    train(optimizer, net, 40)
    fx_oto.DHSPG(gm, lr=0.1, target_group_sparsity=0.7, total_steps=20)
    assert fx_oto.report(gm).training.steps == 40


def test_a_later_training_keeps_what_is_zero_but_no_layer_that_began_with_zeros():
    net, gm, optimizer = prepared(nn.GELU)
    train(optimizer, net, 40)
    gone = [part.clone() for part in optimizer.trajectory.gone]
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)  # begins anew, as a zero convolution does
    train(fx_oto.DHSPG(gm, torch.optim.Adam, lr=1e-2, target_group_sparsity=0.7, total_steps=100), net, 5)
    zeros = fx_oto.partition(gm).zeros()
    assert all(bool(zero[part].all()) for zero, part in zip(zeros, gone, strict=True))
    assert int(zeros[1].sum()) == len(gone[1])


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_learning_rate_of_zero_leaves_numbers_finite(kind, frozen):
    net = make_net()
    gm = fx_oto.prepare(net, X[:4])
    named = dict(net.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if (frozen in name) is still], "lr": 0.0 if still else 0.1}
        for still in (True, False)
    ]
    optimizer = kind(gm, torch.optim.SGD(groups), target_group_sparsity=0.5, total_steps=60)
    train(optimizer, net, 60)
    assert all(bool(p.isfinite().all()) for p in named.values())
    assert optimizer.group_sparsity == 0.5
    assert is_exact(fx_oto.compress(gm), net)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 24, dtype=torch.complex128), nn.Linear(24, 16, dtype=torch.complex128)
        self.c = nn.Linear(16, 4, dtype=torch.float64)

    def forward(self, x):
        h = self.a(x)
        return self.c(self.b(torch.complex(h.real.relu(), h.imag.relu())).abs())


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
@pytest.mark.parametrize("saliency", ["otov2", "magnitude", "taylor1", "taylor2", "hesso"])
def test_complex_weights_are_trained(kind, saliency):
    net, x = Complex(), torch.randn(32, 10, dtype=torch.complex128)
    gm = fx_oto.prepare(net, x)
    optimizer = kind(gm, torch.optim.Adam, lr=1e-3, target_group_sparsity=0.5, total_steps=30, saliency=saliency)
    for _ in range(30):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert optimizer.group_sparsity == 0.5
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(x), net.eval()(x), rtol=1e-10, atol=1e-12)


def staged(unfreeze, **settings):
    body = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
    net = nn.Sequential(body, nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    gm = fx_oto.prepare(net, X[:4])
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=100, **settings)
    body.requires_grad_(False)
    train(optimizer, net, 100, lambda step: body.requires_grad_(True) if step == unfreeze else None)
    return net, gm, optimizer


@pytest.mark.parametrize("settings", [{}, {"periods": 3}, {"start_step": 0, "end_step": 60}])
def test_what_is_unfrozen_in_the_window_is_pruned_from_then_on(settings):
    with pytest.warns(
        fx_oto.FxOtoWarning, match=r"2 families are not trained now, .*'0.0.weight'.*start_step"
    ) as warned:
        net, gm, optimizer = staged(20, **settings)
    assert len([one for one in warned if "not trained now" in str(one.message)]) == 1
    assert optimizer.group_sparsity == 0.5
    assert is_exact(fx_oto.compress(gm), net)


@pytest.mark.filterwarnings("ignore:1 family is not trained now")
def test_a_training_that_waits_is_resumed_as_one_that_waits():
    def begin():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Sequential(nn.Linear(10, 32), nn.ReLU()), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
        gm = fx_oto.prepare(net.double(), X[:4])
        optimizer = fx_oto.DHSPG(gm, lr=0.05, target_group_sparsity=0.5, total_steps=100)
        net[0].requires_grad_(False)
        return net, optimizer

    def thawed_at(net, moment, since=0):
        return lambda step: net[0].requires_grad_(True) if since + step == moment else None

    net, optimizer = begin()
    train(optimizer, net, 15)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    train(optimizer, net, 60, thawed_at(net, 20, since=15))
    other, resumed = begin()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(resumed, other, 60, thawed_at(other, 20, since=15))
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))
    assert resumed.group_sparsity == optimizer.group_sparsity == 0.5


def test_what_stays_frozen_stays_as_it_is():
    with pytest.warns(fx_oto.FxOtoWarning, match=r"2 families are not trained now"):
        net, gm, optimizer = staged(200)
    assert fx_oto.partition(gm).removed().tolist() == [0, 0, 7]
    assert 0 < optimizer.group_sparsity < 0.5
    told = (
        r"is not reached: 2 families were frozen .* such as '0.0.weight'.*prune_frozen=True. Now the group sparsity is"
    )
    with pytest.warns(fx_oto.FxOtoWarning, match=told):
        assert is_exact(fx_oto.compress(gm), net)


def test_a_training_of_what_is_all_frozen_says_why_nothing_is_zero():
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    gm = fx_oto.prepare(net, X[:4])
    optimizer = fx_oto.DHSPG(gm, lr=0.05, target_group_sparsity=0.5, total_steps=20)
    net[1].requires_grad_(False)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"1 family is not trained now"):
        train(optimizer, net, 20)
    with pytest.raises(fx_oto.NothingToCompressError, match=r"1 family was frozen .* such as '0.weight'.*prune_frozen"):
        fx_oto.compress(gm)


class Adapted(nn.Module):
    """A linear layer that is frozen, and a low-rank one beside it that is trained."""

    def __init__(self, inputs, outputs, rank=4):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x)) * 0.5


@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
def test_what_is_frozen_under_adapters_is_pruned_if_asked_for(kind):
    net = nn.Sequential(Adapted(10, 32), nn.GELU(), Adapted(32, 24), nn.GELU(), nn.Linear(24, 3)).double()
    gm = fx_oto.prepare(net, X[:4])
    base = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    settings = {"target_params": 0.5, "total_steps": 60, "unprunable": ["*.down"]}
    with pytest.raises(fx_oto.SettingsError, match=r"target_params=0.5 cannot be reached.*requires_grad=False"):
        kind(gm, base, **settings)
    before = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    optimizer = kind(gm, base, prune_frozen=True, **settings)
    train(optimizer, net, 60)
    assert optimizer.reached()["params"] <= 0.5
    after = dict(net.named_parameters())
    assert all(torch.equal(after[name][after[name] != 0], old[after[name] != 0]) for name, old in before.items())
    small = fx_oto.compress(gm)
    assert is_exact(small, net)
    assert [small.get_submodule(name).out_features for name in ("0.down", "2.down")] == [4, 4]


def test_only_bases_that_switch_modes_have_modes():
    _, _, optimizer = prepared()
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")
    assert not hasattr(copy.deepcopy(optimizer), "train")


def test_a_compiled_step_is_the_step():
    nets = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net, _, optimizer = prepared()
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            step()
        nets.append(net)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
