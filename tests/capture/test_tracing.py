"""Tracing keeps both modes, shares parameters, and leaves the model as it was."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import deque
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support import networks
from support.exactness import compress_half
from torch import nn

import fx_oto
from fx_oto.core.fx_utils import source_line
from fx_oto.nn.modes import TrainingFlag


class Modal(nn.Module):
    """Asks for its mode in every way that models do."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.aux = nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        x = F.dropout(x, 0.5, training=self.training)
        if self.training:
            x = x + 0.1 * torch.rand_like(x)
        logits = self.head(x.mean((2, 3)))
        if self.training:
            return logits, self.aux(x)
        return logits


@pytest.mark.parametrize("training", [True, False])
def test_graph_behaves_as_the_model_in_both_modes(training):
    model, image = Modal(), torch.randn(4, 3, 6, 6)
    gm = fx_oto.trace(model, image)
    twin = copy.deepcopy(model).train(training)
    gm.train(training)
    torch.manual_seed(0)
    expected = twin(image)
    torch.manual_seed(0)
    found = gm(image)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_auxiliary_output_is_not_pruned_and_the_rest_stays_exact():
    model, image = Modal().double(), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    gm = fx_oto.prepare(model, image)
    assert fx_oto.partition(gm).num_zigs == 8
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert small.get_submodule("aux").weight.shape == (5, 4, 1, 1)
    logits, aux = small.train()(image)
    assert logits.shape == (4, 5)
    assert aux.shape == (4, 5, 6, 6)


def test_parameters_are_the_models_own_and_the_model_is_unchanged():
    model = Modal().train()
    model.bn.eval()
    before, attributes = copy.deepcopy(model.state_dict()), set(vars(model)) | set(model._modules)
    gm = fx_oto.trace(model, torch.randn(2, 3, 6, 6))
    mine, theirs = dict(gm.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in theirs)
    assert set(vars(model)) | set(model._modules) == attributes
    assert model.training
    assert not model.bn.training
    assert not gm.get_submodule("bn").training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_values_are_recorded_and_the_batch_stays_dynamic():
    gm = fx_oto.trace(networks.resnet18(), torch.randn(2, 3, 32, 32))
    assert all("val" in node.meta for node in gm.graph.nodes)
    assert next(n for n in gm.graph.nodes if n.name == "head").meta["val"].shape == (2, 10)
    assert gm(torch.randn(5, 3, 32, 32)).shape == (5, 10)


def test_nodes_know_the_users_source_line():
    gm = fx_oto.trace(Modal(), torch.randn(2, 3, 6, 6))
    lines = [
        source_line(node)
        for node in gm.graph.nodes
        if node.op == "call_module" and not isinstance(gm.get_submodule(node.target), TrainingFlag)
    ]
    assert all(line.rpartition(":")[0] == __file__ for line in lines)


def test_a_traced_graph_module_is_taken_as_it_is_and_not_changed():
    own = torch.fx.symbolic_trace(networks.DemoNet().eval())
    code, nodes = own.code, [dict(node.meta) for node in own.graph.nodes]
    gm = fx_oto.prepare(own, torch.randn(2, 3, 32, 32))
    assert fx_oto.partition(gm).num_zigs == 576
    assert own.code == code
    assert [dict(node.meta) for node in own.graph.nodes] == nodes
    assert not own.meta


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return self.conv(x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)).mean((2, 3))


def test_tensors_made_in_forward_become_buffers_of_the_graph_only():
    model = Constant()
    gm = fx_oto.trace(model, torch.randn(2, 3, 6, 6))
    assert [name for name, _ in gm.named_buffers()] == []
    assert not hasattr(model, "_tensor_constant0")


def test_defaults_that_are_left_out_are_fixed():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, mask=None, scale=2.0):
            x = self.linear(x) * scale
            return x if mask is None else x * mask

    model, x = Masked(), torch.randn(2, 4)
    torch.testing.assert_close(fx_oto.trace(model, x)(x), model(x))
    both = fx_oto.trace(model, {"x": x, "mask": x})
    torch.testing.assert_close(both(x, x), model(x, x))


def test_a_dict_input_is_traced_through():
    class Batch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, batch):
            return {"logits": self.linear(batch["image"]) + batch["shift"]}

    model, batch = Batch(), {"image": torch.randn(2, 4), "shift": torch.randn(2, 1)}
    gm = fx_oto.trace(model, (batch,))
    torch.testing.assert_close(gm(batch), model(batch))


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x)
        return x


