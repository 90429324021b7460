"""``compress`` compares with the user's own model, as it was captured and with the weights that it has now."""

from __future__ import annotations

import gc
import re
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import fx_oto


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        self.tau, self.double, self.mode, self.shape = 5.0, False, "plain", (1, 1)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        h = self.act(self.a(x)) / self.tau
        h = h + self.shape[0] + (1 if self.mode == "plain" else 0)
        return self.b(h * 2 if self.double else h)


X = torch.linspace(-1, 2, 12).view(3, 4)


def pruned():
    net = Net().eval()
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5)
    return net, gm


CHANGES = {
    "number": (lambda net: setattr(net, "tau", 0.5), r"'tau' was 5\.0 and is 0\.5"),
    "flag": (lambda net: setattr(net, "double", True), r"'double' was False and is True"),
    "text": (lambda net: setattr(net, "mode", "other"), r"'mode' was 'plain' and is 'other'"),
    "tuple": (lambda net: setattr(net, "shape", (2, 1)), r"'shape' was \(1, 1\) and is \(2, 1\)"),
    "module": (lambda net: setattr(net, "act", nn.Sigmoid()), r"'act' was ReLU and is Sigmoid"),
    "nested": (lambda net: setattr(net, "act", nn.Sequential(nn.Tanh())), r"'act' was ReLU and is Sequential"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_since_is_named(name):
    change, text = CHANGES[name]
    net, gm = pruned()
    change(net)
    with pytest.raises(fx_oto.VerificationError, match=rf"does not compute what it did.*{text}.*prepare the model as"):
        fx_oto.compress(gm)
    gm = fx_oto.prepare(net, X)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), net(X))


def test_what_changes_nothing_is_no_error():
    net, gm = pruned()
    net.note, net.tau = "trained", 5
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), net(X))


def test_another_batch_is_compared_as_well():
    net, gm = pruned()
    net.sizes.clear()
    fx_oto.compress(gm)
    assert set(net.sizes) == set()  # what it notes is taken back
    seen = []
    net.b.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    net.forward = lambda x: seen.append(len(x)) or Net.forward(net, x)
    fx_oto.compress(fx_oto.prepare(net, X))
    assert {3, 6} <= set(seen)


def test_without_the_model_the_graph_is_compared_with():
    net, gm = pruned()
    expected = net(X)
    del net
    gc.collect()
    assert fx_oto.Context.of(gm).original.model is None
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), expected)


def under_autocast(net, gm):
    for module in (net, gm):
        module.forward = torch.autocast("cpu", torch.bfloat16)(module.forward)


def with_hooks(net, gm):
    for module in (net, gm.get_submodule("a")):
        module.register_forward_hook(lambda module, args, output: output * 2)
        module.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


@pytest.mark.filterwarnings("ignore:with hooks that were put on:fx_oto.FxOtoWarning")
@pytest.mark.parametrize("wrap", [under_autocast, with_hooks])
def test_what_others_put_on_the_model_since_is_left_out_and_left_on(wrap):
    net, gm = pruned()
    plain = net(X)
    wrap(net, gm)
    wrapped = net(X)
    assert not torch.equal(plain, wrapped)
    small = fx_oto.compress(gm)
    assert torch.equal(net(X), wrapped)
    assert fx_oto.Context.of(small).get(fx_oto.VerificationReport).tolerance == 1e-5


