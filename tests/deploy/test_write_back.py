"""A compact graph written back is the user's own module, smaller, and computes the same."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from functools import partial
from types import MethodType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fx_oto
from fx_oto.core.differences import relative_error

TOKENS = torch.randn(2, 6, 16, dtype=torch.float64)


def written(model, inputs=TOKENS, attention="heads", seed=1):
    """A model with random weights, its compact graph, and the copy that it was written back into."""
    model = randomise(model.eval()).double()
    gm = fx_oto.prepare(model, inputs, attention=attention)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(seed))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert type(result) is type(model)
    for batch in (inputs, torch.randn(5, *inputs.shape[1:], dtype=inputs.dtype)):
        for mode in (False, True):
            assert relative_error(same_draws(small, batch, mode), same_draws(result, batch, mode)) <= 1e-10
    return model, small, result


def same_draws(model, batch, training):
    torch.manual_seed(3)
    with torch.no_grad():
        return copy.deepcopy(model).train(training)(batch)


def report_of(result):
    return fx_oto.WriteBack.of(result)


class Attention(nn.Module):
    """Self-attention that reads its sizes from attributes."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, width // heads, width
        self.scale = self.head_dim**-0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).split(self.inner, dim=-1)
        q, k, v = (part.view(batch, length, self.heads, self.head_dim).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, self.heads * self.head_dim))


class Block(nn.Module):
    def __init__(self, inside, norm=nn.LayerNorm):
        super().__init__()
        self.first, self.inside, self.last = nn.Linear(16, 16), inside, nn.Linear(16, 8)
        self.norm = norm(16)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.inside(self.norm(x)))

    def summary(self):
        return f"{type(self).__name__} of {self.last.in_features}"


class BlockDropped(nn.Module):
    """Drops blocks of positions in training, how many its settings say: more of its code's numbers are no one's."""

    def __init__(self, is_plain):
        super().__init__()
        self.share, self.scale, self.block, self.is_plain = 0.25, 1.0, 3, is_plain
        self.mix = nn.Linear(16, 16)

    def forward(self, x):
        if self.training:
            batch, length, _ = x.shape
            rate = self.scale * self.share * length / self.block / (length - self.block + 1)
            rate = float(rate) if self.is_plain else rate
            dropped = (torch.rand(batch, 1, length, dtype=x.dtype) < rate).to(x.dtype)
            kept = 1 - F.max_pool1d(dropped, self.block, 1, self.block // 2).mT
            x = x * kept * (kept.numel() / (kept.sum() + 1e-7))
        return self.mix(x)


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.depthwise(x).mean((2, 3)))


IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize("is_plain", [False, True])
def test_code_that_computes_numbers_of_its_settings(is_plain):
    _, small, result = written(Block(BlockDropped(is_plain)))
    assert result.inside.mix.out_features == small.inside.mix.out_features == 8
    assert not report_of(result).graphs


def test_torchs_layers_get_the_sizes_of_their_parameters():
    model, _, result = written(Convolutions(), IMAGES)
    assert (result.stem.out_channels, result.norm.num_features) == (4, 4)
    assert (result.depthwise.in_channels, result.depthwise.groups, result.head.in_features) == (4, 4, 4)
    assert list(result.state_dict()) == list(model.state_dict())
    assert dict(result.named_buffers()).keys() == dict(model.named_buffers()).keys()
    assert not report_of(result).graphs


def test_the_users_model_and_the_compact_graph_are_not_changed():
    model = randomise(Block(Attention()).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    code, tensors = small.code, {name: tensor.clone() for name, tensor in small.state_dict().items()}
    result = fx_oto.write_back(small, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensors[name], tensor) for name, tensor in small.state_dict().items())
    assert small.code == code
    assert (model.inside.heads, type(model.inside.heads)) == (4, int)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    shared = {tensor.data_ptr() for tensor in result.parameters()} & {
        tensor.data_ptr() for tensor in model.parameters()
    }
    assert not shared


def test_attributes_are_solved_for():
    _, _, result = written(Block(Attention()))
    assert (result.inside.heads, result.inside.head_dim, result.inside.inner) == (2, 4, 8)
    assert type(result.inside.heads) is int
    found = {(one.name, one.before, one.after) for one in report_of(result).attributes}
    assert found == {("heads", 4, 2), ("inner", 16, 8)}
    assert result.summary() == "Block of 8"
    assert not report_of(result).graphs


