"""What plain symbolic tracing refuses: questions about shapes, wrapped helpers, export, opaque leaves."""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto


def capture(gm):
    return fx_oto.Context.of(gm).capture


class ShapeFlow(nn.Module):
    """Control flow over shapes, iteration over them, variable arguments, factories and questions about types."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.1)
        self.second, self.third = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x, *others, **named):
        assert isinstance(x, torch.Tensor)
        x = self.drop(self.first(x))
        if x.shape[1] == 16 and x.ndim == 2:
            x = self.norm(F.relu(x))
        for other in others:
            x = x * other.mean(1, keepdim=True)
        batch, *sizes = x.shape
        x = x * torch.ones(batch, 1, dtype=x.dtype, device=x.device) * len(others)
        x = x / sum(sizes)
        return {"logits": self.third(F.relu(self.second(x))) * named["scale"], "batch": x.size(0)}


def flow_inputs(batch):
    return (torch.randn(batch, 6), torch.randn(batch, 3), torch.randn(batch, 2)), {"scale": torch.randn(batch, 1)}


@pytest.mark.parametrize("training", [True, False])
def test_questions_about_shapes_are_answered_and_the_batch_stays_dynamic(training):
    model = ShapeFlow().train(training)
    gm = fx_oto.trace(model, flow_inputs(4))
    assert capture(gm).front_end == "fx_oto"
    assert not capture(gm).opaque
    args, kwargs = flow_inputs(7)
    torch.manual_seed(0)
    expected = model(*args, **kwargs)
    torch.manual_seed(0)
    torch.testing.assert_close(gm(*args, **kwargs), expected, rtol=0, atol=0)


def test_a_network_that_asks_for_shapes_is_compressed():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.flow = ShapeFlow()

        def forward(self, x, *others):
            return self.flow(x, *others, scale=x[:, :1])["logits"]

    inputs = (torch.randn(2, 6), torch.randn(2, 3))
    result = compress_half(Flow(), inputs)
    assert result.zigs == 28
    assert result.params_left < 0.45


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.b(F.relu(self.a(x)))


def test_a_branch_is_checked_whenever_the_graph_runs():
    model = Padded()
    gm = fx_oto.prepare(model, torch.randn(2, 3, 8, 9))
    fx_oto.partition(gm).zero_(0.5)
    for graph in (gm, fx_oto.compress(gm), pickle.loads(pickle.dumps(gm))):
        odd = torch.randn(3, 3, 6, 11)
        torch.testing.assert_close(graph(odd), model(odd))
        with pytest.raises(
            AssertionError, match=r"captured where this was True .*test_front_ends.py:\d+.* trace it on such"
        ):
            graph(torch.randn(2, 3, 8, 8))


def reshaped(x):
    """A helper that torch.fx is told not to trace."""
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).sum(1), channels


def noisy(x):
    return x + nn.init.uniform_(torch.zeros(1))


torch.fx.wrap("reshaped")
torch.fx.wrap("noisy")


class Helped(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.a, self.b, self.noise = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 6, 3), noise

    def forward(self, x):
        x, channels = reshaped(F.relu(self.a(x)))
        x = self.b(x) / channels
        return noisy(x) if self.noise else x


def test_wrapped_helpers_are_traced_through():
    result = compress_half(Helped(noise=False), torch.randn(2, 3, 8, 8))
    assert result.zigs == 4  # pairs of channels that the helper adds up
    assert not any("reshaped" in str(node.target) for node in result.gm.graph.nodes)


def rarely(x):
    return x * (2 if random.random() < 0.5 else 3)


torch.fx.wrap("rarely")


class Lucky(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)

    def forward(self, x):
        return rarely(self.a(x))


def test_a_wrapped_helper_that_draws_numbers_is_called_as_a_whole():
    model, x = Lucky(), torch.randn(5, 4)
    gm = fx_oto.trace(model, x)
    assert any(node.target is rarely for node in gm.graph.nodes)
    assert capture(gm).opaque == ("rarely",)
    for seed in range(4):
        random.seed(seed)
        expected = model(x)
        random.seed(seed)
        torch.testing.assert_close(gm(x), expected)


def test_numbers_that_torch_draws_are_drawn_by_the_graph():
    model, image = Helped(noise=True), torch.randn(2, 3, 8, 8)
    gm = fx_oto.trace(model, image)
    torch.manual_seed(3)
    expected = model(image)
    torch.manual_seed(3)
    torch.testing.assert_close(gm(image), expected)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Rounded(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(StraightThrough.apply(self.a(x) * 3))


def test_a_function_with_its_own_backward_keeps_it():
    model, x = Rounded(), torch.randn(5, 4)
    gm = fx_oto.trace(model, x)
    model(x).sum().backward()
    expected = model.a.weight.grad.clone()
    assert expected.any()
    model.zero_grad()
    gm(x).sum().backward()
    torch.testing.assert_close(model.a.weight.grad, expected)
    assert compress_half(Rounded(), x).zigs == 8


class Asserting(nn.Module):
    """A proxy is of another type: only ``torch.export`` answers this."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)
        self.b = nn.Linear(16, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        assert "Proxy" not in type(x).__name__
        x = self.b(self.drop(F.relu(self.norm(self.a(x)))))
        if self.training:
            self.seen.mul_(0.9).add_(x.detach().mean(0))
        return {"logits": x - self.seen}


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_graph_has_both_modes(training):
    model, twin = Asserting(), Asserting()
    twin.load_state_dict(model.state_dict())
    gm = fx_oto.trace(model, torch.randn(4, 4)).train(training)
    assert capture(gm).front_end == "fx_oto"
    x = torch.randn(6, 4)
    torch.manual_seed(0)
    expected = twin.train(training)(x)
    torch.manual_seed(0)
    torch.testing.assert_close(gm(x), expected)
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert int(model.norm.num_batches_tracked) == training


def test_an_exported_graph_is_trained_and_compressed():
    model = Asserting()
    gm = fx_oto.prepare(model, torch.randn(4, 4))
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.05, target_group_sparsity=0.5, total_steps=20)
    gm.train()
    for _ in range(20):
        optimizer.zero_grad()
        gm(torch.randn(8, 4))["logits"].square().mean().backward()
        optimizer.step()
    small, x = fx_oto.compress(gm).eval(), torch.randn(7, 4)
    torch.testing.assert_close(small(x)["logits"], model.eval()(x)["logits"], rtol=1e-5, atol=1e-5)
    assert small.get_parameter("a.weight").shape == (8, 4)


