"""What no file can hold is refused in words when it is saved; what is the user's own is handed over again."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import pytest
import torch
from support.saved import assert_same, compact, saved
from torch import Tensor, nn

import fx_oto

ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@torch.fx.wrap
def shifted(x: Tensor) -> Tensor:
    if x.sum() > 1e9:
        return x
    return x + 1


def called(x: Tensor) -> Tensor:
    return shifted(x)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.library.custom_op("fx_oto_saved::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x):
    return torch.empty_like(x)


halved.register_autograd(lambda ctx, gradient: gradient / 2)


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclasses.dataclass
class Record:
    value: Tensor
    size: int = 4


class Own:
    """An object that is none of what a file can make."""

    def __init__(self, value):
        self.value = value


class Scale(nn.Module):
    """A linear layer of the user's own, registered as a leaf."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.inputs, self.weight = inputs, nn.Parameter(torch.randn(outputs, inputs))
        self.where = Own(3)

    def forward(self, x):
        assert x.shape[-1] == self.inputs
        return x @ self.weight.mT * self.where.value


class Net(nn.Module):
    """Two layers, something between them, something after them."""

    def __init__(self, between=torch.relu, after=None):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.between, self.after = between, after

    def forward(self, x):
        x = self.last(self.between(self.first(x)))
        return x if self.after is None else self.after(x)


def test_modules_of_the_users_own_are_taken_from_the_model(tmp_path):
    linear = fx_oto.kinds.contraction("...i,oi->...o")
    fx_oto.register_leaf(Scale, linear, attributes={"inputs": ("weight", 1)})
    small = compact(Net(Scale(16, 16)), ROWS)
    assert small.between.inputs == 8
    with pytest.raises(
        fx_oto.FileError, match=r"the module 'between' is of the class .*Scale, which is neither torch's"
    ):
        saved(small, tmp_path)
    loaded = saved(small, tmp_path, Net(Scale(16, 16)))
    assert_same(small, loaded, ROWS, torch.cat([ROWS, ROWS]))
    assert (loaded.between.inputs, type(loaded.between), loaded.between.where.value) == (8, Scale, 3)
    fresh = Net(Scale(16, 16))
    saved(small, tmp_path, fresh)
    assert fresh.between.inputs == fresh.between.weight.size(1) == 16  # the user's model is left as it is
    with pytest.raises(fx_oto.FileError, match=r"'between' was of the class .*Scale; the model's is ReLU"):
        saved(small, tmp_path, Net(nn.ReLU()))
    with pytest.raises(fx_oto.FileError, match="the model has no module 'between'"):
        saved(small, tmp_path, nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("function", "call"),
    [(shifted, called), (Twice, Twice.apply), (torch.ops.fx_oto_saved.halved.default, halved)],
)
def test_functions_of_the_users_own_are_handed_over(function, call, tmp_path):
    fx_oto.register_rule(torch.ops.fx_oto_saved.halved, fx_oto.kinds.elementwise())
    small = compact(Net(after=call), ROWS)
    with pytest.raises(fx_oto.FileError, match=r"hand it over with fx_oto.load\(path, functions=\[…\]\)"):
        saved(small, tmp_path)
    loaded = saved(small, tmp_path, functions=[function])
    assert_same(small, loaded, ROWS)
    for model in (small, loaded):
        model.zero_grad()
        model(ROWS).sum().backward()
    assert torch.equal(small.last.weight.grad, loaded.last.weight.grad)


@pytest.mark.parametrize("make", [lambda x: Pair(x, x + 1), Record])
def test_records_are_made_again_where_the_models_code_knows_them(make, tmp_path):
    model = Net(after=make)
    small = compact(model, ROWS)
    typed = saved(small, tmp_path, model)(ROWS)
    assert type(typed) is type(small(ROWS))
    assert torch.equal(next(iter(vars(typed).values() if isinstance(typed, Record) else typed)), saved_first(small))


def saved_first(small):
    found = small(ROWS)
    return found.left if isinstance(found, Pair) else found.value


def hooked(model):
    model.register_forward_hook(lambda module, args, output: None)


def torn(model):
    model.get_submodule("first").note = Own(2)


def overlapping(model):
    first = model.get_submodule("first")
    first.register_buffer("part", first.weight.data[1:])


def as_it_is(x, function):
    return function(x) if x.abs().max() < 1e6 else x