def test_the_width_of_heads_is_solved_for_and_the_scale_stays():
    _, _, result = written(Block(Attention()), attention="head_dim")
    assert (result.inside.heads, result.inside.head_dim, result.inside.scale) == (4, 2, 0.5)
    assert not report_of(result).graphs


class OfClass(Attention):
    """Holds a number in its class, and another as a property."""

    count = 4

    @property
    def total(self):
        return self.count * self.head_dim

    def forward(self, x):
        heads = self.qkv(x)[..., : self.total].unflatten(-1, (self.count, self.head_dim)).transpose(1, 2)
        return self.out(((heads @ heads.mT).softmax(-1) @ heads).transpose(1, 2).flatten(2))


def test_numbers_of_classes_are_set_on_the_module():
    _, _, result = written(Block(OfClass()))
    assert (result.inside.count, OfClass.count) == (2, 4)
    assert not report_of(result).graphs


class OfProduct(nn.Module):
    """Reads one number only as a part of a product, and one in a tuple."""

    def __init__(self):
        super().__init__()
        self.heads, self.width, self.sizes = 4, 4, (16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 16)

    def forward(self, x):
        left, right = self.up(x).split(self.sizes, -1)
        h = (left * torch.tanh(right)).unflatten(-1, (self.heads, self.width))
        weights = (h.transpose(1, 2) @ h.transpose(1, 2).mT).softmax(-1)
        h = (weights @ h.transpose(1, 2)).transpose(1, 2)
        return self.down(h.reshape(*x.shape[:2], self.heads * self.width))


def test_numbers_in_tuples_and_products():
    _, _, result = written(Block(OfProduct()))
    assert (result.inside.heads, result.inside.width) == (2, 4)
    assert result.inside.sizes == (8, 8)
    assert type(result.inside.sizes) is tuple
    assert not report_of(result).graphs


class Configured(nn.Module):
    """Reads its sizes from a configuration that it shares with others."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(16, config.heads * 4), nn.Linear(config.heads * 4, 16)

    def forward(self, x):
        h = self.up(x).view(*x.shape[:2], self.config.heads, -1)
        weights = (h.transpose(1, 2) @ h.transpose(1, 2).mT).softmax(-1)
        return x + self.down((weights @ h.transpose(1, 2)).transpose(1, 2).flatten(2))


class Items(dict):
    """Lets code read its items as attributes."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Both(dict):
    """Holds its items as attributes, too, as easydict does."""

    def __init__(self, **items):
        super().__init__()
        for name, value in items.items():
            self[name] = value

    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        self.__dict__[name] = value


class Own(dict):
    """Has its items as its attributes: of these ``copy.deepcopy`` leaves none."""

    def __init__(self, **items):
        super().__init__(**items)
        self.__dict__ = self


class Fields(namedtuple("Fields", "heads")):
    """A tuple whose parts have names."""


