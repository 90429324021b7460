"""einops, as functions, layers and in networks: captured with the modules, at every size, in both modes."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from support.kinds import holds, tokens_around
from torch import nn

import fx_oto

einops = pytest.importorskip("einops")
torch_layers = pytest.importorskip("einops.layers.torch")
einsum, pack, rearrange, reduce = einops.einsum, einops.pack, einops.rearrange, einops.reduce
repeat, unpack, parse_shape = einops.repeat, einops.unpack, einops.parse_shape
Rearrange, Reduce, EinMix = torch_layers.Rearrange, torch_layers.Reduce, torch_layers.EinMix

TOKENS, OTHERS = torch.randn(2, 6, 4), [torch.randn(3, 6, 4), torch.randn(1, 10, 4), torch.randn(2, 4, 4)]


def packed(h, x):
    both, shapes = pack([h, h[:, :1]], "b * c")
    first, second = unpack(both, shapes, "b * c")
    return first + second


# (batch, length, 12), of which the last dimension stays 12.
FUNCTIONS = {
    "heads": lambda h, x: rearrange(h, "b t (h d) -> b h t d", h=3).softmax(-1).flatten(1, 2)[..., :1] + h[:, :1, :12],
    "heads and back": lambda h, x: rearrange(rearrange(h, "b t (h d) -> b h t d", h=3), "b h t d -> b t (h d)"),
    "transposed": lambda h, x: rearrange(rearrange(h, "b t c -> b c t").cumsum(-1), "b c t -> b t c"),
    "batch and length merged": lambda h, x: rearrange(
        rearrange(h, "b t c -> (b t) c"), "(b t) c -> b t c", b=x.size(0)
    ),
    "by the batch's size": lambda h, x: rearrange(h.flatten(0, 1), "(b t) c -> b t c", b=x.shape[0]),
    "by the length's size": lambda h, x: rearrange(h.flatten(0, 1), "(b t) c -> b t c", t=x.shape[1]),
    "pairs of steps": lambda h, x: rearrange(h, "b (t p) c -> b t (p c)", p=2)[..., :12],
    "ellipsis": lambda h, x: rearrange(h, "... (h d) -> ... d h", h=4).flatten(-2),
    "unit axes": lambda h, x: rearrange(rearrange(h, "b t c -> b 1 t c"), "b 1 t c -> b t c"),
    "mean": lambda h, x: h + reduce(h, "b t c -> b 1 c", "mean"),
    "max": lambda h, x: reduce(h, "b t c -> b c", "max"),
    "sum over pairs": lambda h, x: reduce(h, "b (t p) c -> b t c", "sum", p=2),
    "own reduction": lambda h, x: reduce(h, "b t c -> b c", torch.amax),
    "repeated": lambda h, x: h * repeat(h[:, 0], "b c -> b t c", t=x.shape[1]),
    "repeated channels": lambda h, x: repeat(h[..., :4], "b t c -> b t (c r)", r=3),
    "repeated for the batch": lambda h, x, m: h + repeat(m.scale, "c -> b t c", b=x.shape[0], t=x.shape[1]),
    "einsum": lambda h, x: einsum(einsum(h, h, "b t c, b s c -> b t s").softmax(-1), h, "b t s, b s c -> b t c"),
    "packed": packed,
    "parse_shape": lambda h, x: rearrange(h.flatten(0, 1), "(b t) c -> b t c", **parse_shape(x, "b t _")),
    "list": lambda h, x: rearrange([h, h * 2], "two b t c -> b t (two c)")[..., :12],
    "in training only": lambda h, x, m: rearrange(h, "b t c -> b t c") * 2 if m.training else h,
    "a named part": lambda h, x: rearrange(h, "b t (c r) -> b t (r c)", r=3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    found = holds(tokens_around(FUNCTIONS[name]), TOKENS, OTHERS, any_size=False)
    assert fx_oto.Context.of(found.gm).capture.front_end == "fx_oto"
    assert not any(sized.is_batch for sized in found.checked)


class Patches(nn.Module):
    """Patches of 4 × 4 by a layer or a function, as vision transformers of einops begin."""

    def __init__(self, how):
        super().__init__()
        text, sizes = "b c (h p) (w q) -> b (h w) (p q c)", {"p": 4, "q": 4}
        self.stem, self.how = nn.Conv2d(3, 8, 3, padding=1), how
        layer = Rearrange(text, **sizes) if how == "layer" else nn.Identity()
        self.embed = nn.Sequential(layer, nn.LayerNorm(128), nn.Linear(128, 32))
        self.mlp = nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 32))
        self.head = nn.Sequential(Reduce("b n c -> b c", "mean") if how == "layer" else nn.Identity(), nn.Linear(32, 4))

    def forward(self, x):
        x = self.stem(x)
        if self.how == "function":
            x = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4)
        x = self.embed(x)
        x = x + self.mlp(x)
        return self.head(x if self.how == "layer" else reduce(x, "b n c -> b c", "mean"))


@pytest.mark.parametrize("how", ["layer", "function"])
def test_patches(how):
    images = [torch.randn(3, 3, 16, 16), torch.randn(1, 3, 8, 24)]
    found = holds(Patches(how), torch.randn(2, 3, 16, 16), images)
    assert found.zigs >= 4 + 16 + 12


class Attention(nn.Module):
    """As in lucidrains' networks: one linear layer for queries, keys and values."""

    def __init__(self, width=16, heads=4, inner=8):
        super().__init__()
        self.heads, self.scale = heads, inner**-0.5
        self.norm, self.attend, self.dropout = nn.LayerNorm(width), nn.Softmax(dim=-1), nn.Dropout(0.1)
        self.to_qkv = nn.Linear(width, 3 * heads * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * inner, width), nn.Dropout(0.1))

    def forward(self, x):
        q, k, v = (
            rearrange(part, "b n (h d) -> b h n d", h=self.heads) for part in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        attention = self.dropout(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale))
        return self.to_out(rearrange(torch.matmul(attention, v), "b h n d -> b n (h d)"))


