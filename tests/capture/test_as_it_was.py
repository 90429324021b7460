"""After prepare the model, and all around it, is bit for bit as before: after success, failure and interruption."""

from __future__ import annotations

import copy
import random
from collections import deque
from contextlib import suppress
from functools import lru_cache, wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.exactness import randomise
from support.kinds import holds
from torch import Tensor, nn

import fx_oto


@lru_cache
def factor_of(length):
    return 1.0 + length / 7


@lru_cache
def shape_of(shape):
    return [*shape[:-1], -1]


class Everything(nn.Module):
    """Keeps what it sees wherever code can keep something; may fail in the middle."""

    def __init__(self, fails=None, momentum=0.1):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=momentum), nn.Linear(8, 8)
        self.drop, self.c, self.spectral = nn.Dropout(0.3), nn.Linear(8, 2), nn.utils.spectral_norm(nn.Linear(8, 8))
        self.instance = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("unset", None)
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.fails, self.seen, self.steps, self.last = fails, None, 0, deque(maxlen=2)
        self.nested, self.store, self.sizes = {"x": [{}]}, SimpleNamespace(value=None), set()
        self.plain, self.cache, self.handles = torch.zeros(2), {}, []
        self.a.register_forward_hook(self.note)
        self.b.register_forward_pre_hook(lambda module, args: None)
        self.register_full_backward_hook(lambda module, grads, outs: None)
        self.c.weight.register_hook(lambda grad: grad)

    def note(self, module, args, output):
        self.store.value = output

    def forward(self, x):
        self.steps += 1
        self.calls += 1
        h = self.a(x) * factor_of(x.shape[1])
        self.seen, self.nested["x"][0]["h"] = x.shape, h
        self.last.append(h)
        self.sizes.add(x.shape[0])
        self.cache[tuple(x.shape)] = x.size(1)
        self.bn.extra = x.size(0)
        h = self.bn(h.flatten(0, 1)).reshape(shape_of(tuple(h.shape)))
        if self.fails is not None:
            self.plain.add_(1)
            self.handles.append(self.b.register_forward_hook(lambda module, args, output: None))
            raise self.fails
        h = self.drop(self.spectral(torch.relu(self.b(h))))
        h = self.instance(h.mT).mT
        out = self.c(h).mean(1)
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * out.detach().mean(0))
        self.hidden = self.hidden * 1
        return out + torch.rand(1, dtype=out.dtype) + self.mean


def everything(**options):
    model = randomise(Everything(**options)).train()
    model.bn.eval()
    model.b.weight.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    return model


def dice():
    return torch.get_rng_state(), random.getstate(), repr(np.random.get_state())


