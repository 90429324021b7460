"""What is not understood is kept whole and named; the rest is still pruned, and the result is still exact."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.exactness import compress_half, randomise
from support.networks import Scale
from torch import nn

import fx_oto

IMAGE = torch.randn(2, 3, 8, 8)


@torch.library.custom_op("fx_oto_tests::mix", mutates_args=())
def mix(x: torch.Tensor) -> torch.Tensor:
    """Not linear, and not the same for every channel."""
    return x * torch.linspace(0, 1, x.shape[1], dtype=x.dtype).view(-1, 1, 1) + x.flip(1)


@mix.register_fake
def _(x):
    return torch.empty_like(x)


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        x = torch.ops.fx_oto_tests.mix(F.relu(self.a(x)))
        return self.c(F.relu(self.b(x)))


@pytest.mark.filterwarnings("default::fx_oto.FxOtoWarning")
def test_an_op_without_a_rule_freezes_what_it_touches():
    model = randomise(Opaque().double())
    image = IMAGE.double()
    with pytest.warns(
        fx_oto.FxOtoWarning,
        match=r"no rule is known for the op fx_oto_tests::mix \(op fx_oto_tests::mix at .*test_soundness\.py:\d+\)",
    ):
        gm = fx_oto.prepare(model, image)
    zigs = fx_oto.partition(gm)
    assert [family.name for family in zigs.families] == ["b.weight"]
    frozen = {str(axis.tensor): axis.reason for axis in zigs.frozen if axis.dim == 0}
    assert "no rule is known for the op fx_oto_tests::mix" in str(frozen["a.weight"])
    zigs.zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm).eval()(image), model.eval()(image), rtol=1e-10, atol=1e-12)


def _as_it_lies(x):
    return x.as_strided(x.size(), x.stride())


@pytest.mark.parametrize("kept", [False, True])
def test_an_op_on_positions_is_not_announced(kept):
    class Net(nn.Module):
        """As language models look up the types of their tokens."""

        def __init__(self):
            super().__init__()
            self.word, self.kind, self.head = nn.Embedding(9, 8), nn.Embedding(2, 8), nn.Linear(8, 4)

        def forward(self, ids):
            x = self.word(ids) + self.kind((_as_it_lies(ids.float()) > 1).long())
            return self.head(_as_it_lies(x) if kept else x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gm = fx_oto.prepare(Net(), torch.randint(0, 9, (2, 5)))
    assert fx_oto.partition(gm).num_zigs == (0 if kept else 8)
    assert len(caught) == kept
    assert all("no rule is known for the op as_strided" in str(one.message) for one in caught)


@pytest.mark.parametrize("moved", [False, True])
def test_positions_that_are_gathered_are_not_announced(moved):
    class Net(nn.Module):
        """As language models look up the types of their tokens."""

        def __init__(self):
            super().__init__()
            self.word, self.kind, self.head = nn.Embedding(9, 8), nn.Embedding(2, 8), nn.Linear(8, 4)
            self.register_buffer("kinds", torch.zeros(1, 12, dtype=torch.long))
            self.register_buffer("places", torch.arange(12)[None])

        def forward(self, ids):
            places = self.places[:, : ids.size(1)].expand(len(ids), -1)
            x = self.word(ids) + self.kind(torch.gather(self.kinds.expand(len(ids), -1), 1, places))
            return self.head(torch.gather(x, 1, places[..., None].expand_as(x)) if moved else x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compress_half(Net(), torch.randint(0, 9, (2, 5)), sensitive=False).zigs == 8


@torch.library.custom_op("fx_oto_tests::brighten", mutates_args=())
def brighten(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The same for every channel, and zero for zero."""
    return x * factor


@brighten.register_fake
def _(x, factor):
    return torch.empty_like(x)