class Shifted(nn.Module):
    """Training shifts by tensors that are no buffers: one of a submodule, one that evaluation has by that name."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.shift, self.aux = nn.Linear(4, 16), nn.Linear(16, 3), torch.rand(3), nn.Module()
        self.aux.shift = torch.rand(3)

    def forward(self, x):
        assert "Proxy" not in type(x).__name__
        x = self.b(F.relu(self.a(x)))
        return x + (self.aux.shift - torch.tensor([1.0, 2.0, 3.0]) if self.training else torch.tensor([3.0, 2.0, 1.0]))


@pytest.mark.parametrize("training", [True, False])
def test_tensors_that_only_training_reads_keep_their_names(training):
    model, x = Shifted().train(training), torch.randn(5, 4)
    gm = fx_oto.trace(model, torch.randn(2, 4))
    assert capture(gm).front_end == "fx_oto"
    torch.testing.assert_close(gm(x), model(x))
    assert gm.get_buffer("aux.shift") is model.aux.shift
    assert compress_half(Shifted(), x).zigs == 16


class DifferentOutputs(Asserting):
    def forward(self, x):
        found = super().forward(x)
        return (found["logits"], x) if self.training else found


def test_each_mode_returns_what_it_does():
    model, x = DifferentOutputs(), torch.randn(4, 4)
    gm = fx_oto.prepare(model, x)
    for mode in (True, False):
        torch.manual_seed(0)
        expected = copy.deepcopy(model).train(mode)(x)
        torch.manual_seed(0)
        torch.testing.assert_close(gm.train(mode)(x), expected)
    assert fx_oto.partition(gm).num_zigs == 16


class Selecting(nn.Module):
    """What it returns depends on the numbers in its input, even how much."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(6, 6)

    def forward(self, x):
        kept = x[self.score(x)[:, 0] > 0]
        return kept if len(kept) else x


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.select = nn.Linear(4, 8), nn.Linear(8, 6), Selecting()
        self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        return self.d(F.relu(self.c(self.select(x))))