def switches():
    return (
        *(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        *(torch.is_autocast_enabled("cpu"), torch.backends.mha.get_fastpath_enabled(), torch.get_num_threads()),
        *(torch.backends.cuda.flash_sdp_enabled(), torch.are_deterministic_algorithms_enabled()),
        *(nn.Module.__call__, nn.Module.__getattr__, nn.Module.__setattr__, nn.Module.register_forward_hook),
        *(torch.rand, torch.randperm, torch.zeros, torch.Tensor.add, torch.nn.functional.relu, isinstance, len, range),
        *(torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
    )


class Before:
    """What there was: by identity, by version and by value."""

    def __init__(self, model):
        self.model = model
        self.tensors = {
            **{f"parameter {name}": p for name, p in model.named_parameters()},
            **{f"buffer {name}": b for name, b in model.named_buffers()},
            **{f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None},
            "plain": model.plain if isinstance(getattr(model, "plain", None), Tensor) else torch.zeros(0),
        }
        self.values = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.versions = {name: tensor._version for name, tensor in self.tensors.items()}
        self.modules = [(name, module, dict(vars(module))) for name, module in model.named_modules()]
        self.tables = [self.table(module) for _, module, _ in self.modules]
        self.plain = self.kept()
        self.dice, self.switches = dice(), switches()

    @staticmethod
    def table(module):
        """Contents of what nn.Module keeps in dictionaries: parameters, buffers, submodules and hooks."""
        return {name: dict(value) for name, value in vars(module).items() if isinstance(value, dict) and name[0] == "_"}

    def kept(self):
        """What the model's own containers hold."""
        names = ("nested", "store", "sizes", "last", "cache", "handles", "seen", "steps")
        return {name: copy.deepcopy(vars(self.model)[name]) for name in names if name in vars(self.model)}

    def hold(self):
        model = self.model
        found = dict(model.named_parameters()), dict(model.named_buffers())
        for name, tensor in self.tensors.items():
            kind, _, own = name.partition(" ")
            if kind in ("parameter", "buffer"):
                assert found[kind == "buffer"][own] is tensor, name
            assert torch.equal(tensor, self.values[name]), name
            assert tensor._version == self.versions[name], f"the version of {name}"
        for name, parameter in model.named_parameters():
            assert parameter.grad is self.tensors.get(f"gradient of {name}"), name
        assert [(name, module) for name, module in model.named_modules()] == [(n, m) for n, m, _ in self.modules]
        for (name, module, attributes), table in zip(self.modules, self.tables, strict=True):
            assert list(vars(module)) == list(attributes), name
            assert all(vars(module)[key] is value for key, value in attributes.items() if type(value) is not int), name
            assert vars(module)["training"] is attributes["training"], name
            assert self.table(module) == table, name
        assert repr(self.kept()) == repr(self.plain)
        assert all(type(size) is int for size in (*getattr(model, "sizes", ()), getattr(model, "steps", 0)))
        torch.testing.assert_close(dice()[0], self.dice[0], rtol=0, atol=0)
        assert dice()[1:] == self.dice[1:]
        assert switches() == self.switches


EXAMPLE = torch.randn(3, 5, 4)
KINDS = "ignore:.*:fx_oto.FxOtoWarning"


@pytest.mark.filterwarnings(KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stage", ["trace", "prepare", "compress"])
def test_after_success(stage, training):
    model = everything().train(training)
    if stage == "compress":
        gm = fx_oto.prepare(model, EXAMPLE)
        fx_oto.partition(gm).zero_(0.5)
    before = Before(model)
    if stage == "compress":
        fx_oto.compress(gm)
    else:
        getattr(fx_oto, stage)(model, EXAMPLE)
    before.hold()


@pytest.mark.filterwarnings(KINDS)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), RuntimeError("no"), MemoryError(), GeneratorExit()]
)
def test_after_an_error_in_the_middle_of_forward(error):
    model = everything(fails=error)
    before = Before(model)
    expected = type(error) if not isinstance(error, Exception) else (fx_oto.FxOtoError, type(error))
    with pytest.raises(expected):
        fx_oto.prepare(model, EXAMPLE)
    before.hold()
    model.fails = None
    assert model(EXAMPLE).shape == (3, 2)


@pytest.mark.filterwarnings(KINDS)
@pytest.mark.parametrize("call", range(1, 12))
def test_after_an_interruption_at_any_call(call):
    """The user presses Ctrl-C while a layer runs, in whichever of the runs that prepare makes."""
    model, calls = everything(), []

    class Interrupting(nn.Tanh):
        def forward(self, x):
            calls.append(1)
            if len(calls) == call:
                raise KeyboardInterrupt
            return super().forward(x)

    model.b = nn.Sequential(model.b, Interrupting()).train()
    before = Before(model)
    with suppress(KeyboardInterrupt):
        fx_oto.prepare(model, EXAMPLE)
    before.hold()
    calls += [1] * call
    assert fx_oto.partition(fx_oto.prepare(model, EXAMPLE)) is not None
    assert model(EXAMPLE).shape == (3, 2)


@pytest.mark.filterwarnings(KINDS)
def test_refusals_leave_it_as_well():
    model, wrong = everything(), torch.randn(3, 5, 7)
    before = Before(model)
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever the model itself raises, or an error of ours
        fx_oto.prepare(model, wrong)
    before.hold()


