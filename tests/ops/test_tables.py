"""A table of positions, which is not trained, is added before norms: what it was worth in a channel is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half
from torch import nn

import fx_oto

WIDTH, HIDDEN, EXAMPLE = 16, 24, torch.randn(2, 5, 6)
STREAM, INNER = WIDTH, HIDDEN  # the groups of each family


def waves(length, width):
    """Sines beside cosines, channel by channel."""
    angles = torch.arange(length)[:, None] * torch.exp(-torch.arange(0, width, 2) * (math.log(1e4) / width))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


def halves(length, width):
    """All sines, then all cosines."""
    angles = torch.arange(length)[:, None] / 1e4 ** (torch.arange(width // 2) / width)
    return torch.cat((angles.sin(), angles.cos()), 1)


class Written(nn.Module):
    """A norm that is written out."""

    def __init__(self, width, kind):
        super().__init__()
        self.kind, self.weight, self.bias = kind, nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return WRITTEN[self.kind](x) * self.weight + self.bias


def centred(x):
    return x - x.mean(-1, keepdim=True)


WRITTEN = {
    "means": lambda x: centred(x) / (centred(x).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(),
    "mean of squares": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5),
    "var": lambda x: centred(x) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt(),
    "unbiased std": lambda x: centred(x) / (x.std(-1, keepdim=True) + 1e-5),
    "var_mean": lambda x: (x - torch.var_mean(x, -1, keepdim=True)[1]) / torch.var_mean(x, -1, keepdim=True)[0].sqrt(),
    "layer_norm": lambda x: F.layer_norm(x, (x.shape[-1],)),
    "rms_norm": lambda x: F.rms_norm(x, (x.shape[-1],)),
    "group_norm": lambda x: F.group_norm(x.transpose(1, 2), 1).transpose(1, 2),
}
NORMS = {
    "LayerNorm": nn.LayerNorm,
    "LayerNorm without weights": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "RMSNorm": nn.RMSNorm,
    "RMSNorm without weights": lambda width: nn.RMSNorm(width, elementwise_affine=False, eps=1e-5),
    **{kind: lambda width, kind=kind: Written(width, kind) for kind in WRITTEN},
}


class Net(nn.Module):
    """A residual block between two norms, with a table of positions before."""

    def __init__(self, add, norm="LayerNorm"):
        super().__init__()
        self.add, self.stem = add, nn.Linear(6, WIDTH)
        self.first, self.last = NORMS[norm](WIDTH), NORMS[norm](WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, 4)
        self.token, self.dropout = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Dropout(0.1)
        self.plain = waves(40, WIDTH)
        self.register_buffer("table", waves(40, WIDTH))
        self.untrained = nn.Parameter(waves(40, WIDTH)[None], requires_grad=False)
        self.register_buffer("batched", waves(5, WIDTH)[None])
        self.embedding = nn.Embedding(40, WIDTH).requires_grad_(False)

    def forward(self, x):
        x = self.add(self, self.stem(x))
        x = x + self.down(F.gelu(self.up(self.first(x))))
        return self.head(self.last(x))


def with_token(m, x):
    return torch.cat((m.token.expand(len(x), -1, -1), x), 1)


def in_place(m, x):
    x += m.table[: x.shape[1]]
    return x


def in_place_by_method(m, x):
    return x.mul_(2.0).add_(m.table[: x.shape[1]])


def places(x):
    return (x.detach().abs().amax(-1) * 8).long() % 40


def masked(m, x, spread):
    """As masked autoencoders do: some tokens are picked, the others are a learned one, and all are put in order."""
    order, x = x.detach().sum(-1).argsort(1), x + m.table[: x.shape[1]]
    picked = torch.gather(x, 1, spread(order[:, : x.shape[1] // 2].unsqueeze(-1), x.shape[-1]))
    rest = m.token.repeat(len(x), x.shape[1] - picked.shape[1], 1)
    return torch.gather(torch.cat((picked, rest), dim=1), dim=1, index=spread(order.argsort(1).unsqueeze(-1), WIDTH))


TABLES = {
    "masked, by repeat": lambda m, x: masked(m, x, lambda index, width: index.repeat(1, 1, width)),
    "masked, by expand": lambda m, x: masked(m, x, lambda index, width: index.expand(-1, -1, width)),
    "all of it": lambda m, x: x + m.batched,
    "sliced": lambda m, x: x + m.table[: x.shape[1]],
    "in front": lambda m, x: m.table[: x.size(1)].unsqueeze(0) + x,
    "no buffer": lambda m, x: x + m.plain[: x.shape[1]].to(x.device, dtype=x.dtype),
    "cast": lambda m, x: x + m.plain[: x.shape[1]].to(x),
    "in place": in_place,
    "in place by a method": in_place_by_method,
    "looked up": lambda m, x: x + F.embedding(torch.arange(x.shape[1]), m.table),
    "from an offset": lambda m, x: x + m.table[2 : x.shape[1] + 2].detach(),
    "two": lambda m, x: x + m.table[: x.shape[1]] - 0.5 * m.table.flip(0)[: x.shape[1]],
    "scaled before": lambda m, x: x * math.sqrt(WIDTH) + m.table[: x.shape[1]],
    "scaled after": lambda m, x: 0.3 * (x + m.table[: x.shape[1]]),
    "dropout": lambda m, x: m.dropout(x + m.table[: x.shape[1]]),
    "functional dropout": lambda m, x: F.dropout(x + m.table[: x.shape[1]], 0.1, m.training),
    "behind a token": lambda m, x: with_token(m, x + m.table[: x.shape[1]]),
    "with a token": lambda m, x: with_token(m, x) + m.table[: x.shape[1] + 1],
    "with a token apart": lambda m, x: torch.cat((with_token(m, x)[:, :1] + m.table[:1], x + m.table[1:6].mean(0)), 1),
    "transposed": lambda m, x: (x + m.table[: x.shape[1]]).transpose(0, 1),
    "last first": lambda m, x: (x.permute(2, 0, 1) + m.table.t()[:, None, : x.shape[1]]).permute(1, 2, 0),
    "reshaped": lambda m, x: (x + m.table[: x.shape[1]]).view(len(x), x.shape[1], 1, WIDTH).squeeze(2),
    "stretched": lambda m, x: (x + m.table[: x.shape[1]])[:, :, None].expand(-1, -1, 2, -1).flatten(1, 2),
    "at places of the input": lambda m, x: x + m.table[places(x)],
    "looked up at places of the input": lambda m, x: x + F.embedding(places(x), m.table),
    "their mean": lambda m, x: (x + m.table[: x.shape[1]]).mean(1, keepdim=True),
    "by a number of data": lambda m, x: x + m.table[: x.shape[1]] * x.amax(-1, keepdim=True).sigmoid(),
}
COMPUTED = {  # sine and cosine of a wave go together
    "waves": lambda m, x: x + waves(x.shape[1], WIDTH),
    "halves": lambda m, x: x + halves(x.shape[1], x.shape[-1]).to(x.device, x.dtype),
    "as the type of": lambda m, x: halves(x.shape[1], WIDTH).type_as(x) + x,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_before_a_norm(name):
    found = compress_half(Net(TABLES[name]), EXAMPLE, any_size=name != "all of it")
    assert found.zigs == STREAM + INNER
    assert found.params_left < 0.4


@pytest.mark.parametrize("name", COMPUTED)
def test_a_table_that_forward_computes(name):
    found = compress_half(Net(COMPUTED[name]), EXAMPLE, any_size=True)
    assert found.zigs == STREAM // 2 + INNER
    assert found.params_left < 0.4


@pytest.mark.parametrize("name", ["sliced", "behind a token", "by a number of data"])
@pytest.mark.parametrize("norm", NORMS)
def test_every_norm(norm, name):
    assert compress_half(Net(TABLES[name], norm), EXAMPLE, any_size=True).zigs == STREAM + INNER


@pytest.mark.parametrize("write", ["add_", "mul_", "neg_", "sigmoid_"])
@pytest.mark.parametrize("first", [False, True])
def test_what_was_written_in_place_is_not_taken_for_what_it_was(write, first):
    def add(m, x):
        table = m.table[: x.shape[1]]
        before = x + table if first else x * 1.0
        view = before.view(before.shape)
        given = () if write in ("neg_", "sigmoid_") else (table,)
        after = getattr(before, write)(*given)
        return F.layer_norm(before, (WIDTH,)) + F.layer_norm(view, (WIDTH,)) + after

    compress_half(Net(add), EXAMPLE)


UNTRAINED = {
    "sliced": lambda m, x: x + m.untrained[:, : x.shape[1]],
    "looked up": lambda m, x: x + F.embedding(torch.arange(x.shape[1]), m.untrained[0]),
    "by a module": lambda m, x: x + m.embedding(torch.arange(x.shape[1], device=x.device)),
    "by a module, at places of the input": lambda m, x: x + m.embedding(places(x)),
}


@pytest.mark.parametrize("name", UNTRAINED)
@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm", "var"])
def test_a_parameter_that_is_not_trained_is_a_table(norm, name):
    model = Net(UNTRAINED[name], norm)
    found = compress_half(model, EXAMPLE, any_size=True)
    assert found.zigs == STREAM + INNER
    families = fx_oto.partition(found.gm).families
    tables = {"untrained", "embedding.weight"}
    assert tables.isdisjoint(slot.tensor for family in families for slot in family.variables)
    (table,) = [one for name, one in found.small.named_parameters() if name in tables]
    assert table.shape[-1] == WIDTH // 2
    assert not table.requires_grad


def test_the_optimizer_prunes_across_a_table_that_is_not_trained():
    model = Net(UNTRAINED["sliced"])
    table = model.untrained.clone()
    gm = fx_oto.prepare(model, EXAMPLE)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, total_steps=20, target_group_sparsity=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        model(EXAMPLE).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.untrained, table, rtol=0, atol=0)
    small = fx_oto.compress(gm).eval()
    assert len(small.get_parameter("stem.bias")) < WIDTH
    torch.testing.assert_close(small(EXAMPLE), model.eval()(EXAMPLE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("every", [False, True])
def test_weights_that_are_frozen_for_now_are_no_tables(every):
    model = Net(UNTRAINED["sliced"])
    model.requires_grad_(not every)
    model.stem.requires_grad_(False)
    variables = {s.tensor for f in fx_oto.partition(fx_oto.prepare(model, EXAMPLE)).families for s in f.variables}
    assert {"stem.weight", "stem.bias", "untrained"} <= variables


class Language(nn.Module):
    """Embeddings of tokens that are not trained, before a norm."""

    def __init__(self):
        super().__init__()
        self.tokens, self.norm = nn.Embedding(20, 8).requires_grad_(False), nn.LayerNorm(8)
        self.positions, self.head = nn.Embedding(16, 8), nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))))


def test_rows_of_a_table_go_with_their_tokens():
    model, ids = fx_oto.testing.randomise(Language()).double().eval(), torch.randint(0, 20, (2, 7))
    gm = fx_oto.prepare(model, ids, prune_vocabulary=True)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    kept, _ = fx_oto.Context.of(small).kept["tokens.weight", 0]
    assert small.get_parameter("tokens.weight").shape == (10, 4)
    ids = torch.randint(0, len(kept), (3, 9))
    torch.testing.assert_close(small(ids), model(kept[ids])[..., kept], rtol=1e-10, atol=1e-12)


def noisy(m, x):
    return F.dropout(x + m.table[: x.shape[1]], 0.1, training=True)


def remembered(m, x):
    if m.training:
        m.table.mul_(0.9)
    return x + m.table[: x.shape[1]]


def test_what_depends_on_chance_is_kept_whole():
    gm = fx_oto.prepare(Net(noisy), EXAMPLE)
    assert fx_oto.partition(gm).num_zigs == INNER


def test_a_table_that_is_written_is_kept_whole():
    assert compress_half(Net(remembered), EXAMPLE).zigs == INNER


# -- norms whose weight has an offset ----------------------------------------------------------------------------


class Offset(nn.Module):
    """A layer norm of torch's without weights, times a weight that is 1 where its parameter is 0."""

    def __init__(self, module):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False) if module else None
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x):
        return (F.layer_norm(x, (WIDTH,), eps=1e-3) if self.norm is None else self.norm(x)) * (self.weight + 1)


