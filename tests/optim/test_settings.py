"""Settings that cannot work are refused before anything is changed, in words that say what to do."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from support.training import IMAGE, batches, make_net, prepared, train
from torch import nn

import fx_oto


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_group_sparsity": 0.0}, r"target_group_sparsity must be a number between 0 and 1, both .*; found 0.0"),
        (
            {"target_group_sparsity": "half"},
            r"target_group_sparsity must be a number between 0 and 1, .*; found 'half'",
        ),
        ({"unprunable": 3}, r"patterns of names must be strings such as .*, found 3"),
        ({"target_group_sparsity": 1.0}, r"target_group_sparsity must be a number between 0 and 1"),
        ({"target_group_sparsity": None, "target_macs": 1.5}, r"target_macs must be a number between 0 and 1"),
        ({"target_group_sparsity": 0.99}, r"=0.99 cannot be reached: .* what can be reached is group sparsity 0.9375"),
        (
            {"target_group_sparsity": None, "target_params": 0.01},
            r"target_params=0.01 cannot be reached: .* is params left 0.0\d+; change the target, min_kept",
        ),
        ({"target_group_sparsity": 0.6, "round_to": 8}, r"cannot be reached"),
        ({"target_macs": 0.5}, r"give one of .* found target_group_sparsity and target_macs"),
        ({"target_group_sparsity": None}, r"give one of .* as a fraction of the full model; found none"),
        ({"total_steps": 0}, r"total_steps must be at least 1, the number of optimizer.step.. calls in all; found 0"),
        ({"total_steps": None}, r"must know by when to be done: pass total_steps="),
        ({"start_step": 8, "end_step": 4}, r"found start_step=8, end_step=4"),
        ({"end_step": 99}, r"0 <= start_step < end_step <= total_steps; .* end_step=99, total_steps=20"),
        ({"start_step": 2.5}, r"start_step must be a whole number of steps \(int\), found 2.5"),
        ({"periods": 0}, r"periods must be at least 1, found 0"),
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\)"),
        ({"lam": 0.0}, r"lam must be above 0, .*; found 0.0"),
        ({"amplify": 1.0}, r"amplify must be above 1; found 1.0"),
        ({"hat": 1.0}, r"hat must be above 1; found 1.0"),
        ({"epsilon": -0.1}, r"epsilon must be in \[0, 1\), or None to choose it from the window; found -0.1"),
        ({"stride": 0}, r"stride must be at least 1 \(int\), or None .*; found 0"),
        ({"saliency_batches": 0}, r"saliency_batches must be at least 1 \(int\); found 0"),
        ({"saliency_batches": 2.5}, r"saliency_batches must be at least 1 \(int\); found 2.5"),
        ({"stride": 2.5}, r"stride must be at least 1 \(int\), or None .*; found 2.5"),
        ({"lam": "small"}, r"lam must be above 0, .*; found 'small'"),
        ({"epsilon": "none"}, r"epsilon must be in \[0, 1\), .*; found 'none'"),
        ({"hat": None}, r"hat must be above 1; found None"),
        ({"uniform": True}, r"patterns of names must be strings such as .*, found True"),
        ({"uniform": [3]}, r"patterns of names must be strings such as .*, found 3"),
        ({"min_kept": 1.0}, r"min_kept must be a count \(int\) or a fraction in \[0, 1\) \(float\), found 1.0"),
        (
            {"min_kept": {"nowhere": 3}},
            r"the pattern 'nowhere' in min_kept matches no family; names look like '0.weight'",
        ),
        ({"max_group_sparsity": 1.2}, r"max_group_sparsity must be in \[0, 1\], found 1.2"),
        ({"round_to": 0}, r"round_to must be a positive integer, found 0"),
        ({"unprunable": ["nowhere"]}, r"the pattern 'nowhere' in unprunable matches no family"),
        (
            {"unprunable": ["*"]},
            r"cannot be reached: .* \(2 families are left alone: .0.weight., which is unprunable;",
        ),
    ],
)
@pytest.mark.parametrize("kind", [fx_oto.DHSPG, fx_oto.HESSO])
def test_settings_that_cannot_work(kind, options, message):
    if kind is fx_oto.HESSO and options.keys() & {"epsilon", "lam", "amplify", "hat", "stride"}:
        pytest.skip("a setting of DHSPG alone")
    gm = prepared()
    before = copy.deepcopy(gm.state_dict())
    with pytest.raises(fx_oto.SettingsError, match=message):
        kind(gm, torch.optim.SGD, lr=0.1, **{"target_group_sparsity": 0.5, "total_steps": 20, **options})
    torch.testing.assert_close(gm.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "option",
    [{"amplify": 1.01}, {"hat": 1.01}, {"epsilon": 0.0}, {"epsilon": 0.99}, {"lam": 1e-9}, {"stride": 1}],
    ids=str,
)
def test_settings_at_the_edge_of_what_can_work(option):
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, lr=0.05, target_group_sparsity=0.5, start_step=1, end_step=5, **option)
    assert {name: getattr(optimizer, name) for name in option} == option
    train(gm, optimizer, 5)
    assert optimizer.group_sparsity == 0.5


def refuse(gm, base, error, message, **options):
    with pytest.raises(error, match=message):
        fx_oto.DHSPG(gm, base, **{"target_group_sparsity": 0.5, "total_steps": 20, **options})


def test_bases_that_cannot_be_wrapped():
    gm = prepared()
    other = torch.optim.SGD(make_net().parameters(), lr=0.1)
    refuse(gm, other, fx_oto.SettingsError, r"the base optimizer does not hold '0.weight'")
    mine = torch.optim.SGD(gm.parameters(), lr=0.1)
    refuse(gm, mine, fx_oto.SettingsError, r"base is an optimizer instance; pass lr when you create it", lr=0.2)
    refuse(gm, torch.optim.LBFGS, fx_oto.SettingsError, r"LBFGS takes several steps in one")
    refuse(gm, torch.optim.LBFGS(gm.parameters()), fx_oto.SettingsError, r"LBFGS takes several steps in one")
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"SGD cannot be built over .*: Invalid learning rate: -1", lr=-1)
    inner = fx_oto.HESSO(gm, lr=0.1, target_macs=0.6, total_steps=9)
    for base in (inner, fx_oto.HESSO):
        refuse(gm, base, fx_oto.SettingsError, r"base is HESSO, which drives groups to zero itself: pass the optimizer")
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"'learning_rate' is neither an argument", learning_rate=0.1)


def test_a_single_tensor_and_a_single_family_are_told_as_such():
    gm, other = prepared(), torch.ones(3, requires_grad=True)
    base = torch.optim.SGD([*gm.parameters(), other], lr=0.1)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"also holds 1 tensor beside the parameters of gm"):
        fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, total_steps=4)
    text = r"cannot be reached.* \(1 family is left alone: '0.weight', which is unprunable\)"
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, text, lr=0.1, target_group_sparsity=0.9, unprunable=["0"])


@pytest.mark.parametrize(
    ("target", "share"),
    [({"target_group_sparsity": 0.25}, ", so that of the other 16 50% must go"), ({"target_params": 0.8}, "")],
)
def test_what_the_others_must_give_for_families_that_are_not_trained_is_told(target, share):
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    net[0].requires_grad_(False)
    gm = fx_oto.prepare(net, torch.randn(2, 4))
    told = (
        rf"16 of the 32 ZIGs are left alone, such as those of '0.weight', .* counts them{share}\. To prune them as well"
    )
    with pytest.warns(fx_oto.FxOtoWarning, match=told):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, total_steps=10, **target)
    with pytest.warns(fx_oto.FxOtoWarning, match=told):
        fx_oto.prune(gm, **target)
    for meant in ({"unprunable": "0"}, {"prune_frozen": True}):
        fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, total_steps=10, **target, **meant)
    net.requires_grad_(False)
    told = (
        r"left alone: '0.weight', for '0.weight' has requires_grad=False \(prune_frozen=True prunes it as well\); '2.we"
    )
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, told)


def test_a_base_that_holds_other_parameters_too_is_announced():
    gm, head = prepared(), nn.Linear(5, 2).double()
    base = torch.optim.SGD([*gm.parameters(), *head.parameters()], lr=0.1)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"also holds 2 tensors beside the parameters of gm") as warned:
        optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, start_step=1, end_step=4)
    assert warned[0].filename == __file__
    before = head.weight.clone()
    for image, _ in batches(5):
        optimizer.zero_grad()
        head(gm(image)).square().mean().backward()
        optimizer.step()
    assert not torch.equal(head.weight, before)
    assert optimizer.group_sparsity == 0.5


def test_models_that_cannot_be_pruned():
    gm = fx_oto.prepare(nn.Linear(3, 3), torch.randn(2, 3))
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"no axis of this model can be pruned")
    refuse(make_net(), torch.optim.SGD, fx_oto.MissingResultError, r"found Sequential")
    model = make_net()
    model.requires_grad_(False)
    gm = fx_oto.prepare(model, IMAGE)
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"cannot be reached.*2 families are left alone")


def test_a_model_that_was_changed_since():
    gm = prepared()
    gm.get_submodule("0").weight = nn.Parameter(torch.randn(10, 3, 3, 3).double())
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"'0.weight' is not what prepare found: .* shape \(10, 3, 3, 3\)")
    gm = prepared()
    del gm.get_submodule("1").bias
    gm.get_submodule("1").bias = None
    refuse(gm, torch.optim.SGD, fx_oto.SettingsError, r"'1.bias' is not what prepare found: it is gone")


def test_a_model_that_was_changed_during_training():
    gm = prepared()
    options = {"lr": 0.05, "target_group_sparsity": 0.5, "start_step": 2, "end_step": 6}
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, **options)
    train(gm, optimizer, 2)
    gm.get_submodule("3").weight = nn.Parameter(gm.get_submodule("3").weight.detach().clone())
    with pytest.raises(fx_oto.SettingsError, match=r"'3.weight' is not what prepare found: it is another tensor"):
        train(gm, optimizer, 1)


def unchanged_after(gm, optimizer, message):
    before = copy.deepcopy(gm.state_dict())
    with pytest.raises(fx_oto.TrainingError, match=message):
        optimizer.step()
    torch.testing.assert_close(gm.state_dict(), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("start", [0, 3])
def test_a_step_without_gradients(start):
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, start_step=start, end_step=5)
    unchanged_after(
        gm,
        optimizer,
        r"no parameter has a gradient: call backward\(\) before step\(\); is the model that was trained the",
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite(value):
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, start_step=1, end_step=5)
    image, label = next(batches(1))
    train(gm, optimizer, 1)
    optimizer.zero_grad()
    F.cross_entropy(gm(image), label).backward()
    gm.get_submodule("3").weight.grad[1, 2] = value
    unchanged_after(gm, optimizer, r"hold NaN or infinite values around step 1, .* lower the learning rate")


def test_gradients_of_something_else():
    gm, other = prepared(), nn.Parameter(torch.zeros(1))
    with pytest.warns(fx_oto.FxOtoWarning):
        optimizer = fx_oto.DHSPG(
            gm,
            torch.optim.SGD([*gm.parameters(), other], lr=0.1),
            target_group_sparsity=0.5,
            start_step=0,
            end_step=5,
        )
    other.grad = torch.ones(1)
    unchanged_after(
        gm, optimizer, r"no ZIG has a gradient at the start of pruning: is the prepared model being trained"
    )


def test_gradients_of_a_loss_that_is_at_its_minimum():
    gm = prepared().eval()
    teacher = copy.deepcopy(gm)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.5, start_step=0, end_step=5)
    image, _ = next(batches(1))
    F.mse_loss(gm(image), teacher(image).detach()).backward()
    unchanged_after(gm, optimizer, r"only compares it with a copy of itself is at its minimum, .* add another one")


def test_the_whole_job_in_one_call():
    model = make_net()
    small = fx_oto.compress(
        model,
        IMAGE,
        train=lambda gm, optimizer: train(gm, optimizer, 20),
        base=torch.optim.SGD,
        lr=0.05,
        target_group_sparsity=0.5,
        total_steps=20,
    )
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError("out of memory"), None])
def test_what_was_trained_in_one_call_is_not_lost(end):
    """Of a model that only the call holds: neither by what ends the training, nor by what cannot be cut."""
    trained = []

    def ends(gm, optimizer):
        train(gm, optimizer, 15)
        trained.append({name: weight.clone() for name, weight in gm.state_dict().items()})
        if end is not None:
            raise end
        torch._foreach_zero_([weight.detach() for weight in gm.parameters()])  # all of a layer, which cannot be cut

    target = {"lr": 0.05, "target_group_sparsity": 0.5, "total_steps": 20}
    with pytest.raises(BaseException, match="the attribute gm of this error") as caught:
        fx_oto.compress(make_net(), IMAGE, train=ends, base=torch.optim.SGD, **target)
    gm = caught.value.gm
    assert isinstance(caught.value, fx_oto.SlicingError if end is None else (KeyboardInterrupt, RuntimeError))
    if end is not None:
        assert all(map(torch.equal, gm.state_dict().values(), trained[0].values()))
        assert fx_oto.prune(gm, target_group_sparsity=0.5)
        assert fx_oto.compress(gm)


def test_help_shows_every_argument():
    """Those of all optimizers in the same order, then the optimizer's own, then those of the base."""
    shared = inspect.signature(fx_oto.HESSO).parameters
    shown = inspect.signature(fx_oto.DHSPG).parameters
    own = ["lam", "amplify", "hat", "epsilon", "stride"]
    assert list(shown) == [*list(shared)[:-1], *own, "base_kwargs"]
    assert {"target_group_sparsity", "target_macs", "total_steps", "round_to"} < shared.keys()
    assert shown["hat"].default == 10
    assert all(shown[name] == shared[name] for name in shared)