class Buffered(nn.Module):
    """Buffers that no layer holds, at the top and in a container, one of a type of its own, one not in the state."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.inner = nn.Linear(4, 8), nn.Linear(8, 3), nn.Module()
        self.register_buffer("scale", torch.rand(8) + 1)
        self.register_buffer("shift", torch.rand(3), persistent=False)
        self.inner.register_buffer("index", torch.tensor([0, 2, 1]))
        self.inner.register_buffer("mean", torch.rand(8))

    def forward(self, x):
        h = self.b(self.a(x).relu() * self.scale + self.inner.mean - self.inner.mean)
        return (h + self.shift)[:, self.inner.index]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("moved", ["model", "gm"])
@pytest.mark.parametrize("when", ["before the optimizer", "before compress"])
def test_buffers_follow_what_was_cast_after_prepare(dtype, moved, when):
    net = Buffered().eval()
    gm = fx_oto.prepare(net, X)
    (net if moved == "model" else gm).to(dtype)
    if when == "before the optimizer":
        fx_oto.DHSPG(gm, lr=0.1, target_group_sparsity=0.5, total_steps=9)
        assert gm(X.to(dtype)).dtype == net(X.to(dtype)).dtype == dtype
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    assert all(gm.get_buffer(name) is net.get_buffer(name) for name in ("scale", "shift", "inner.mean"))
    assert {one.dtype for one in small.buffers()} == {dtype, torch.int64}
    torch.testing.assert_close(small(X.to(dtype)), net(X.to(dtype)), rtol=5e-2, atol=5e-2)


def test_a_buffer_that_code_casts_itself_is_not_replaced():
    net = Counts(read=False)
    gm = fx_oto.prepare(net, X)
    net.count = net.count.double() + 3
    fx_oto.partition(gm).zero_(0.5)
    fx_oto.compress(gm)
    assert net.count == 4


class Nested(nn.Module):
    """Layers in a container."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x)).tanh()


def doubled(module, args, output):
    return output * 2


def shifted(module, args):
    return (args[0] + 1,)


def watched(module, args, output):
    module.last = output


def put(net, path, hook):
    module = net.get_submodule(path)
    return (module.register_forward_pre_hook if hook is shifted else module.register_forward_hook)(hook)


HOOKS = [(path, hook) for path in ("", "body", "body.0", "body.1", "head") for hook in (doubled, shifted, watched)]
TOLD = [("", doubled), ("", shifted), ("body", doubled), ("body", shifted), ("body.1", shifted), ("head", shifted)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("path", "hook"), HOOKS)
def test_hooks_that_are_put_on_after_prepare(path, hook, training):
    """Graphs have those of layers; one that gives numbers to channels that are gone is no more exact there, either."""
    net = Nested().double().train(training)
    gm = fx_oto.prepare(net, X.double())
    fx_oto.partition(gm).zero_(0.5)
    put(net, path, hook)
    expected, told = net(X.double()), (path, hook) in TOLD
    with pytest.warns(fx_oto.FxOtoWarning) if told else nullcontext([]) as caught:
        small = fx_oto.compress(gm)
    assert torch.allclose(small(X.double()), expected) is not told
    if told:
        where = repr(path) if path else "the model"
        assert re.search(rf"returns something else .* on {where} \({hook.__name__}\)\. Graphs", str(caught[0].message))
        small = fx_oto.compress(fx_oto.prepare(net, X.double()))
        torch.testing.assert_close(small(X.double()), expected)


@pytest.mark.parametrize(("path", "hook"), [pair for pair in HOOKS if pair[1] is not shifted])
@pytest.mark.filterwarnings("ignore:with hooks that were put on:fx_oto.FxOtoWarning")
def test_hooks_that_are_put_on_after_prepare_stay_on_a_model_that_is_written_back(path, hook):
    net = Nested().eval()
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5)
    put(net, path, hook)
    copied = fx_oto.compress(gm, into=net)
    torch.testing.assert_close(copied(X), net(X))
    assert [len(one._forward_hooks) for one in copied.modules()] == [len(one._forward_hooks) for one in net.modules()]


def test_hooks_that_fail_outside_of_the_users_own_calls_are_left_alone():
    net = Nested().eval()
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5)

    def stop(module, args, output):
        raise StopIteration("far enough")

    put(net, "body", stop)
    torch.testing.assert_close(fx_oto.compress(gm)(X), gm(X))


def test_inside_of_autocast_it_is_compared_without():
    _, gm = pruned()
    with torch.autocast("cpu", torch.bfloat16):
        small = fx_oto.compress(gm)
    assert fx_oto.Context.of(small).get(fx_oto.VerificationReport).tolerance == 1e-5


def test_hooks_that_were_captured_are_compared():
    net = Net().eval()
    net.a.register_forward_hook(lambda module, args, output: output * 2)
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), net(X))


def test_after_a_pass_of_the_users_the_graph_decides():
    @fx_oto.transformation_pass
    def doubled(gm):
        output = gm.graph.output_node()
        with gm.graph.inserting_before(output):
            output.args = (gm.graph.call_function(torch.mul, (output.args[0], 2)),)
        return gm

    net = Net().eval()
    gm = fx_oto.prepare(net, X, passes=fx_oto.default_pipeline().insert_before("dependency-analysis", doubled))
    fx_oto.partition(gm).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), 2 * net(X))