class Transformer(nn.Module):
    """A small vision transformer in that style, with a class token."""

    def __init__(self, width=16, depth=2):
        super().__init__()
        self.to_patches = nn.Sequential(Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4), nn.Linear(48, width))
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 65, width))
        self.blocks = nn.ModuleList(
            nn.ModuleList([Attention(width), nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 24), nn.GELU())])
            for _ in range(depth)
        )
        self.outs = nn.ModuleList(nn.Linear(24, width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, image):
        x = self.to_patches(image)
        b, n, _ = x.shape
        x = torch.cat((repeat(self.token, "1 1 d -> b 1 d", b=b), x), dim=1)
        x = x + self.places[:, : n + 1]
        for (attention, mlp), out in zip(self.blocks, self.outs, strict=True):
            x = x + attention(x)
            x = x + out(mlp(x))
        return self.head(self.norm(x)[:, 0])


def test_a_transformer_of_einops_is_cut_whole_at_every_size():
    found = holds(Transformer(), torch.randn(2, 3, 16, 16), [torch.randn(3, 3, 16, 16), torch.randn(1, 3, 8, 24)])
    assert found.params_left < 0.6


@pytest.mark.parametrize("layer", ["EinMix", "Reduce max", "nested"])
def test_layers(layer):
    made = {
        "EinMix": lambda: EinMix("b t c -> b t d", weight_shape="c d", bias_shape="d", c=12, d=12),
        "Reduce max": lambda: Reduce("b (t p) c -> b t c", "max", p=2),
        "nested": lambda: nn.Sequential(Rearrange("b t c -> b c t"), nn.BatchNorm1d(12), Rearrange("b c t -> b t c")),
    }[layer]()
    model = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), made, nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    holds(model, TOKENS, OTHERS)


class Typed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 4, 4), nn.BatchNorm2d(16)
        self.fc, self.out = nn.Linear(16, 512), nn.Linear(512, 20)

    def forward(self, x):
        return self.out(self.fc(rearrange(self.bn(self.conv(x)), "b c h w -> b (h w) c")).relu().mean(1))


def test_modules_hooks_and_what_asks_for_types_are_as_in_the_model():
    model, x = Typed(), torch.randn(2, 3, 16, 16)
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm).eval()
    for module in (gm, small):
        for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
            assert sum(isinstance(m, kind) for m in module.modules()) == sum(
                isinstance(m, kind) for m in model.modules()
            )
    fired = []
    small.get_submodule("fc").register_forward_hook(lambda *seen: fired.append(seen))
    small(x)
    assert len(fired) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(small, {nn.Linear}, dtype=torch.qint8)
    assert _size(quantised) < 0.6 * _size(small)


def _size(module):
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.tell()


def test_einops_remembers_nothing_of_the_capture():
    """It caches what it found out about shapes; numbers that remember a graph must not stay there."""
    model, x = Patches("function").eval(), torch.randn(2, 3, 16, 16)
    fx_oto.prepare(model, x)
    for cached in (
        vars(einops.einops)["_reconstruct_from_shape"],
        vars(einops.einops)["_prepare_transformation_recipe"],
    ):
        assert cached.cache_info().currsize >= 0
    shapes = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4).shape
    assert all(type(size) is int for size in shapes)
    other = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(fx_oto.prepare(model, x).eval()(other), model(other))


def test_two_models_in_a_row_share_einops_caches():
    for _ in range(2):
        holds(Patches("layer"), torch.randn(2, 3, 16, 16), [torch.randn(3, 3, 16, 16)])