REFUSED = {
    "a prepared model": (
        lambda: fx_oto.prepare(Net(), ROWS),
        "prepared for pruning, with masks: save what fx_oto.compress",
    ),
    "a model": (Net, "expected what fx_oto.compress has returned, a GraphModule; found Net"),
    "a hook": (lambda: after(Net(), lambda gm: hooked(gm.first)), r"the module 'first' \(Linear\) .*: it has hooks"),
    "weight_norm of old": (
        lambda: compact(nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 4)), ROWS),
        r"the module '0' \(Linear\) .*: it has hooks \(forward_pre_hooks\).*those of torch.nn.utils.parametrizations",
    ),
    "an attribute": (
        lambda: after(Net(), torn),
        r"the attribute 'note' of the module 'first' \(Linear\) cannot be written: Own",
    ),
    "a part of a tensor": (
        lambda: after(Net(), overlapping),
        r"'first.part' is a part of the memory of 'first.weight'",
    ),
    "an object at the output": (
        lambda: compact(Net(after=Own), ROWS),
        r"makes an object of the class Own, which no file",
    ),
    "a function that is given": (
        lambda: compact(Net(after=lambda x: as_it_is(x, torch.tanh)), ROWS),
        r"'_rebuilt0' cannot be written: it holds the function tanh, which no file",
    ),
    "a script": (
        lambda: compact(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), torch.jit.script(nn.Tanh())), ROWS
        ),
        "the module '3' cannot be written: it is TorchScript",
    ),
    "an exported program": (
        lambda: compact(torch.export.export(Net(), (ROWS,)).module(), ROWS),
        "the graph takes its inputs as torch.export",
    ),
}


def after(model, change):
    small = compact(model, ROWS)
    change(small)
    return small


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_written_is_refused_in_words(what, tmp_path):
    make, text = REFUSED[what]
    small = make()
    path = tmp_path / "small.safetensors"
    path.write_text("as before")
    with pytest.raises(fx_oto.FileError, match=text):
        fx_oto.save(small, path)
    assert path.read_text() == "as before"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_function_without_a_name_is_refused_with_the_node(tmp_path):
    gm = torch.fx.symbolic_trace(Net())
    call = next(one for one in gm.graph.nodes if one.op == "call_function")
    call.target = lambda x: x.relu()
    with pytest.raises(
        fx_oto.FileError, match=r"node 'relu' .* cannot be written: .*torch.save\(small, file\) can hold"
    ):
        fx_oto.save(gm, tmp_path / "small.safetensors")


def test_a_name_that_code_cannot_take_is_refused(tmp_path):
    gm = torch.fx.symbolic_trace(Net())
    next(iter(gm.graph.nodes)).target = "torch"
    with pytest.raises(fx_oto.FileError, match="'torch' is no name"):
        fx_oto.save(gm, tmp_path / "small.safetensors")


def test_a_method_that_is_none_of_tensors_is_refused_with_the_node(tmp_path):
    gm = torch.fx.symbolic_trace(Net())
    with gm.graph.inserting_before(gm.graph.output_node()):
        gm.graph.call_method("numpy", (next(iter(gm.graph.nodes)),))
    gm.recompile()
    with pytest.raises(fx_oto.FileError, match=re.escape("a call of the method 'numpy'")):
        fx_oto.save(gm, tmp_path / "small.safetensors")


WRONG = [
    (lambda small, path: fx_oto.save(path, small), "expected what fx_oto.compress has returned, a GraphModule; found"),
    (lambda small, path: fx_oto.save(small, 3), r"expected the path of a file, found int: save\(small, path\)"),
    (lambda small, path: fx_oto.save(small, path.parent), "cannot be written: Is a directory. What was there"),
    (lambda small, path: fx_oto.save(small, path / "no" / "x"), r"no/x cannot be written: No such file or directory\."),
    (fx_oto.load, "expected the path of a file that fx_oto.save has written, found"),
    (lambda small, path: fx_oto.load(path.parent), "cannot be read: it is a folder"),
]


def small_net():
    return compact(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), ROWS)


@pytest.mark.parametrize(("call", "text"), WRONG)
def test_arguments_that_no_file_can_be(call, text, tmp_path):
    with pytest.raises(fx_oto.FileError, match=text):
        call(small_net(), tmp_path / "small.safetensors")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": nn.Linear}, "model must be an instance of your own class, uncompressed; found <class"),
        ({"functions": torch.relu}, "functions must be a list of the graph's own functions; found <built-in"),
    ],
)
def test_what_is_handed_over_in_a_wrong_form(options, text, tmp_path):
    path = tmp_path / "small.safetensors"
    fx_oto.save(small_net(), path)
    with pytest.raises(fx_oto.SettingsError, match=text):
        fx_oto.load(path, **options)