class After(Net):
    """A residual block between norms, whose stream is what the first has returned: that is not zero once removed."""

    def __init__(self, add, module):
        super().__init__(add)
        self.first, self.last = Offset(module), Offset(module)

    def forward(self, x):
        x = self.first(self.add(self, self.stem(x)))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(self.last(x))


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize("name", ["none", "sliced", "behind a token"])
def test_norms_behind_norms_without_weights(name, module):
    add = {"none": lambda m, x: x, **TABLES}[name]
    found = compress_half(After(add, module), EXAMPLE, any_size=True)
    assert found.zigs == STREAM + INNER
    assert found.params_left < 0.4
    again = compress_half(found.small, EXAMPLE)
    assert again.params_left < 1


# -- images ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block of images."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.GroupNorm(1, 16), nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(20, 16, 1)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Coordinates(nn.Module):
    """Waves of the height and the width, computed for each size."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 2, 1)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.stem(x)
        rows, columns = (torch.linspace(-1, 1, size, device=x.device) for size in x.shape[-2:])
        waves = torch.arange(1, 9, device=x.device)[:, None]
        rows, columns = (waves * rows).sin()[:, :, None], (waves * columns).cos()[:, None]
        x = x + torch.cat((rows.expand(-1, -1, x.shape[-1]), columns.expand(-1, x.shape[-2], -1)), 0).to(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Tokens(nn.Module):
    """Patches of images with a part of a plane of positions; torch's layers, norms first and last."""

    def __init__(self):
        super().__init__()
        self.patches, self.norm, self.head = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16), nn.Linear(16, 3)
        self.register_buffer("plane", torch.randn(1, 16, 8, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=first) for first in (True, False)
        )

    def forward(self, x):
        x = self.patches(x)
        batch, channels, height, width = x.shape
        x = (x + self.plane[:, :, :height, :width]).view(batch, channels, height * width).permute(0, 2, 1)
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class Resized(nn.Module):
    """What has positions is made smaller and larger before it is normalised."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 16, 1), nn.GroupNorm(1, 16), nn.Conv2d(16, 2, 1)
        self.register_buffer("plane", torch.randn(1, 16, 12, 12))
        self.pool, self.act = nn.AvgPool2d(2), nn.SiLU()

    def forward(self, x):
        x = self.stem(x) + self.plane[:, :, : x.shape[2], : x.shape[3]]
        small = self.pool(self.act(x))
        return self.head(self.norm(F.interpolate(small, size=x.shape[2:], mode="bilinear")))


class Joined(nn.Module):
    """Streams with positions, without, and of the input are joined along channels before they are normalised."""

    def __init__(self, norm):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 16), nn.Linear(6, 8), NORMS[norm](16 + 8 + 6)
        self.head = nn.Linear(30, 4)
        self.register_buffer("table", waves(40, 16))

    def forward(self, x):
        one = self.one(x) + self.table[: x.shape[1]]
        return self.head(self.norm(torch.cat((one, x, self.two(x)), -1)))


@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm", "means"])
def test_channels_that_are_joined(norm):
    found = compress_half(Joined(norm), EXAMPLE, any_size=True)
    assert found.zigs == 16 + 8


def test_a_plane_of_positions_that_is_resized():
    found = compress_half(Resized(), torch.randn(2, 3, 6, 8), any_size=True)
    assert found.zigs == 16
    assert found.params_left < 0.6


def test_a_table_of_coordinates_before_group_norms():
    found = compress_half(Coordinates(), torch.randn(2, 3, 5, 6), any_size=True)
    assert found.zigs == 8 + 2 * 20
    assert found.params_left < 0.4


def test_a_plane_of_positions_before_attention():
    found = compress_half(Tokens(), torch.randn(2, 3, 8, 10), any_size=True)
    assert found.zigs == 16 + 2 * (4 + 24)
    assert found.params_left < 0.4


# -- what becomes of the compact model ---------------------------------------------------------------------------


def compact(model):
    model, x = fx_oto.testing.randomise(model).double().eval(), EXAMPLE.double()
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    return model, fx_oto.compress(gm)


CASES = [
    (TABLES["sliced"], "LayerNorm"),
    (TABLES["behind a token"], "RMSNorm"),
    (TABLES["in place"], "means"),
    (TABLES["dropout"], "var"),
    (COMPUTED["halves"], "group_norm"),
]


@pytest.mark.filterwarnings("ignore:forward did not use these parameters:fx_oto.FxOtoWarning")
@pytest.mark.parametrize(("add", "norm"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_it_is_saved_exported_and_written_back(add, norm, tmp_path):
    model, small = compact(Net(add, norm))
    fx_oto.save(small, tmp_path / "small.safetensors")
    x = torch.randn(3, 9, 6, dtype=torch.float64)
    written = fx_oto.write_back(small, model)
    assert type(written) is Net
    exported = torch.export.export(small, (x,)).module()
    for other in (fx_oto.load(tmp_path / "small.safetensors"), written, exported):
        torch.testing.assert_close(other(x), model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("add", "norm"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_rounds(add, norm):
    _, small = compact(Net(add, norm))
    for _ in range(2):
        zigs = fx_oto.partition(fx_oto.prepare(small, EXAMPLE.double())).num_zigs
        inner, stream = small.get_parameter("up.weight").shape
        assert zigs == inner + (stream // 2 if add in COMPUTED.values() else stream)
        small = compress_half(small, EXAMPLE).small


def test_norms_that_know_of_one_table_share_its_moments():
    _, small = compact(Net(TABLES["sliced"]))
    assert [node.target.__name__ for node in small.graph.nodes if "moments" in node.name] == ["moments_of"]
    assert (
        sum(buffer.numel() for buffer in small.buffers()) == 40 * WIDTH
    )  # what is left of the table, and what is gone


class OneHot(nn.Module):
    """Positions, or what is in the input, look a table up by a product with one-hot vectors."""

    def __init__(self, places):
        super().__init__()
        self.table, self.places = nn.Parameter(torch.randn(12, WIDTH)), places
        self.first, self.norm, self.last = nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        found = F.one_hot(self.places(x), num_classes=12).to(self.table) @ self.table
        return self.last(self.norm(self.first(x) + found))


PLACES = {
    "positions": lambda x: torch.arange(x.shape[1], device=x.device),
    "of the input": lambda x: (x[..., 0] * 3).long().clamp(0, 11),
}


@pytest.mark.parametrize("places", PLACES)
def test_rows_that_one_hot_vectors_look_up_stay(places):
    torch.manual_seed(0)
    found = compress_half(OneHot(PLACES[places]), EXAMPLE)
    assert {str(family.name) for family in fx_oto.partition(found.gm).families} == {"table"}
    assert found.zigs == WIDTH
    assert found.small.table.shape[0] == 12