def test_a_training_that_ends_before_the_pruning_window_is_announced():
    gm = prepared()
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=100, periods=2)
    early = r"has taken 0 steps, but its pruning window ends at step 40 \(total_steps=100\), so its target"
    with pytest.raises(fx_oto.NothingToCompressError, match=r"none of the \d+ ZIGs is zero.*: the optimizer " + early):
        fx_oto.compress(gm)
    train(gm, optimizer, 25)
    zero = optimizer.group_sparsity
    assert 0 < zero < 0.5
    warned = (
        r"the optimizer has taken 25 steps, .* ends at step 40 \(total_steps=100\), so its target \(group sparsity "
        rf"0\.5000\) is not reached: is total_steps the number of .* Now the group sparsity is {zero:.4f}"
    )
    with pytest.warns(fx_oto.FxOtoWarning, match=warned):
        fx_oto.compress(gm)
    resumed = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=100, periods=2)
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.warns(fx_oto.FxOtoWarning, match=warned):
        fx_oto.compress(gm)
    train(gm, resumed, 20)
    assert resumed.group_sparsity == 0.5
    fx_oto.compress(gm)


def test_a_target_that_is_reached_early_is_no_reason_to_warn():
    gm = prepared()
    optimizer = fx_oto.DHSPG(
        gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, start_step=2, end_step=99, lam=9.0
    )
    with pytest.raises(
        fx_oto.NothingToCompressError, match=r"ends at step 99, .* call optimizer.step\(\) that often\?"
    ):
        fx_oto.compress(gm)
    train(gm, optimizer, 20)
    assert optimizer.group_sparsity == 0.5
    fx_oto.compress(gm)