class Counts(nn.Module):
    """Assigns a buffer anew in each training step, perhaps with its history; ``read`` decides whether that matters."""

    def __init__(self, read, learns=False):
        super().__init__()
        self.a, self.b, self.read, self.learns = nn.Linear(4, 8), nn.Linear(8, 3), read, learns
        self.register_buffer("count", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.count = self.count + (self.a.bias.square().sum() if self.learns else 1)
        h = self.b(self.a(x).relu())
        return h / self.count if self.read else h + self.count * 0


@pytest.mark.parametrize(("trained", "learns"), [("model", False), ("model", True), ("gm", False), ("both", False)])
@pytest.mark.parametrize("read", [False, True])
def test_a_buffer_that_code_assigns_anew(trained, learns, read):
    net = Counts(read, learns)
    gm = fx_oto.prepare(net, X)
    for module in (net, gm):
        if trained in ("model" if module is net else "gm", "both"):
            module.train()(X)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm).eval()
    torch.testing.assert_close(small(X), net.eval()(X))
    torch.testing.assert_close(gm.eval()(X), net(X))
    net.train()(X)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(X), net.eval()(X))


def test_a_buffer_of_another_form_is_named():
    net = Counts(read=True)
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5)
    net.count = torch.full((3,), 2.0)
    with pytest.raises(fx_oto.VerificationError, match=r"the buffer 'count' is another tensor.*prepare the model as"):
        fx_oto.compress(gm)
    assert net.count.shape == (3,)


class Stateful(nn.Module):
    """Computes with what its calls have left, in one of several places."""

    def __init__(self, place):
        super().__init__()
        self.a, self.b, self.place, self.state, self.pair = nn.Linear(4, 8), nn.Linear(8, 3), place, None, (1, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        h = self.a(x).relu()
        if self.training:
            self.steps += 1
            self.state = h.detach().mean(0)
            self.pair = (h.detach().mean(0), 2)
        if self.place == "a buffer that code asks":
            return self.b(h) * (0.5 if self.steps.item() == 0 else 1.0)
        if self.place == "a tensor":
            return self.b(h if self.state is None else h + self.state)
        return self.b(h * self.pair[0])


STATES = {
    "a buffer that code asks": r"its graph, which decides as it did then, refuses .* captured where this was ",
    "a tensor": r"'state' was None and is of class Tensor",
    "a tuple": r"'pair' was \(1, 2\) and is of class tuple",
}


@pytest.mark.filterwarnings("ignore:.*can(not)? be captured:fx_oto.FxOtoWarning")
@pytest.mark.filterwarnings("ignore:the model (sets|computes with):fx_oto.FxOtoWarning")
@pytest.mark.parametrize("place", STATES)
def test_what_calls_have_left_since_is_named(place, monkeypatch):
    monkeypatch.delenv("FX_OTO_VERIFY")  # which runs the graph before verification does
    net = Stateful(place)
    gm = fx_oto.prepare(net.eval(), X)
    net.train()(X)
    fx_oto.partition(gm).zero_(0.5)
    with pytest.raises(fx_oto.VerificationError, match=STATES[place]) as found:
        fx_oto.compress(gm)
    assert str(found.value).endswith("prepare the model as it is now")
    again = fx_oto.prepare(net.eval(), X)
    fx_oto.partition(again).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(again).eval()(X), net.eval()(X))


@pytest.mark.parametrize("change", ["parametrized", "replaced"])
@pytest.mark.parametrize("asked", ["zero_", "zeros", "compress"])
def test_a_parameter_that_is_gone_is_named(change, asked):
    net, gm = pruned()
    if change == "parametrized":
        nn.utils.parametrizations.spectral_norm(net.a)
    else:
        gm.a = net.a = nn.Identity()
    run = {
        "zero_": lambda: fx_oto.partition(gm).zero_(0.5),
        "zeros": lambda: fx_oto.partition(gm).zeros(),
        "compress": lambda: fx_oto.compress(gm),
    }
    with pytest.raises(fx_oto.InputError, match=r"'a\.(weight|bias)' is not what prepare found: it is gone"):
        run[asked]()
