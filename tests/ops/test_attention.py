"""Attention in its spellings: whole heads go, and the compact model returns the same outputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fx_oto
from fx_oto.nn.attention import FewerHeads

WIDTH, HEADS = 24, 4


class SelfAttention(nn.Module):
    """Fused projections, reshaped in the usual way."""

    def __init__(self, attend):
        super().__init__()
        self.qkv, self.out, self.attend = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), attend

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.attend(q, k, v).transpose(1, 2).reshape(batch, length, width))


class CrossAttention(nn.Module):
    """Separate projections; keys and values come from another sequence."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=i != 1) for i in range(4))

    def forward(self, x):
        def heads(value):
            return value.view(value.size(0), -1, HEADS, WIDTH // HEADS).transpose(1, 2)

        memory = x.flip(1)[:, 1:]
        y = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(memory)), heads(self.v(memory)))
        return self.out(y.transpose(1, 2).contiguous().view(x.size(0), -1, WIDTH))


class Masked(nn.Module):
    """A mask that is a buffer of the model."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.ones(8, 8, dtype=torch.bool).tril())

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


def explicit(q, k, v):
    return ((q * q.size(-1) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def einsum(q, k, v):
    return torch.einsum("bhls,bhsd->bhld", torch.einsum("bhld,bhsd->bhls", q, k).softmax(-1), v)


class Rotary(SelfAttention):
    """The two halves of each query and key are rotated by tables that all heads share."""

    def __init__(self):
        super().__init__(F.scaled_dot_product_attention)
        self.register_buffer("cos", torch.randn(8, WIDTH // HEADS))
        self.register_buffer("sin", torch.randn(8, WIDTH // HEADS))
        plain, self.attend = self.attend, lambda q, k, v: plain(self.turn(q), self.turn(k), v)

    def turn(self, x):
        turned, rest = x[..., : WIDTH // HEADS], x[..., WIDTH // HEADS :]  # nothing is left over here
        left, right = turned.chunk(2, dim=-1)
        turned = turned * self.cos + torch.cat((-right, left), dim=-1) * self.sin
        return torch.cat((turned, rest), dim=-1)


class Grouped(nn.Module):
    """Grouped-query attention: each key and value head serves two query heads."""

    def __init__(self, repeat):
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v, self.repeat = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2), repeat

    def forward(self, x):
        batch, length, _ = x.shape
        width = WIDTH // HEADS
        q = self.q(x).view(batch, length, HEADS, width).transpose(1, 2)
        k = self.k(x).view(batch, length, HEADS // 2, width).transpose(1, 2)
        v = self.v(x).view(batch, length, HEADS // 2, width).transpose(1, 2)
        if self.repeat is None:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, self.repeat(k), self.repeat(v))
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


def expanded(x):
    batch, heads, length, width = x.shape
    return x[:, :, None].expand(batch, heads, 2, length, width).reshape(batch, heads * 2, length, width)


GROUPED = {
    "by the kernel": None,
    "by expand": expanded,
    "by repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
}


class Module(nn.Module):
    """``nn.MultiheadAttention`` in its forms."""

    def __init__(self, need_weights=True, cross=False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True} | options)
        self.need_weights, self.cross = need_weights, cross

    def forward(self, x):
        x = x if self.attention.batch_first else x.transpose(0, 1)
        memory = x.flip(1) if self.cross else x
        y = self.attention(x, memory, memory, need_weights=self.need_weights)[0]
        return y if self.attention.batch_first else y.transpose(0, 1)


ATTENTIONS = {
    "fused": lambda: SelfAttention(F.scaled_dot_product_attention),
    "fused, causal": lambda: SelfAttention(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    "fused, masked": lambda: SelfAttention(Masked()),
    "explicit": lambda: SelfAttention(explicit),
    "einsum": lambda: SelfAttention(einsum),
    "linear": lambda: SelfAttention(lambda q, k, v: q @ (k.transpose(-2, -1).softmax(-1) @ v)),
    "separate": CrossAttention,
    "rotary": Rotary,
    "module": Module,
    "module, weights not asked for": lambda: Module(need_weights=False),
    "module, sequence first": lambda: Module(batch_first=False),
    "module, cross": lambda: Module(cross=True),
    "module, without biases": lambda: Module(bias=False),
    "module, separate projections": lambda: Module(kdim=WIDTH, vdim=WIDTH),
}


class Transformer(nn.Module):
    """One block with a class token and a positional embedding, over tokens of five features."""

    def __init__(self, attention):
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.position = nn.Parameter(torch.randn(1, 8, WIDTH))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.size(0), -1, -1), self.embed(x)], 1) + self.position
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_whole_heads_go(name):
    torch.manual_seed(0)
    result = compress_half(Transformer(ATTENTIONS[name]()), torch.randn(2, 7, 5), sensitive=False)
    sizes = sorted(len(family) for family in fx_oto.partition(result.gm).families)
    assert sizes == [HEADS, WIDTH, 32]


def test_a_single_head_loses_channels():
    torch.manual_seed(0)
    alone = Module()
    alone.attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)
    result = compress_half(Transformer(alone), torch.randn(2, 7, 5), sensitive=False)
    assert sorted(map(len, fx_oto.partition(result.gm).families)) == [WIDTH, WIDTH, WIDTH, 32]
    attention = result.small.get_submodule("attention.attention")
    assert attention.in_proj_weight.shape == (3 * WIDTH // 2, WIDTH // 2)


def test_a_module_that_is_called_twice_loses_heads():
    attention = Module()
    result = compress_half(
        Transformer(nn.Sequential(attention, nn.Linear(WIDTH, WIDTH), attention)), torch.randn(2, 7, 5), sensitive=False
    )
    assert HEADS in map(len, fx_oto.partition(result.gm).families)


@pytest.mark.parametrize("name", GROUPED)
def test_query_heads_go_with_the_key_head_that_serves_them(name):
    torch.manual_seed(0)
    result = compress_half(Transformer(Grouped(GROUPED[name])), torch.randn(2, 7, 5), sensitive=False)
    assert sorted(len(family) for family in fx_oto.partition(result.gm).families) == [HEADS // 2, WIDTH, 32]
    assert result.small.get_submodule("attention.q").out_features == WIDTH // 2


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_layers_are_entered(norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True, norm_first=norm_first)
    net = nn.Sequential(nn.Linear(5, WIDTH), layer, nn.Linear(WIDTH, 3))
    result = compress_half(net, torch.randn(2, 7, 5), sensitive=False)
    assert sorted(len(family) for family in fx_oto.partition(result.gm).families) == [HEADS, WIDTH, 32]


@pytest.mark.filterwarnings("ignore:TransformerEncoder|.*captured by torch.export:fx_oto.FxOtoWarning")
def test_torchs_encoder_is_pruned_through_export():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    net = randomise(nn.Sequential(nn.Linear(5, WIDTH), encoder, nn.Linear(WIDTH, 3)).double().eval())
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    gm = fx_oto.prepare(net, x[:2])
    assert sorted(map(len, fx_oto.partition(gm).zero_(0.5).families)) == [HEADS, HEADS, WIDTH, 32, 32]
    torch.testing.assert_close(fx_oto.compress(gm)(x), net(x), rtol=1e-10, atol=1e-12)


class Pooled(nn.Module):
    """Queries and keys pass a convolution for each channel of a head, the same one for all heads."""

    def __init__(self, groups):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        width = WIDTH // HEADS
        self.pools = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False, groups=groups) for _ in "qk")

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (self.pool(conv, tokens) for conv, tokens in zip(self.pools, (q, k), strict=True))
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))

    def pool(self, conv, x):
        y = conv(x.reshape(-1, 3, 3, x.shape[-1]).permute(0, 3, 1, 2)).flatten(2)
        return y.reshape(-1, HEADS, y.shape[1], y.shape[2]).transpose(2, 3)


@pytest.mark.parametrize("groups", [1, 2, WIDTH // HEADS])
def test_heads_that_are_convolved_as_images(groups):
    net = nn.Sequential(nn.Linear(5, WIDTH), Pooled(groups), nn.Linear(WIDTH, 3))
    result = compress_half(net, torch.randn(2, 9, 5))
    assert [len(family) for family in fx_oto.partition(result.gm).families].count(WIDTH) == 2
    assert result.params_left < 0.65


class Fused(nn.Module):
    """A few heads from a fused projection, which are mixed before they meet the values."""

    def __init__(self, split, heads):
        super().__init__()
        self.qkv, self.out, self.split = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), split
        self.mix = nn.Linear(heads, heads)

    def forward(self, x):
        q, k, v = (part.transpose(1, 2) for part in self.split(self.qkv(x)))
        attention = self.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((attention @ v).transpose(1, 2).flatten(2))


SPLITS = {
    "unbind": lambda x, heads: x.unflatten(-1, (3, heads, -1)).unbind(2),
    "unpacking": lambda x, heads: x.unflatten(-1, (3, heads, -1)).permute(2, 0, 1, 3, 4),
    "selecting": lambda x, heads: [x.unflatten(-1, (3, heads, -1))[:, :, i] for i in range(3)],
}


@pytest.mark.parametrize("heads", [2, 3, 6])
@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_one_tensor_lose_the_same_heads(split, heads):
    fused = Fused(lambda x: SPLITS[split](x, heads), heads)
    result = compress_half(nn.Sequential(nn.Linear(5, WIDTH), fused, nn.Linear(WIDTH, 3)), torch.randn(2, 7, 5))
    families = fx_oto.partition(result.gm).families
    assert sorted(map(len, families)) == [heads, WIDTH, WIDTH]


def test_parts_that_are_sliced_out_of_one_tensor_lose_what_they_like():
    class OneFused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, WIDTH)).unbind(-2)
            return self.out((q @ k.transpose(-2, -1)).softmax(-1) @ v)

    result = compress_half(OneFused(), torch.randn(2, 7, WIDTH))
    assert sorted(map(len, fx_oto.partition(result.gm).families)) == [WIDTH, WIDTH]


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.arange(7).expand(2, 7) > 4},
    "boolean": {"attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(1)},
    "both": {
        "key_padding_mask": torch.arange(7).expand(2, 7) > 4,
        "attn_mask": torch.ones(7, 7, dtype=torch.bool).triu(3),
    },
    "for each head": {"attn_mask": torch.randn(2 * HEADS, 7, 7).double()},
}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True, "bias": False},
        {"kdim": 5, "vdim": 6},
    ],
    ids=str,
)
def test_fewer_heads_computes_what_torchs_module_does(options, mask, need_weights):
    torch.manual_seed(0)
    full = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True} | options).double().eval()
    sizes = (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH))
    tokens = [torch.randn(2, 7, size, dtype=torch.float64) for size in sizes]
    if not full.batch_first:
        tokens = [part.transpose(0, 1) for part in tokens]
    expected = full(*tokens, need_weights=need_weights, **MASKS[mask])
    found = FewerHeads(full, HEADS)(*tokens, need_weights=need_weights, **MASKS[mask])
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if need_weights:
        torch.testing.assert_close(found[1], expected[1])


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name.startswith("module")])
def test_a_second_round_takes_more_heads(name, attention):
    x = torch.randn(2, 7, 5)
    first = compress_half(Transformer(ATTENTIONS[name]()), x, attention=attention)
    second = compress_half(first.small, x, attention=attention)
    before, after = (sorted(map(len, fx_oto.partition(result.gm).families)) for result in (first, second))
    assert after == [size - size // 2 for size in before]


def test_a_second_round_may_take_heads_that_are_narrower_by_the_first():
    x = torch.randn(2, 7, 5)
    first = compress_half(Transformer(Module()), x, attention="head_dim")
    second = compress_half(first.small, x, attention="heads")
    assert HEADS in map(len, fx_oto.partition(second.gm).families)
    assert second.small.get_submodule("attention.attention").num_heads == HEADS // 2


def test_fewer_heads_takes_one_sequence_without_a_batch():
    full = nn.MultiheadAttention(WIDTH, HEADS).double().eval()
    x = torch.randn(7, WIDTH, dtype=torch.float64)
    for found, expected in zip(FewerHeads(full, HEADS)(x, x, x), full(x, x, x), strict=True):
        torch.testing.assert_close(found, expected)


class OneHead(nn.Module):
    """A single head, of which single channels go: the default scale stays that of the original width."""

    def __init__(self, by_name=False):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.by_name = by_name

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        attend = F.scaled_dot_product_attention
        return self.out(attend(query=q, key=k, value=v) if self.by_name else attend(q, k, v))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_default_scale_survives_fewer_channels(by_name):
    result = compress_half(OneHead(by_name), torch.randn(2, 8, WIDTH))
    assert result.zigs == 2 * WIDTH
    assert result.params_left < 0.6


@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_head_loses_the_same_part_of_its_width(name):
    torch.manual_seed(0)
    result = compress_half(Transformer(ATTENTIONS[name]()), torch.randn(2, 7, 5), sensitive=False, attention="head_dim")
    together = name.startswith(("fused", "explicit", "einsum", "linear", "rotary"))  # in one reshape
    width = WIDTH // HEADS // (2 if name == "rotary" else 1)  # which turns pairs
    sizes = sorted(len(family) for family in fx_oto.partition(result.gm).families)
    assert sizes == [*[width] * (1 if together else 2), WIDTH, 32]
    rows = sum(p.size(0) for n, p in result.small.named_parameters() if "weight" in n and _projects(n))
    assert rows == 3 * WIDTH * (width - width // 2) // width


ALIKE = ATTENTIONS | {f"grouped, {name}": partial(Grouped, repeat) for name, repeat in GROUPED.items()}


@pytest.mark.parametrize("attention", ["heads", "head_dim"])
@pytest.mark.parametrize("name", ALIKE)
def test_what_is_reached_is_what_the_compact_model_computes(name, attention):
    """Of 0.9, one position of each head's width is left, over which ``einsum`` does not sum."""
    torch.manual_seed(0)
    model, x = Transformer(ALIKE[name]()), torch.randn(2, 7, 5)
    gm, full = fx_oto.prepare(model, x, attention=attention), fx_oto.cost(model, x)
    state = {name: tensor.clone() for name, tensor in gm.state_dict().items()}
    for fraction in (0.3, 0.6, 0.9):
        zigs = fx_oto.partition(gm).zero_(fraction, torch.Generator().manual_seed(0))
        compact = fx_oto.cost(small := fx_oto.compress(gm, verify=False), x)
        assert (zigs.macs.total, zigs.macs.left(zigs.removed())) == (full.macs, compact.macs)
        assert fx_oto.report(small).records[-1].macs == (full.macs, compact.macs)
        gm.load_state_dict(state)
    reached = fx_oto.prune(gm, target_macs=0.6)
    assert reached["macs"] == fx_oto.cost(fx_oto.compress(gm, verify=False), x).macs / full.macs <= 0.6