@pytest.mark.parametrize("training", [True, False])
def test_what_cannot_be_captured_is_called_as_a_whole(training):
    torch.manual_seed(0)
    model, x = Detector().double().train(training), torch.randn(5, 4, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm = fx_oto.prepare(model, x)
    assert capture(gm).opaque == ("select",)
    zigs = fx_oto.partition(gm)
    assert {family.name: len(family) for family in zigs.families} == {"a.weight": 8, "c.weight": 8}
    reasons = {str(axis.reason) for axis in zigs.frozen if axis.tensor in ("b.weight", "select.score.weight")}
    assert any("code that could not be captured" in reason and "test_front_ends.py:" in reason for reason in reasons)
    zigs.zero_(0.5)
    small, other = fx_oto.compress(gm), torch.randn(9, 4, dtype=torch.float64)
    torch.testing.assert_close(small(other), model(other), rtol=1e-10, atol=1e-12)


class Postprocessing(nn.Module):
    """The model's own method selects by scores; a submodule remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 8), nn.Linear(8, 6), nn.Parameter(torch.rand(6))
        self.a.seen = None

    def select(self, x, floor):
        return [row[row > floor] for row in x]

    def forward(self, x):
        self.a.seen = x.shape
        x = self.b(F.relu(self.a(x))) * self.scale
        return self.select(x, 0.0), len(x)


def test_a_method_that_cannot_be_captured_is_called_as_a_whole():
    torch.manual_seed(0)
    model, x = Postprocessing().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    assert capture(gm).opaque == ("select",)
    assert model.a.seen is None
    assert "select" not in vars(model)
    assert [name for name, _ in model.named_children()] == ["a", "b"]
    zigs = fx_oto.partition(gm)
    assert {family.name: len(family) for family in zigs.families} == {"a.weight": 8}
    zigs.zero_(0.5)
    other = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fx_oto.compress(gm)(other), model(other), rtol=1e-10, atol=1e-12)


class Owning(Postprocessing):
    def select(self, x, floor):
        return [row[row > floor] for row in x * self.b.bias]


def test_a_method_with_parameters_is_not_called_as_a_whole():
    torch.manual_seed(0)
    model, x = Owning().double().eval(), torch.randn(5, 4, dtype=torch.float64)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"batches of 5 only.*test_front_ends.py:\d+"):
        gm = fx_oto.prepare(model, x)  # each row is selected by itself
    assert capture(gm).opaque == ()
    fx_oto.partition(gm).zero_(0.5)
    other = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(fx_oto.compress(gm)(other), model(other), rtol=1e-10, atol=1e-12)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Linear(4, 8), Owning()
        self.head.a = nn.Linear(8, 8)

    def forward(self, x):
        return self.head(F.relu(self.a(x)))


def test_only_what_is_called_as_a_whole_in_the_end_is_listed():
    gm = fx_oto.prepare(Nested(), torch.randn(5, 4))
    assert capture(gm).opaque == ("head",)
    assert [node.target for node in gm.graph.nodes if node.op == "call_module"].count("head") == 1


class Caching(nn.Module):
    """Keeps in evaluation what it computed from a parameter, until training begins."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(2, 8))
        self.cache = {}

    def train(self, mode=True):
        if mode:
            self.cache.clear()
        return super().train(mode)

    def forward(self, x):
        if self.training:
            bias = self.table.sum(0)
        else:
            if "bias" not in self.cache:
                self.cache["bias"] = self.table.sum(0)
            bias = self.cache["bias"]
        return self.b(F.relu(self.a(x) * bias))


class CachingAsserting(Caching):
    def forward(self, x):
        assert "Proxy" not in type(x).__name__
        return super().forward(x)


@pytest.mark.parametrize("kind", [Caching, CachingAsserting])
def test_what_a_module_keeps_in_evaluation_is_neither_baked_in_nor_left_behind(kind):
    model, x = kind().eval(), torch.randn(2, 4)
    model(x)
    kept = model.cache["bias"]
    gm = fx_oto.trace(model, x)
    assert list(model.cache) == ["bias"]
    assert model.cache["bias"] is kept
    with torch.no_grad():
        model.table.mul_(3)
    torch.testing.assert_close(gm(x), model.train()(x))


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, values):
        return [self.b(F.relu(self.a(value))) for value in values]