@pytest.mark.filterwarnings(KINDS)
def test_the_eager_model_runs_the_same_afterwards():
    model, twin = everything(), everything()
    factor_of.cache_clear(), shape_of.cache_clear()
    fx_oto.prepare(model, EXAMPLE)
    for training in (True, False):
        for x in (EXAMPLE, torch.randn(2, 9, 4), EXAMPLE):
            found = []
            for one in (model, twin):
                torch.manual_seed(0)
                random.seed(0)
                found.append(one.train(training)(x))
            torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    assert model.cache == twin.cache


@pytest.mark.filterwarnings(KINDS)
def test_caches_of_functions_hold_no_leftover():
    """A number that remembers a graph is equal to a plain one: as a key it would be found again."""
    factor_of.cache_clear(), shape_of.cache_clear()
    fx_oto.prepare(everything(), EXAMPLE)
    assert type(factor_of(5)) is float
    assert all(type(size) is int for size in shape_of((3, 5, 8)))
    x = torch.randn(3, 5, 8)
    assert type(x.reshape(shape_of((3, 5, 8))) * factor_of(5)) is Tensor


def cached(method):
    """As a library's decorator does, out of sight."""
    kept = lru_cache(method)

    @wraps(method)
    def call(*args):
        return kept(*args)

    return call


class Positions(nn.Module):
    """Its table of positions is made once for each length, whatever the mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    @cached
    def table(self, length):
        return torch.linspace(0, 1, length, dtype=torch.float64)[:, None]

    def forward(self, x):
        h = torch.relu(self.a(x)) * self.table(x.shape[1])
        return self.b(h * 2 if self.training else h)


@pytest.mark.parametrize("ran", [False, True])
def test_what_a_cached_method_keeps_is_not_taken_for_a_constant(ran):
    model, x = Positions().double(), torch.randn(3, 5, 4, dtype=torch.float64)
    if ran:
        model(x)
    holds(model, x, [torch.randn(2, 9, 4)], any_size=False)
    assert type(model.table(5)) is Tensor


def test_whatever_the_default_device_is():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        gm = fx_oto.prepare(net, torch.randn(2, 3, 8, 8))
    assert fx_oto.partition(gm).num_zigs == 8


class Rolling(nn.Module):
    """Draws numbers of every kind, which a graph cannot."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        noise = torch.randn(8) * torch.rand(1) + random.random() + np.random.rand() + torch.randperm(8)
        return self.b(self.a(x) + noise.to(x.dtype))


@pytest.mark.filterwarnings(KINDS)
def test_dice_that_code_throws_are_put_back():
    model = Rolling()
    before = Before(model)
    with suppress(fx_oto.FxOtoError):
        fx_oto.prepare(model, EXAMPLE)
    before.hold()


class Counted(nn.Module):
    """Asks for a shape after the norm."""

    def __init__(self, norm, momentum):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 1), norm(8, momentum=momentum), nn.Linear(8 * 16, 4)

    def forward(self, x):
        y = self.bn(self.conv(x))
        batch, _, _, _ = y.shape
        return self.fc(y.reshape(batch, -1))


def instance_norm(width, momentum):
    return nn.InstanceNorm2d(width, momentum=momentum, track_running_stats=True, affine=True)