class Rolled(nn.Module):
    """Each channel is added to the next."""

    def __init__(self):
        super().__init__()
        self.f, self.o = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.f(x).relu()
        return self.o(x + x.roll(1, 1))


def test_no_advice_where_every_family_has_a_single_zig():
    gm = fx_oto.prepare(Rolled(), torch.randn(2, 4))
    assert [len(family) for family in fx_oto.partition(gm).zero_(0.5).families] == [1]
    with pytest.raises(
        fx_oto.NothingToCompressError, match=r"has a single ZIG, and one ZIG of each .*\.explain\(\)\) shows"
    ):
        fx_oto.compress(gm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_sparsity": 0.7},
            r"^'target_sparsity' is neither an argument of DHSPG nor of SGD, its base: did you mean 'target_\w+'\?$",
        ),
        ({"round_too": 8}, r"'round_too' is neither .*: did you mean 'round_to'\?$"),
        ({"momentun": 0.9}, r"'momentun' is neither .*: did you mean 'momentum'\?$"),
        ({"xyzzy": 1}, r"'xyzzy' is neither an argument of DHSPG nor of SGD, its base$"),
        ({"base": "SGD"}, r"base must be a class of optimizers or an optimizer, found 'SGD': pass torch.optim.SGD$"),
        ({"base": "AdamW"}, r"found 'AdamW': pass torch.optim.AdamW$"),
        ({"min_kept": ["0"]}, r"min_kept must be a number or a dict \{pattern: number\}, found \['0'\]"),
        (
            {"min_kept": {"0": 1.0}, "target_group_sparsity": 0.1},
            r"found 1.0: what is to be kept whole is named in unpr",
        ),
    ],
)
def test_slips_of_the_pen(options, message):
    gm = prepared()
    with pytest.raises(fx_oto.SettingsError, match=message):
        fx_oto.DHSPG(
            gm, **{"base": torch.optim.SGD, "lr": 0.1, "target_group_sparsity": 0.5, "total_steps": 20, **options}
        )