def test_a_rule_of_the_users_makes_an_op_prunable():
    @fx_oto.register_rule(torch.ops.fx_oto_tests.brighten.default)
    def rule(call, p):
        p.put(call.out, p.layers(call.args[0]))

    class Brightened(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.b(torch.ops.fx_oto_tests.brighten(F.relu(self.a(x)), 1.5))

    model = randomise(Brightened().double())
    gm = fx_oto.prepare(model, IMAGE.double())
    assert fx_oto.partition(gm).num_zigs == 8
    fx_oto.partition(gm).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm)(IMAGE.double()), model(IMAGE.double()), rtol=1e-10, atol=1e-12)


def hidden_sizes(x):
    """A helper that draws numbers is not traced through: what it does to sizes cannot be rewritten."""
    return F.relu(x.view(-1, 2, 4, 8, 8).sum(1)) * (2 if random.random() < 2 else 3)


def elementwise(x):
    return torch.tanh(x) * (2 if random.random() < 2 else 3)


torch.fx.wrap("hidden_sizes")
torch.fx.wrap("elementwise")


class Wrapped(nn.Module):
    def __init__(self, helper):
        super().__init__()
        self.a, self.d = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(4 if helper == "hidden" else 8, 4, 3)
        self.helper = helper

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.d(x)
        x = hidden_sizes(x) if self.helper == "hidden" else elementwise(x)
        return self.b(x)


def test_sizes_inside_an_opaque_helper_are_kept_whole():
    result = compress_half(Wrapped("hidden"), IMAGE)
    assert result.zigs == 8
    reasons = [str(axis.reason) for axis in fx_oto.partition(result.gm).frozen if axis.tensor == "d.weight"]
    assert any("reshaped inside an opaque function" in reason for reason in reasons)


def test_an_opaque_helper_without_sizes_is_seen_through():
    assert compress_half(Wrapped("elementwise"), IMAGE).zigs == 16


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n = nn.Linear(5, 8), Scale(8)
        self.b, self.c = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.a(x)
        x = x + self.n(x)
        return self.c(F.relu(self.b(x)))


@pytest.mark.filterwarnings("ignore::fx_oto.FxOtoWarning")
def test_a_module_that_slicing_does_not_know_is_kept_whole():
    result = compress_half(Unknown(), torch.randn(2, 7, 5))
    assert [family.name for family in fx_oto.partition(result.gm).families] == ["b.weight"]


class WrittenView(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)
        self.g, self.shift = nn.Parameter(torch.randn(4, 1, 1)), shift

    def forward(self, x):
        x = self.a(x)
        x[:, :4].add_(self.shift).mul_(self.g)
        return self.b(x)


def test_a_write_through_a_view_that_keeps_zero_at_zero_is_followed():
    assert compress_half(WrittenView(0.0), IMAGE).zigs == 8


def test_a_write_through_a_view_that_changes_what_is_removed_is_followed():
    assert compress_half(WrittenView(1.0), IMAGE).zigs == 8