def test_data_dependent_control_flow_is_refused_with_line_and_remedy():
    model = Flow()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(fx_oto.TraceError, match=r"Flow cannot be captured at .*test_tracing\.py:\d+") as caught:
        fx_oto.trace(model, torch.randn(2, 4))
    assert "if x.sum() > 0" in str(caught.value)
    assert "torch.where, or move this code into a submodule" in str(caught.value)
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


class Dice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x)
        return x if self.training and torch.rand(1).item() < 0.5 else self.b(x)


def _by_dual_numbers(f, x):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(
            f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        ).tangent


def _by_autograd(f, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x, create_graph=True)[0]


DERIVATIVES = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x).sum((0, 1)),
    "dual numbers": _by_dual_numbers,
    "autograd": _by_autograd,
}


@pytest.mark.parametrize("how", DERIVATIVES)
def test_derivatives_inside_of_forward_are_refused_with_another_remedy(how):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

        def height(self, x):
            return self.last(torch.tanh(self.first(x)))

        def forward(self, x):
            return DERIVATIVES[how](self.height, x)

    with pytest.raises(fx_oto.TraceError, match=r"What to do: move this code into a submodule") as caught:
        fx_oto.prepare(Slope(), torch.randn(2, 4))
    assert "torch.where" not in str(caught.value)


def test_a_branch_taken_at_random_is_left_out_and_the_dice_are_put_back():
    model, x = Dice(), torch.randn(2, 4)
    before = torch.random.get_rng_state()
    with pytest.warns(
        fx_oto.FxOtoWarning, match="depends on the values in a tensor.* in evaluation mode, in which this"
    ):
        gm = fx_oto.trace(model, x)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(gm(x), model.eval()(x))


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.a(x) + torch.rand(1) * nn.Softplus()(x))


def test_random_numbers_are_drawn_by_the_graph():
    model, x = Noise(), torch.randn(2, 4)
    gm = fx_oto.trace(model, x)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(gm(x), expected)
    assert not torch.equal(gm(x), gm(x))