def test_a_loss_that_is_none():
    optimizer = fx_oto.DHSPG(prepared(), lr=0.1, target_group_sparsity=0.5, total_steps=20)
    for loss, found in (("a", "'a'"), (None, "None"), (torch.zeros(3), r"a tensor of shape \(3,\)")):
        with pytest.raises(fx_oto.InputError, match=rf"must be a number or a tensor of one element, found {found}"):
            optimizer.note_loss(loss)
    optimizer.note_loss(torch.zeros(1, 1))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_an_optimizer_of_matrices_trains_what_has_no_others():
    refuse(prepared(), torch.optim.Muon, fx_oto.SettingsError, r"Muon cannot be built over .*: Muon only supports 2D")
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False))
    gm = fx_oto.prepare(net, torch.randn(2, 8))
    optimizer = fx_oto.DHSPG(gm, torch.optim.Muon, lr=0.01, target_group_sparsity=0.5, total_steps=20)
    for _ in range(20):
        optimizer.zero_grad()
        gm(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    assert optimizer.group_sparsity == 0.5


def test_an_optimizer_of_sparse_gradients_trains_what_has_no_others():
    def trained(sparse):
        net = nn.Sequential(nn.Embedding(30, 8, sparse=sparse), nn.Linear(8, 4))
        gm = fx_oto.prepare(net, torch.randint(30, (2, 5)))
        base = torch.optim.SparseAdam([net[0].weight], lr=0.01)
        net[1].requires_grad_(False)
        optimizer = fx_oto.DHSPG(gm, base, target_group_sparsity=0.5, total_steps=20, prune_frozen=True)
        for _ in range(20):
            optimizer.zero_grad()
            gm(torch.randint(30, (2, 5))).square().mean().backward()
            optimizer.step()
        return optimizer.group_sparsity

    assert trained(sparse=True) == 0.5
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        trained(sparse=False)


def swap_last(net):
    """Put another layer in the place of the last one."""
    position, last = [(name, child) for name, child in net.named_children() if isinstance(child, nn.Linear)][-1]
    setattr(net, position, copy.deepcopy(last))
    return position


def test_a_layer_that_was_replaced_after_prepare_is_named():
    net = make_net()
    gm = fx_oto.prepare(net, IMAGE)
    position = swap_last(net)
    with pytest.raises(
        fx_oto.InputError,
        match=rf"2 parameters of the model, such as '{position}\.(weight|bias)', are not .*layer was replaced",
    ):
        fx_oto.DHSPG(gm, lr=0.05, target_group_sparsity=0.3, total_steps=9)


@pytest.mark.parametrize("start", [0, 3])
def test_a_layer_that_was_replaced_in_the_training_is_named(start):
    net = make_net()
    gm = fx_oto.prepare(net, IMAGE)
    optimizer = fx_oto.DHSPG(gm, lr=0.05, target_group_sparsity=0.3, start_step=start, end_step=9)
    position = swap_last(net)
    train(net, optimizer, start)
    with pytest.warns(
        fx_oto.FxOtoWarning,
        match=rf"had no gradient before the pruning window started: '{position}\.weight', .*replaced",
    ) as found:
        train(net, optimizer, 9 - start)
    assert len(found) == 1
    with pytest.raises(fx_oto.InputError, match=rf"such as '{position}\.(weight|bias)', are not what prepare found"):
        fx_oto.compress(gm)


def test_a_layer_that_rests_is_not_named():
    net = make_net()
    [child for child in net.children() if isinstance(child, nn.Linear)][-1].requires_grad_(False)
    optimizer = fx_oto.DHSPG(fx_oto.prepare(net, IMAGE), lr=0.05, target_group_sparsity=0.3, start_step=2, end_step=9)
    train(net, optimizer, 9)
    assert optimizer.group_sparsity > 0


def test_the_repr_tells_target_window_and_what_is_reached():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    gm = fx_oto.prepare(net, torch.randn(2, 4))
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-3, target_macs=0.5, total_steps=100)
    fx_oto.partition(gm).zero_(0.5)
    head = repr(optimizer).splitlines()[:5]
    assert head == [
        "DHSPG over AdamW (",
        "    target: macs left 0.5000",
        "    window: steps 10 to 40, 1 period",
        "    now: step 0, group sparsity 0.5000, params left 0.5172, macs left 0.5000",
        "Parameter Group 0",
    ]