def test_the_length_of_a_list_is_checked():
    model, values = Listed(), [torch.randn(2, 4), torch.randn(3, 4)]
    gm = fx_oto.prepare(model, (values,))
    torch.testing.assert_close(gm(values[::-1]), model(values[::-1]))
    for graph in (gm, pickle.loads(pickle.dumps(gm))):
        with pytest.raises(AssertionError, match="captured where the length of values was 2; trace it"):
            graph([*values, values[0]])


class Hooked(nn.Module):
    """Hooks of the model and of its layers change what goes in and out; one knows a size."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 3)
        self.a.register_forward_hook(lambda module, args, out: out.view(-1, 2, 8).flip(1).reshape(-1, 16))
        self.a.register_forward_hook(self.keep)
        self.b.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
        self.register_forward_hook(lambda module, args, out: (out[0] * 2, out[1]))
        self.register_forward_pre_hook(lambda module, args: (args[0] + 1,))

    def keep(self, module, args, out):
        self.kept = out

    def forward(self, x):
        return self.b(F.relu(self.a(x))), self.c(F.relu(self.kept))


def test_hooks_are_part_of_the_graph():
    model, x = Hooked(), torch.randn(5, 6)
    gm = fx_oto.trace(model, x[:2])
    assert capture(gm).front_end == "fx_oto"
    assert not capture(gm).opaque
    assert "kept" not in vars(model)
    torch.testing.assert_close(gm(x), model(x))
    assert compress_half(Hooked(), x).zigs == 16


SCALE = torch.full((1,), 1.5)


class Optional(nn.Module):
    """Asks which arguments there are, also inside of others, and looks up by name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.heads = nn.ModuleDict({"tanh": nn.Tanh(), "relu": nn.ReLU()})

    def forward(self, x, mask, extra, *, act, scale=SCALE, shift=0.5, twice=None):
        x = self.a(x) * scale + shift
        if mask is not None:
            x = x * mask
        if extra["a"][0] is not None or extra.get("c") is not None:
            x = x + 1
        if not torch.is_tensor(x) or twice is not None:
            x = x * 2
        return self.b(self.heads[act](x)) * extra["b"]