class OneSided(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        x = self.a(x)
        if self.training:
            self.seen.mul_(0.9).add_(x.mean(0))
        return x - self.seen


@pytest.mark.parametrize("training", [True, False])
def test_a_tensor_that_one_mode_writes_is_written_in_that_mode(training):
    model, twin, x = OneSided(), OneSided(), torch.randn(2, 4)
    twin.load_state_dict(model.state_dict())
    gm = fx_oto.trace(model, x).train(training)
    assert not model.seen.any()
    torch.testing.assert_close(gm(x), twin.train(training)(x))
    torch.testing.assert_close(model.seen, twin.seen)
    assert model.seen.any() == training


class WritingFunction(OneSided):
    def forward(self, x):
        x = self.a(x)
        if self.training:
            torch.relu_(x)
        return x


def test_a_write_that_cannot_be_switched_off_is_refused():
    with pytest.raises(fx_oto.TraceError, match=r"test_tracing\.py:\d+: code that runs in one training mode only"):
        fx_oto.trace(WritingFunction(), torch.randn(2, 4))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls.add_(1)
        return self.a(x)


def test_what_the_code_does_to_buffers_is_in_the_graph():
    model = Counter()
    gm = fx_oto.trace(model, torch.randn(2, 4))
    assert int(model.calls) == 0
    gm(torch.randn(2, 4))
    assert int(model.calls) == 1


def test_a_prepared_module_survives_pickling_and_can_be_prepared_again():
    gm = fx_oto.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(pickle.loads(pickle.dumps(gm))(x), gm(x))
    again = fx_oto.prepare(gm, x)
    assert fx_oto.partition(again).num_zigs == 8
    assert again.code.count("zig_masks(") == gm.code.count("zig_masks(") > 0


class NormByMode(nn.Module):
    """Each mode has a norm of its own; training also bounds a weight through an alias."""

    def __init__(self, both):
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 16), nn.Linear(16, 4), both
        self.first, self.second = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        nn.init.normal_(self.second.running_mean)

    def forward(self, x):
        if self.training:
            self.a.weight.data.clamp_(-0.2, 0.2)
        x = self.a(x)
        if self.both and self.training:
            x = self.first(x)
        if not self.training:
            x = self.second(x)
        return self.b(F.relu(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_a_norm_of_one_mode_learns_in_training_only(training, both):
    model, x = NormByMode(both), torch.randn(4, 6)
    gm = fx_oto.trace(model, x)
    twin = copy.deepcopy(model).train(training)
    torch.testing.assert_close(gm.train(training)(x), twin(x))
    torch.testing.assert_close(model.state_dict()["second.running_mean"], twin.second.running_mean)
    torch.testing.assert_close(model.first.running_mean, twin.first.running_mean)
    torch.testing.assert_close(model.a.weight, twin.a.weight)
    assert compress_half(NormByMode(both), x).zigs == 16


class Keeping(nn.Module):
    """Keeps what it has seen in all kinds of places, and counts its calls in evaluation."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.nested, self.last, self.kinds = {"a": [{}]}, deque(maxlen=2), set()
        self.store = SimpleNamespace(value=None)
        self.register_buffer("calls", torch.zeros(4))
        self.a.register_forward_hook(self.note)

    def note(self, module, inputs, output):
        self.store.seen = output

    def forward(self, x):
        self.calls += 1
        x = F.relu(self.a(x))
        self.nested["a"][0]["x"] = self.store.value = x
        self.last.append(x)
        self.kinds.add(type(self))
        return self.b(x) * self.calls


def test_what_a_model_keeps_is_as_it_was_after_each_stage():
    model, x = Keeping().eval(), torch.randn(3, 6)
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert model.nested == {"a": [{}]}
    assert not model.last
    assert not model.kinds
    assert vars(model.store) == {"value": None}
    assert model.calls.tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(small(x), model(x))


@pytest.mark.parametrize("convert", [torch.jit.script, lambda model: torch.jit.trace(model, torch.randn(2, 6))])
def test_a_scripted_model_is_refused_clearly_and_a_scripted_part_stays_exact(convert):
    with pytest.raises(fx_oto.TraceError, match="scripted or jit-traced module cannot be captured"):
        fx_oto.trace(convert(nn.Linear(6, 16)), torch.randn(2, 6))
    model = nn.Sequential(convert(nn.Linear(6, 16)), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    gm = fx_oto.prepare(model, torch.randn(2, 6))
    assert {family.name: len(family) for family in fx_oto.partition(gm).families}["1.weight"] == 8
    fx_oto.partition(gm).zero_(0.5)
    x = torch.randn(5, 6)
    small = fx_oto.compress(gm)
    for compact in (small, fx_oto.write_back(small, model)):
        torch.testing.assert_close(compact(x), model(x))
        assert all(parameter.is_leaf and parameter.requires_grad for parameter in compact.parameters())


class Averaging(nn.Module):
    """Assigns to a buffer in training and to another in both modes, and has read them before."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("last", torch.ones(4), persistent=False)
        self.seen = None

    def forward(self, x):
        self.seen = x = self.b(F.relu(self.a(x)))
        old, current = self.mean, x.detach().mean(0)
        if self.training:
            self.mean = 0.9 * self.mean + current
        x = x * self.last.cos() + self.mean * old
        self.last = current
        return x


@pytest.mark.parametrize("training", [True, False])
def test_what_is_assigned_is_written_for_the_next_call(training):
    model = Averaging().train(training)
    gm, twin = fx_oto.trace(model, torch.randn(2, 6)), copy.deepcopy(model)
    assert model.mean.tolist() == [0, 0, 0, 0]
    for _ in range(3):
        x = torch.randn(5, 6)
        found, expected = gm(x), twin(x)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
    torch.testing.assert_close(gm.mean, twin.mean)
    torch.testing.assert_close(model.mean, twin.mean)
    torch.testing.assert_close(model.a.weight.grad, twin.a.weight.grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fx_oto.prepare(model, torch.randn(2, 6))
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm).get_parameter("a.weight").shape == (8, 6)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.calls, self.last = nn.Linear(6, 4), 0, torch.zeros(4)

    def forward(self, x):
        self.calls += 1
        x = self.a(x) / self.calls
        self.last = self.last + x.mean(0)
        return x + self.last


def test_numbers_and_plain_tensors_that_each_call_changes_are_reported():
    model = Counting()
    with pytest.warns(fx_oto.FxOtoWarning) as found:
        fx_oto.trace(model, torch.randn(2, 6))
    said = " ".join(str(warning.message) for warning in found)
    assert "sets calls from 0 to 1 when it is called, which its graph does not" in said
    assert "sets last from one tensor to another" in said
    assert {warning.filename for warning in found} == {__file__}
    assert model.calls == 0