class Stack(nn.Module):
    def __init__(self, kind=SimpleNamespace):
        super().__init__()
        self.config = kind(heads=4)
        self.layers = nn.ModuleList(Configured(self.config) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_shared_configuration_is_set_for_all_that_want_the_same():
    _, _, result = written(Stack())
    assert result.config.heads == 2
    assert all(layer.config is result.config for layer in result.layers)


@pytest.mark.parametrize("kind", [Items, Both, Fields])
def test_a_configuration_keeps_its_class(kind):
    _, _, result = written(Stack(kind))
    assert all(type(layer.config) is kind and layer.config.heads == 2 for layer in result.layers)
    assert not report_of(result).graphs


def test_a_configuration_that_is_its_own_attributes():
    model = randomise(Stack(Own).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert not report_of(result).graphs
    assert (model.config.heads, result.config.heads, result.config["heads"]) == (4, 2, 2)
    torch.testing.assert_close(result(TOKENS), small.eval()(TOKENS))


def test_modules_that_want_other_values_get_a_configuration_of_their_own():
    model = randomise(Stack().eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    families = fx_oto.partition(gm)
    for number, family in enumerate(families.families):
        families.zero_zigs_(number, torch.arange(1 + 2 * ("layers.1" in family.name)))
    small = fx_oto.compress(gm)
    result = fx_oto.write_back(small, model)
    assert [layer.config.heads for layer in result.layers] == [3, 1]
    assert result.layers[0].config is not result.layers[1].config
    assert model.config.heads == 4


class Literal(Attention):
    """Spells out a size that attributes do not explain."""

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 4, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def test_a_literal_makes_the_smallest_module_a_graph_of_its_own_class():
    model, small, result = written(Block(Literal()))
    (graph,) = report_of(result).graphs
    assert (graph.module, graph.kind) == ("inside", "Literal")
    assert "test_write_back.py" in graph.line
    assert "test_write_back.py" in str(report_of(result))
    assert type(result.inside) is Literal
    assert "forward" not in vars(result)
    assert list(result.state_dict()) == list(model.state_dict())
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert torch.equal(other(TOKENS), result(TOKENS))
        other.inside.qkv.weight.data.zero_()
        assert not torch.equal(other(TOKENS), result(TOKENS))
        other.load_state_dict(result.state_dict())
        assert torch.equal(other(TOKENS), result(TOKENS))
    result(TOKENS).sum().backward()
    small(TOKENS).sum().backward()
    assert torch.allclose(result.inside.qkv.weight.grad, small.get_parameter("inside.qkv.weight").grad)


class Masked(Literal):
    def forward(self, x, mask=None):
        out = super().forward(x)
        return out if mask is None else out * mask


def test_a_graph_refuses_arguments_that_it_was_not_made_for():
    _, _, result = written(Block(Masked()))
    assert [one.module for one in report_of(result).graphs] == ["inside"]
    with pytest.raises(fx_oto.InputError, match="mask was None"):
        result.inside(TOKENS[..., :8], torch.ones(1, dtype=torch.float64))


class RMSNorm(nn.Module):
    def __init__(self, width, offset=0.0):
        super().__init__()
        self.weight, self.eps, self.offset = nn.Parameter(torch.ones(width)), 1e-3, offset

    def forward(self, x):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * (self.offset + self.weight)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_an_rms_norm_of_the_users_keeps_its_class_and_its_code(offset):
    _, _, result = written(Block(Attention(), lambda width: RMSNorm(width, offset)))
    assert report_of(result).norms == ("norm",)
    assert result.norm.eps == 2e-3
    assert "forward" not in vars(result.norm)
    assert not report_of(result).graphs


def test_torchs_rms_norm_keeps_its_class():
    _, _, result = written(Block(Attention(), nn.RMSNorm))
    assert type(result.norm) is nn.RMSNorm
    assert result.norm.normalized_shape == (8,)


class OwnLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


def test_layer_norms_count_the_channels_that_are_gone():
    _, _, torchs = written(Block(Attention(), nn.LayerNorm))
    assert type(torchs.norm).__name__ == "LayerNormOver"
    assert [vars(one) for one in report_of(torchs).layers] == [
        {"module": "norm", "before": "LayerNorm", "after": "LayerNormOver"}
    ]
    _, _, own = written(Block(Attention(), OwnLayerNorm))
    assert type(own.norm) is OwnLayerNorm
    assert own.norm.normalized_shape == (8,)
    assert "counts those that are gone" in report_of(own).graphs[0].reason


def test_hooks_and_what_learns_stay():
    seen = []
    model = Block(Attention())
    model.first.register_forward_hook(lambda module, args, output: seen.append(module))
    model.last.bias.requires_grad_(False)
    _, _, result = written(model)
    assert not result.last.bias.requires_grad
    assert result.first.weight.requires_grad
    seen.clear()
    result(TOKENS)
    assert seen == [result.first]


def test_a_norm_in_the_place_of_another_keeps_its_hooks():
    seen = []
    model = Block(Attention())
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    _, _, result = written(model)
    seen.clear()
    result(TOKENS)
    assert seen == [(2, 6, 8)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.middle = nn.Embedding(11, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(F.relu(self.middle(self.embedding(tokens))) + self.embedding(tokens))


def test_tied_weights_stay_tied():
    model = randomise(Tied().eval()).double()
    tokens = torch.randint(11, (2, 5))
    gm = fx_oto.prepare(model, tokens)
    fx_oto.partition(gm).zero_(0.5)
    result = fx_oto.compress(gm, into=model)
    assert result.head.weight is result.embedding.weight
    assert (result.head.in_features, result.embedding.embedding_dim) == (8, 8)


def test_parametrizations_stay():
    _, _, result = written(nn.Sequential(weight_norm(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, 4)))
    assert list(result[0].parametrizations) == ["weight"]
    assert (result[0].out_features, tuple(result[0].weight.shape)) == (4, (4, 16))


def test_what_gone_channels_contributed_is_added_to_a_bias():
    _, small, result = written(nn.Sequential(nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 4, bias=False)))
    assert any("folded" in str(node.target) for node in small.graph.nodes)
    assert result[2].bias is not None
    assert not report_of(result).graphs


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.last = Attention(), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.inside(x + self.inside(x)))


def test_a_module_that_is_called_twice():
    _, _, result = written(Twice())
    assert result.inside.heads == 2
    assert not report_of(result).graphs


class Modes(nn.Module):
    """Does something else in training, in a module whose code does not fit."""

    def __init__(self):
        super().__init__()
        self.inside, self.drop = Literal(), nn.Dropout(0.3)

    def forward(self, x):
        x = self.inside(x)
        if self.training:
            x = x * 2
        return self.drop(F.dropout(x, 0.2, self.training))


def test_both_training_modes():
    _, _, result = written(Block(Modes()))
    assert {one.module for one in report_of(result).graphs} == {"inside.inside"}


class Asserting(nn.Module):
    """Compares a size with an attribute that nothing else reads."""

    def __init__(self):
        super().__init__()
        self.width, self.up, self.down = 16, nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = self.up(x)
        assert h.shape[-1] == self.width
        return self.down(F.relu(h))


def test_what_code_decides_by_is_an_equation():
    _, _, result = written(Block(Asserting()))
    assert result.inside.width == 8
    assert not report_of(result).graphs


def test_into_needs_the_model_that_was_prepared():
    model = randomise(Block(Attention()).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    with pytest.raises(fx_oto.MissingResultError, match="compress returned"):
        fx_oto.write_back(gm, model)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    with pytest.raises(fx_oto.InputError, match="prepared as a GraphModule"):
        fx_oto.write_back(small, fx_oto.trace(model, TOKENS))
    with pytest.raises(fx_oto.InputError, match=r"not the one that was compressed: .*weight"):
        fx_oto.write_back(small, nn.Linear(3, 3))
    other = Block(Attention()).double()
    other.forward = lambda x: other.last(other.inside(other.first(x)))
    with pytest.raises(fx_oto.InputError, match="computes something else"):
        fx_oto.write_back(small, other)
    with pytest.raises(fx_oto.MissingResultError, match="not written back"):
        fx_oto.WriteBack.of(model)


def test_a_report_shows_itself():
    _, _, result = written(Block(Literal(), RMSNorm))
    report = report_of(result)
    assert str(report).splitlines()[0] == "1 attribute was set, 1 norm scaled, and 1 module is a graph"
    assert report.to_dict()["graphs"][0]["module"] == "inside"
    assert report.modes == ("evaluation", "training")
    assert report.error <= 1e-10


def test_half_precision_is_looked_at_in_float32():
    """Of 64 channels one goes: an RMS norm over the others would be wrong by less than bfloat16 tells."""
    model = nn.Sequential(nn.Linear(16, 64), RMSNorm(64), nn.Linear(64, 4))
    model = randomise(model.eval()).to(torch.bfloat16)
    inputs = TOKENS.to(torch.bfloat16)
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_zigs_(0, torch.tensor([3]))
    result = fx_oto.compress(gm, into=model)
    assert report_of(result).norms == ("1",)
    assert result[0].weight.dtype == torch.bfloat16


def test_hooks_of_the_users_run_once_around_a_graph():
    model = Block(Literal())
    model.inside.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model.inside.register_forward_hook(lambda module, args, output: output * 3)
    _, _, result = written(model)
    assert [one.module for one in report_of(result).graphs] == ["inside"]


def test_a_model_that_cannot_be_copied_is_refused():
    model = randomise(Block(Attention()).eval()).double()
    gm = fx_oto.prepare(model, TOKENS)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    model.lines = iter([1]).__iter__
    model.file = open(__file__)  # noqa: SIM115
    with pytest.raises(fx_oto.InputError, match="cannot be copied"), model.file:
        fx_oto.write_back(small, model)


def test_numbers_that_code_in_c_hides_make_a_graph():
    class Hidden(Attention):
        def forward(self, x):
            heads = int(str(self.heads))
            h = self.qkv(x)[..., : self.inner].unflatten(-1, (heads, self.head_dim)).transpose(1, 2)
            return self.out(((h @ h.mT).softmax(-1) @ h).transpose(1, 2).flatten(2))

    _, _, result = written(Block(Hidden()))
    assert [one.module for one in report_of(result).graphs] == ["inside"]


def hooked(model):
    """Hooks that only read, as for distillation, and one that is not the model's own."""
    model.first.register_forward_hook(lambda module, args, output: None)
    model.inside.qkv.register_forward_pre_hook(lambda module, args: None)
    model.register_forward_hook(lambda module, args, output: output * 1)


def under_autocast(model):
    """As Accelerate does."""
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(type(model).forward), model)


def with_a_partial(model):
    """As Accelerate does where it moves weights."""
    model.first.forward = partial(lambda module, x: 3 * type(module).forward(module, x), model.first)


def layer_wrapped(model):
    forward = model.inside.out.forward
    model.inside.out.forward = lambda *args: forward(*args) * 3


def model_wrapped(model):
    forward = model.forward
    model.forward = lambda *args: forward(*args) * 3


def gradients_asked(model):
    model.first.register_forward_hook(lambda module, args, output: output.requires_grad_())


def has_own_forward(module):
    return "forward" in vars(module)


@pytest.mark.parametrize(
    "wrap", [hooked, under_autocast, with_a_partial, layer_wrapped, model_wrapped, gradients_asked]
)
@pytest.mark.parametrize("norm", [nn.LayerNorm, OwnLayerNorm])  # whose code becomes a graph
def test_what_others_have_put_on_the_model_since_is_left_out_and_left_on(wrap, norm):
    torch.manual_seed(0)  # in bfloat16 numbers may be rounded to either side
    model = randomise(Block(Attention(), norm).eval())
    inputs = torch.randn(2, 6, 16)
    gm = fx_oto.prepare(model, inputs)
    plain = copy.deepcopy(model)
    wrap(model)
    fx_oto.partition(gm).zero_(0.5)
    result = fx_oto.compress(gm, into=model)
    assert len(report_of(result).graphs) == (norm is OwnLayerNorm)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(fx_oto.compress(gm)(inputs), plain(inputs), rtol=1e-4, atol=1e-5)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        assert [len(vars(one)[hooks]) for one in (result, result.first, result.inside.qkv)] == [
            len(vars(one)[hooks]) for one in (model, model.first, model.inside.qkv)
        ]
    if wrap in (layer_wrapped, model_wrapped):  # which would call the model itself
        assert not any("forward" in vars(one) for one in (result, result.inside.out))
        torch.testing.assert_close(result(inputs), plain(inputs), rtol=1e-4, atol=1e-5)
    else:
        assert [*map(has_own_forward, result.modules())][:2] == [*map(has_own_forward, model.modules())][:2]
        torch.testing.assert_close(result(inputs), model(inputs), rtol=1e-2, atol=1e-2)


def test_a_model_with_other_weights_is_told():
    model = Block(Attention()).eval()
    gm = fx_oto.prepare(model, TOKENS.float())
    average = copy.deepcopy(model)
    fx_oto.partition(gm).zero_(0.5)
    with pytest.warns(UserWarning, match=r"'first.weight' of the model that into gives holds other numbers than gm"):
        fx_oto.compress(gm, into=average)
    average.load_state_dict(model.state_dict())
    assert type(fx_oto.compress(gm, into=average)) is Block


def test_in_inference_mode():
    model = Convolutions().eval()
    gm = fx_oto.prepare(model, IMAGES.float())
    fx_oto.partition(gm).zero_(0.5)
    with torch.inference_mode():
        result = fx_oto.compress(gm, into=model)
    torch.testing.assert_close(result(IMAGES.float()), model(IMAGES.float()))
    result.train()(IMAGES.float()).sum().backward()


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_what_lies_in_memory_with_channels_last_stays_so(ndim):
    kind = getattr(nn, f"Conv{ndim}d")
    model = nn.Sequential(kind(3, 16, 3), nn.ReLU(), kind(16, 16, 3, groups=2), nn.ReLU(), kind(16, 4, 1)).eval()
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}.get(ndim)
    inputs = torch.randn(2, 3, *[9] * ndim)
    if layout is None:
        for layer in (model[0], model[2]):
            layer.weight.data = layer.weight.data.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        model, inputs = model.to(memory_format=layout), inputs.to(memory_format=layout)
    gm = fx_oto.prepare(model, inputs)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for result in (small, fx_oto.compress(gm, into=model)):
        for name, parameter in result.named_parameters():
            before = model.get_parameter(name)
            order = sorted(range(before.dim()), key=lambda dim: -before.stride(dim))
            assert before.is_contiguous() or parameter.permute(order).is_contiguous()
            assert before.is_contiguous() or not parameter.is_contiguous() or 1 in parameter.shape
        torch.testing.assert_close(result(inputs), model(inputs))


def test_what_code_notes_on_parameters_is_kept():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    net[0].weight._no_weight_decay = True
    net[2].bias._optim = {"lr": 1e-3, "steps": [1, 2], "dtype": torch.float32}
    net[2].weight.owner, net[2].weight.scale = net, torch.ones(3)  # which would hold on to the whole model
    gm = fx_oto.prepare(net, torch.randn(2, 8))
    fx_oto.partition(gm).zero_(0.5)
    expected = {"0.weight": {"_no_weight_decay": True}, "2.bias": copy.deepcopy(net[2].bias._optim)}
    for small in (fx_oto.compress(gm), fx_oto.compress(gm, into=net)):
        noted = {name: vars(p) for name, p in small.named_parameters() if vars(p)}
        assert noted == {**expected, "2.bias": {"_optim": expected["2.bias"]}}
        small.get_parameter("2.bias")._optim["steps"].append(3)
        assert net[2].bias._optim == expected["2.bias"]


class Collecting(nn.Module):
    """Reads what hooks have collected, functions that speak of the model, or of a list of its own."""

    def __init__(self, in_dictionary):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head, self.found, self.in_dictionary = nn.Linear(16, 3), {} if in_dictionary else [], in_dictionary
        found = self.found
        for name in ("1", "3"):
            self.layers.get_submodule(name).register_forward_hook(
                self.keeping(name) if in_dictionary else lambda module, args, output: found.append(output)
            )

    def keeping(self, name):
        def keep(module, args, output):
            self.found[name] = output

        return keep

    def forward(self, x):
        self.found.clear()
        self.layers(x)
        return self.head(torch.cat(list(self.found.values() if self.in_dictionary else self.found), -1))


@pytest.mark.parametrize("in_dictionary", [False, True])
def test_hooks_speak_of_the_copy(in_dictionary):
    model = randomise(Collecting(in_dictionary).eval()).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    gm = fx_oto.prepare(model, x)
    model(x).sum().backward()  # which leaves tensors with a history
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm).eval()
    left = list(model.found)
    result = fx_oto.write_back(small, model)
    torch.testing.assert_close(result(x + 1), small(x + 1))
    assert result.head.in_features == 8
    assert list(model.found) == left


class Packing(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(20, 6), nn.GRU(6, 8, batch_first=True)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[0]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.score = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, packed):
        h, _ = pad_packed_sequence(packed, batch_first=True)
        return (self.score(torch.tanh(self.inner(h))).softmax(1) * h).sum(1)


class Summary(nn.Module):
    """A packed sequence goes from one of the user's modules to another."""

    def __init__(self):
        super().__init__()
        self.encoder, self.attention, self.last = Packing(), Attending(), nn.Linear(8, 3)

    def forward(self, tokens, lengths):
        return self.last(self.attention(self.encoder(tokens, lengths)))


def test_modules_that_hand_each_other_packed_sequences():
    torch.manual_seed(0)
    model = randomise(Summary().eval()).double()
    gm = fx_oto.prepare(model, (torch.randint(0, 20, (2, 5)), torch.tensor([5, 3])))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    result = fx_oto.write_back(fx_oto.compress(gm), model)
    assert not fx_oto.WriteBack.of(result).graphs
    assert result.attention.inner.in_features == 4
    for given in (
        (torch.randint(0, 20, (2, 5)), torch.tensor([2, 5])),
        (torch.ones(3, 4).long(), torch.tensor([4, 4, 1])),
    ):
        torch.testing.assert_close(result(*given), model(*given))