NORMS = {"batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm, "instance": instance_norm}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("norm", NORMS)
def test_no_batch_is_counted(norm, momentum, training):
    if norm == "instance" and momentum is None:
        pytest.skip("torch's instance norm needs a momentum")
    if norm == "sync" and training:
        pytest.skip("trains on a GPU only")
    model, x = Counted(NORMS[norm], momentum).train(training), torch.randn(2, 3, 4, 4) + 5
    fresh = copy.deepcopy(model)
    before = Before(model)
    fx_oto.prepare(model, x)
    before.hold()
    model.train(norm != "sync")(x), fresh.train(norm != "sync")(x)
    torch.testing.assert_close(model.state_dict(), fresh.state_dict(), rtol=0, atol=0)


def test_gradients_of_the_example_inputs_and_their_flags():
    x = torch.randn(3, 4, requires_grad=True)
    x.grad = torch.ones_like(x)
    gradient, version, value = x.grad, x._version, x.detach().clone()
    fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    assert x.grad is gradient
    assert bool((gradient == 1).all())
    assert x.requires_grad
    assert x._version == version
    assert torch.equal(x.detach(), value)


def test_inside_of_autocast_the_model_is_captured_as_it_is():
    """Types of half precision are those of the training's context, not of the model."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.autocast("cpu", torch.bfloat16):
        gm = fx_oto.prepare(model, torch.randn(2, 4))
        found = gm(torch.randn(2, 4))
    assert found.dtype == torch.bfloat16
    assert {node.meta["val"].dtype for node in gm.graph.nodes if node.op == "call_module"} == {torch.float32}
    assert gm(torch.randn(2, 4)).dtype == torch.float32


class Momentum(nn.Module):
    """Two encoders, of which one follows the other: as MoCo and BYOL do, or ActNorm where it begins."""

    def __init__(self, follow, modes, divides=False):
        super().__init__()
        self.query = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.key = copy.deepcopy(self.query)
        for parameter in self.key.parameters():
            parameter.requires_grad_(False).mul_(1.5)
        self.register_buffer("began", torch.tensor(0))
        self.follow, self.modes, self.divides = follow, modes, divides

    def forward(self, x):
        if self.divides:
            assert 8 % x.shape[0] == 0
        with torch.no_grad():
            if self.training in self.modes:
                self.follow(self)
            target = self.key(x)
        return self.query(x) - target

    def pairs(self):
        return zip(self.query.parameters(), self.key.parameters(), strict=True)


def sets_data(model):
    for query, key in model.pairs():
        key.data = key.data * 0.9 + query.data * 0.1


def copies_into_data(model):
    for query, key in model.pairs():
        key.data.copy_(key.data * 0.9 + query.data * 0.1)


def changes_in_place(model):
    for query, key in model.pairs():
        key.mul_(0.9).add_(query, alpha=0.1)


def changes_a_part(model):
    for query, key in model.pairs():
        key[1:].lerp_(query[1:], 0.1)


def writes_out(model):
    for query, key in model.pairs():
        torch.lerp(key, query, 0.1, out=key)
        torch.mul(torch.add(key, query), 0.5, out=key.data)


def begins(model):
    if model.began.item() == 0:
        for query, key in model.pairs():
            key.data.copy_(query.data)
        model.began.fill_(1)


def same(found, expected):
    return found.keys() <= expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings("ignore:code decides by 'began':fx_oto.FxOtoWarning")
@pytest.mark.parametrize("follow", [sets_data, copies_into_data, changes_in_place, changes_a_part, begins])
@pytest.mark.parametrize("modes", [(True,), (True, False)], ids=["training", "both"])
@pytest.mark.parametrize("divides", [False, True])
def test_parameters_that_forward_writes(follow, modes, divides):
    torch.manual_seed(0)
    model, x = Momentum(follow, modes, divides).double(), torch.randn(4, 6, dtype=torch.float64)
    before, versions = copy.deepcopy(model.state_dict()), [one._version for one in model.parameters()]
    places = [one.data_ptr() for one in model.parameters()]
    gm = fx_oto.prepare(model, x)
    assert same(model.state_dict(), before)
    assert [one._version for one in model.parameters()] == versions
    assert [one.data_ptr() for one in model.parameters()] == places
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(gm)  # whose parameters nobody has seen
    small, of_other = fx_oto.compress(gm), fx_oto.compress(other)
    assert same(model.state_dict(), before)
    assert same({name: one for name, one in other.state_dict().items() if name in before}, before)
    assert same(small.state_dict(), of_other.state_dict())
    if follow is not begins:  # which a second run of the graph would refuse
        fx_oto.latency([gm, small], x, rounds=1)
    fx_oto.cost(small, x)
    assert same(model.state_dict(), before)


def test_parameters_that_forward_writes_by_out():
    torch.manual_seed(0)
    model, x = Momentum(writes_out, (True, False)).double(), torch.randn(4, 6, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    gm = fx_oto.prepare(model, x)
    assert same(model.state_dict(), before)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small, twin = fx_oto.compress(gm), copy.deepcopy(model)
    for _ in range(3):  # each call changes what the next one computes with
        torch.testing.assert_close(small(x), twin(x))