class Shared(nn.Module):
    """One embedding, tied: rows are looked up, columns are shared with the output layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(F.relu(self.hidden(self.embed(tokens))))


def test_tied_weights_stay_tied():
    result = compress_half(Shared(), torch.arange(6).view(2, 3) + 4)
    small = result.small
    assert small.get_parameter("embed.weight") is small.get_submodule("out").weight
    assert small.get_parameter("embed.weight").shape == (11, 4)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        first, second = self.a(x).chunk(2, 1)
        return self.b(torch.cat([F.relu(first), second], 1))


def test_a_part_that_is_zero_altogether_keeps_one_zero_channel():
    model = Parts().double().eval()
    with torch.no_grad():
        model.a.weight[:4], model.a.bias[:4] = 0, 0
    gm = fx_oto.prepare(model, IMAGE.double())
    with pytest.warns(fx_oto.FxOtoWarning, match=r"every channel of node '\w+' is zero; one of them is kept"):
        small = fx_oto.compress(gm)
    assert small.get_submodule("a").out_channels == 5
    torch.testing.assert_close(small(IMAGE.double()), model(IMAGE.double()), rtol=1e-10, atol=1e-12)


class Dynamic(nn.Module):
    """A convolution whose kernels are computed for each image."""

    def __init__(self):
        super().__init__()
        self.a, self.r, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2), nn.Conv2d(6, 4, 3)
        self.w = nn.Parameter(torch.randn(2, 6, 8, 3, 3))

    def forward(self, x):
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        kernel = (torch.sigmoid(self.r(x.mean((2, 3)))) @ self.w.view(2, -1)).view(n * 6, c, 3, 3)
        return self.b(F.conv2d(x.reshape(1, n * c, h, w), kernel, padding=1, groups=n).view(n, 6, h, w))


def test_of_kernels_that_are_computed_for_each_image_all_axes_go():
    found = compress_half(Dynamic(), IMAGE)
    assert sorted(len(family) for family in fx_oto.partition(found.gm).families) == [2, 6, 8]


def test_a_single_image_without_a_batch():
    model = randomise(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).double())
    gm = fx_oto.prepare(model, IMAGE[0].double())
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small(IMAGE[0].double()), model(IMAGE[0].double()), rtol=1e-10, atol=1e-12)
    assert small.get_submodule("2").groups == 1


def test_infinite_buffers_are_no_divergence():
    model = Parts()
    model.register_buffer("floor", torch.tensor(-torch.inf))
    model.forward = lambda x: torch.maximum(Parts.forward(model, x), model.floor)
    gm = fx_oto.prepare(model, IMAGE)
    fx_oto.partition(gm).zero_zigs_(0, torch.tensor([0, 5]))
    assert fx_oto.compress(gm).get_submodule("a").out_channels == 6


def test_the_copy_has_hooks_of_its_own():
    gm = fx_oto.prepare(Parts(), IMAGE)
    fx_oto.partition(gm).zero_zigs_(0, torch.tensor([0, 5]))
    small = fx_oto.compress(gm)
    small.get_submodule("a").register_forward_hook(lambda *_: None)
    assert not gm.get_submodule("a")._forward_hooks


class ScaleAndOutput(nn.Module):
    """Widths of heads are scaled by what is returned as well."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 24), nn.Linear(24, 8), nn.Linear(8, 3)
        self.inner = nn.Parameter(torch.randn(6))

    def forward(self, x):
        grid = self.a(x).view(x.size(0), 4, 6) * self.inner
        return self.c(F.relu(self.b(grid.flatten(1)))), self.inner * 2


def test_a_scale_that_is_kept_whole_lets_heads_go_and_no_widths():
    result = compress_half(ScaleAndOutput(), torch.randn(2, 5))
    assert result.zigs == 8 + 4
    reasons = {axis.reason.why for axis in fx_oto.partition(result.gm).frozen if axis.tensor == "inner"}
    assert reasons == {"it is part of the model's output"}


class OnAGrid(nn.Module):
    """Heads of a grid, combined with what they share or with what their indices share."""

    def __init__(self, combine):
        super().__init__()
        self.a, self.b, self.combine = nn.Linear(5, 24), nn.Linear(24, 3), combine
        self.inner, self.outer = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4, 1))

    def forward(self, x):
        grid = self.a(x).view(x.size(0), 4, 6)
        return self.b(self.combine(grid, self.inner, self.outer).flatten(1))


@pytest.mark.parametrize(
    ("combine", "zigs"),
    [
        (lambda grid, inner, outer: grid + inner, 6),
        (lambda grid, inner, outer: grid * inner, 6),
        (lambda grid, inner, outer: grid + outer, 4),
        (lambda grid, inner, outer: (grid + outer) * inner, 4),
        (lambda grid, inner, outer: (grid + inner) * outer, 6),
    ],
)
def test_what_is_added_to_a_grid_decides_which_axis_can_go(combine, zigs):
    """A head whose weights are zero is not zero once something that all heads share is added to it."""
    assert compress_half(OnAGrid(combine), torch.randn(2, 5)).zigs == zigs