def test_what_is_none_or_a_name_is_known_and_checked():
    model, x, extra = Optional(), torch.randn(5, 6), {"a": [None], "b": torch.randn(5, 1)}
    gm = fx_oto.trace(model, ((x[:2], None, {"a": [None], "b": extra["b"][:2]}), {"act": "relu"}))
    assert capture(gm).front_end == "fx_oto"
    assert not capture(gm).opaque
    gm = pickle.loads(pickle.dumps(gm))
    torch.testing.assert_close(gm(x, None, extra, act="relu"), model(x, None, extra, act="relu"))
    torch.testing.assert_close(gm(x, mask=None, extra=extra, act="relu", shift=0.5), model(x, None, extra, act="relu"))
    with pytest.raises(AssertionError, match="act was 'relu'"):
        gm(x, None, extra, act="tanh")
    with pytest.raises(AssertionError, match="mask was None"):
        gm(x, x, extra, act="relu")
    with pytest.raises(AssertionError, match="captured where extra was None"):
        gm(x, None, {**extra, "a": [x]}, act="relu")
    with pytest.raises(AssertionError, match=r"captured where what is in extra was \['a', 'b'\]"):
        gm(x, None, {**extra, "c": x}, act="relu")


class Rolling(nn.Module):
    """Draws numbers that are not torch's."""

    def __init__(self, draw, always):
        super().__init__()
        self.a, self.b, self.draw, self.always = nn.Linear(6, 16), nn.Linear(16, 4), draw, always

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.always or self.training:
            x = x * (0.5 + self.draw())
        return self.b(x)


@pytest.mark.parametrize("draw", [np.random.rand, random.random])
def test_numbers_that_code_draws_are_not_baked_in(draw):
    random.seed(0)
    np.random.seed(0)
    state, other = random.getstate(), np.random.get_state()[1].copy()
    model, x = Rolling(draw, always=True), torch.randn(2, 6)
    gm = fx_oto.trace(model, x)  # the statement that draws is called as a whole
    assert state == random.getstate()
    outputs = []
    for module in (model, gm, gm):
        if len(outputs) < 2:
            random.seed(3), np.random.seed(3)
        outputs.append(module(x))
    torch.testing.assert_close(outputs[1], outputs[0])
    assert not torch.allclose(outputs[2], outputs[1])
    random.setstate(state), np.random.seed(0)
    with pytest.warns(fx_oto.FxOtoWarning, match=r"draws random numbers .*in evaluation mode"):
        gm = fx_oto.prepare(Rolling(draw, always=False), torch.randn(2, 6))
    assert fx_oto.partition(gm).num_zigs == 16
    assert state == random.getstate()
    assert (other == np.random.get_state()[1]).all()


class Counting(nn.Module):
    """Returns no tensor, but a number that depends on what it is given."""

    def forward(self, x):
        return {"positive": len(str(int((x > 0).sum())))}


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.count = nn.Linear(4, 8), nn.Linear(8, 6), Counting()
        self.c = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.c(x), self.count(x)


def test_a_number_from_opaque_code_keeps_what_it_counts():
    gm = fx_oto.prepare(Counted(), torch.randn(5, 4))
    assert capture(gm).opaque == ("count",)
    assert {family.name: len(family) for family in fx_oto.partition(gm).families} == {"a.weight": 8}


class WithoutGradient(nn.Module):
    def __init__(self, precise=True):
        super().__init__()
        self.a, self.b, self.c, self.precise = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3), precise

    def forward(self, x):
        with torch.no_grad():
            x = F.relu(self.a(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not self.precise):
            x = F.relu(self.b(x))
        return self.c(x.float())


def test_what_the_model_computes_without_gradient_has_none_in_the_graph():
    model, x = WithoutGradient(), torch.randn(5, 6)
    gm = fx_oto.prepare(model, x)
    assert capture(gm).front_end == "fx_oto"
    assert not capture(gm).opaque
    gm(x).sum().backward()
    assert model.a.weight.grad is None
    assert model.b.weight.grad.any()
    assert fx_oto.partition(gm).num_zigs == 24


def test_autocast_inside_a_model_is_not_lost():
    model, x = WithoutGradient(precise=False), torch.randn(5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fx_oto.FxOtoWarning)
        gm = fx_oto.trace(model, x)
    torch.testing.assert_close(gm.eval()(x), model(x), rtol=0, atol=0)