def _projects(name):
    return any(part in name for part in ("qkv", "in_proj", "attention.q", "attention.k", "attention.v", "_proj_weight"))


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_heads_lose_the_same_part_of_their_width(name):
    torch.manual_seed(0)
    result = compress_half(
        Transformer(Grouped(GROUPED[name])), torch.randn(2, 7, 5), sensitive=False, attention="head_dim"
    )
    width = WIDTH // HEADS
    assert sorted(map(len, fx_oto.partition(result.gm).families)) == [width, width, WIDTH, 32]
    assert result.small.get_submodule("attention.q").out_features == WIDTH // 2
    assert result.small.get_submodule("attention.k").out_features == WIDTH // 4


class Normed(SelfAttention):
    """Queries and keys are normed, each head for itself."""

    def __init__(self, norm):
        super().__init__(F.scaled_dot_product_attention)
        self.q_norm, self.k_norm = norm(WIDTH // HEADS), norm(WIDTH // HEADS)
        plain, self.attend = self.attend, lambda q, k, v: plain(self.q_norm(q), self.k_norm(k), v)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize(("attention", "size"), [("heads", HEADS), ("head_dim", WIDTH // HEADS)])
def test_normed_queries_and_keys(norm, attention, size):
    torch.manual_seed(0)
    result = compress_half(Transformer(Normed(norm)), torch.randn(2, 7, 5), sensitive=False, attention=attention)
    assert sorted(map(len, fx_oto.partition(result.gm).families)) == sorted([size, WIDTH, 32])
    assert result.small.get_submodule("attention.qkv").out_features == 3 * WIDTH // 2


def test_heads_of_width_two(monkeypatch):
    """As many parts, queries with keys and values, as there are widths: it is widths that go."""
    monkeypatch.setitem(globals(), "HEADS", WIDTH // 2)
    result = compress_half(
        Transformer(ATTENTIONS["fused"]()), torch.randn(2, 7, 5), sensitive=False, attention="head_dim"
    )
    assert sorted(map(len, fx_oto.partition(result.gm).families)) == [2, WIDTH, 32]


def test_queries_and_values_may_lose_different_widths():
    """The module that takes the place of torch's is told apart by what is left of the two."""
    torch.manual_seed(0)
    net = randomise(Transformer(Module()).double().eval())
    gm = fx_oto.prepare(net, torch.randn(2, 7, 5, dtype=torch.float64), attention="head_dim")
    zigs, x = fx_oto.partition(gm), torch.randn(3, 7, 5, dtype=torch.float64)
    scored, valued = (i for i, family in enumerate(zigs.families) if len(family) == WIDTH // HEADS)
    zigs.zero_zigs_(scored, torch.tensor([0, 3]))
    zigs.zero_zigs_(valued, torch.tensor([1, 2, 4]))
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-12)
    attention = small.get_submodule("attention.attention")
    assert len(attention.in_proj_weight) == HEADS * (4 + 4 + 3)
    assert attention.out_proj.in_features == HEADS * 3


def test_an_unknown_kind_of_attention():
    with pytest.raises(fx_oto.SettingsError, match=r"attention must be 'heads' or 'head_dim', found 'head'"):
        fx_oto.prepare(OneHead(), torch.randn(2, 8, WIDTH), attention="head")
    with pytest.raises(fx_oto.SettingsError, match=r"found \['heads'\]"):
        fx_oto.DependencyAnalysis(attention=["heads"])
    with pytest.raises(fx_oto.SettingsError, match=r"without train=…, .* so attention cannot be used"):
        fx_oto.compress(OneHead(), attention="head_dim")


class Functional(nn.Module):
    """torch's function itself, as attention pooling calls it; the projections are layers of the model."""

    def __init__(self, separate=True, **options):
        super().__init__()
        self.before = nn.Linear(6, WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.separate, self.options = separate, options

    def forward(self, x):
        x = torch.cat([x.mean(1, keepdim=True), x], 1).transpose(0, 1)
        x = self.before(x)
        layers = self.q, self.k, self.v
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = {name: one.weight for name, one in zip(names, layers, strict=True)}
        options = {"training": self.training, "need_weights": False, **self.options}
        if options.pop("masked", False):
            options["key_padding_mask"] = (x[..., 0] > 1).transpose(0, 1)
        found, _ = F.multi_head_attention_forward(
            *(x, x, x, x.shape[-1], HEADS),
            None if self.separate else torch.cat(list(weights.values())),
            torch.cat([one.bias for one in layers]),
            *(None, None, False, 0.0),
            self.out.weight,
            self.out.bias,
            use_separate_proj_weight=self.separate,
            **(weights if self.separate else {}),
            **options,
        )
        return found[0]


@pytest.mark.parametrize(
    ("options", "left"),
    [({}, 0.4), ({"separate": False}, 0.4), ({"masked": True}, 0.4), ({"need_weights": True}, 0.7)],
    ids=["separate", "packed", "masked", "a mean over all heads"],
)
def test_the_function_that_is_the_module(options, left):
    found = compress_half(Functional(**options), torch.randn(3, 5, 6), any_size=True)
    assert found.params_left < left


KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "one of": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "math": SDPBackend.MATH,
}


class InContext(nn.Module):
    """A layer whose code chooses the kernel that computes its attention."""

    def __init__(self, layer, kernels):
        super().__init__()
        self.layer, self.kernels = layer, kernels

    def forward(self, x):
        with sdpa_kernel(self.kernels):
            of_torch = type(self.layer) is nn.MultiheadAttention
            return self.layer(x, x, x, need_weights=False)[0] if of_torch else self.layer(x)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("layer", ["function", "module"])
def test_code_that_chooses_a_kernel(layer, kernels):
    """Its op had no rule, so that heads were kept whole."""
    torch.manual_seed(0)
    made = SelfAttention(F.scaled_dot_product_attention) if layer == "function" else None
    made = made or nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    done = compress_half(InContext(made, KERNELS[kernels]), torch.randn(2, 5, WIDTH))
    assert done.zigs == HEADS
    assert done.params_left < 0.6
