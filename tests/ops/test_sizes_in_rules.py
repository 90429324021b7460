"""Numbers made of input sizes: what they scale, shift or cut is exact at every size, or kept whole with a reason."""

import copy
import math

import pytest
import torch
from support.exactness import randomise
from torch import nn
from torch.nn import functional as F

import fx_oto

PLACE = "it is moved or cut at a place that depends on an input's size"


class Between(nn.Module):
    """A function of the hidden channels, last in (batch, time, 12), and the input between two linear layers."""

    def __init__(self, function, width=12):
        super().__init__()
        self.function, self.a = function, nn.Linear(4, 12)
        self.b = nn.Linear(width, 3)

    def forward(self, x):
        return self.b(self.function(self.a(x), x))


class Images(nn.Module):
    """The same between convolutions, on (batch, 12, height, width)."""

    def __init__(self, function):
        super().__init__()
        self.function, self.a, self.b = function, nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 3)

    def forward(self, x):
        return self.b(self.function(self.a(x), x))


def exact(model, examples, others):
    """Cut half, and compare with the group-sparse eager model at every size.

    Returns the number of ZIGs; 0 if it is not known what a removed value becomes, so that what reads it must be zero.
    """
    model = randomise(model.double()).eval()
    gm = fx_oto.prepare(model, examples.double())
    found = fx_oto.partition(gm)
    if sum(len(family) for family in found.families if len(family) > 1) == 0:
        return 0
    found.zero_(0.5, generator=torch.Generator().manual_seed(0))
    sparse = copy.deepcopy(model)
    sparse.load_state_dict({name: gm.state_dict()[name] for name in model.state_dict()})
    small = fx_oto.compress(gm).eval()
    for x in (examples, *others):
        full = sparse(x.double())
        torch.testing.assert_close(small(x.double()), full, rtol=1e-10, atol=1e-10)
    driven = [(slot.tensor, slot.dim) for family in found.families for slot in family.variables]
    return 0 if ("b.weight", 1) in driven else found.num_zigs


TOKENS = torch.randn(2, 5, 4)
OTHERS = (torch.randn(2, 9, 4), torch.randn(3, 7, 4))
IMAGES = torch.randn(2, 3, 6, 8)
OTHER_IMAGES = (torch.randn(2, 3, 12, 10), torch.randn(4, 3, 8, 8))


def reasons(model, x):
    return {axis.reason.why for axis in fx_oto.partition(fx_oto.prepare(model.eval(), x)).frozen}


# -- what a removed value becomes ---------------------------------------------------------------------------

UNKNOWN = {
    "divided": lambda h, x: F.softplus(h) / x.shape[1],
    "square root": lambda h, x: h.sigmoid() * x.size(1) ** 0.5,
    "math": lambda h, x: h.sigmoid() / math.sqrt(x.shape[1]),
    "added": lambda h, x: h + x.shape[0],
    "subtracted from": lambda h, x: x.shape[1] - h,
    "clamped": lambda h, x: h.clamp(min=x.shape[1] / 50),
    "power": lambda h, x: h.cos() * 2 ** (1 / x.shape[1]),
    "filled": lambda h, x: h.exp() * torch.full((1,), 1 / x.shape[1], dtype=h.dtype),
    "like": lambda h, x: h.exp() * torch.full_like(h, 1 / x.shape[1]),
    "a tensor": lambda h, x: h.exp() * torch.tensor(x.shape[1]),
    "new tensor": lambda h, x: h.exp() * h.new_tensor(1 / x.shape[1]),
    "where": lambda h, x: torch.where(h >= 0, h + 1, x.shape[1]) + torch.where(h >= 0, x.shape[1], h),
    "masked": lambda h, x: h.masked_fill(h.abs() < 1e-9, x.shape[1]),
    "alpha": lambda h, x: torch.add(h, h.cos(), alpha=x.shape[1]),
    "difference": lambda h, x: h.relu().clamp(max=x.shape[1] - 3.0) / 2,
    "zero": lambda h, x: h.relu() + x.shape[1] // 8,
    "zero at this length": lambda h, x: h.relu() + x.shape[1] % 5,
    "of no sign": lambda h, x: h.relu().clamp(min=4 - x.shape[1]),
    "in place": lambda h, x: h.cos().mul_(x.shape[1]),
    "threshold": lambda h, x: F.threshold(h, 1e-6, float(x.shape[1])),
    "softplus": lambda h, x: F.softplus(h, beta=x.shape[1]),
    "number of elements": lambda h, x: h.cos() * x.numel(),
    "channels of all steps": lambda h, x: h + h.flatten(1).size(1) / 100,
    "channels of all steps, as a shape": lambda h, x: h.sigmoid() * h.flatten(1).shape[1],
    "channels of all examples": lambda h, x: h + h.transpose(1, 2).flatten(0, 1).size(0),
    "channels beside steps": lambda h, x: h.cos() / math.sqrt(h.mT.reshape(len(h), -1).size(-1)),
    "channels, as often as there are steps": lambda h, x: h + h.mean(1).repeat(1, x.size(1)).size(1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_number_of_sizes_does_to_a_constant_is_not_known(name):
    assert exact(Between(UNKNOWN[name]), TOKENS, OTHERS) == 0


KNOWN = {
    "scaled": lambda h, x: h.relu() / x.shape[1],
    "square root": lambda h, x: h.tanh() * x.size(1) ** 0.5,
    "power": lambda h, x: h.relu() ** x.shape[1],
    "fixed": lambda h, x: h.sigmoid() / 3,
    "clamped": lambda h, x: h.clamp(max=x.shape[1], min=-1),
    "viewed": lambda h, x: h.relu().view(x.shape[0], x.shape[1], -1),
    "channels": lambda h, x: h.sigmoid() * h.size(-1),
    "channels, merged": lambda h, x: h.sigmoid() * h.unflatten(-1, (3, 4)).flatten(2).size(-1),
    "shape of the channels": lambda h, x: h.sigmoid() / math.sqrt(h.new_zeros(2, 7).shape[-1]),
    "mean over time": lambda h, x: h.cos().mean(1),
    "mean of the channels": lambda h, x: (h.sigmoid() / x.shape[1]).mean(-1, keepdim=True) * h.relu(),
    "mean taken off": lambda h, x: h.relu() * ((h.relu() - h.mean(-1, keepdim=True)) * x.shape[1]).mean(-1, True),
    "softmax": lambda h, x: (h.relu() @ h.relu().mT / x.shape[1]).softmax(-1) @ h.relu(),
    "sum over time": lambda h, x: h.relu().sum(1) / x.shape[1],
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_stays_the_same_whatever_the_number_is_can_go(name):
    assert exact(Between(KNOWN[name]), TOKENS, OTHERS) == 12


BACK = {
    "the rest": lambda h, x: h.flatten(1).reshape(len(h), -1, h.size(2), h.size(3)),
    "divided": lambda h, x: (f := h.flatten(1)).unflatten(1, (f.size(1) // (h.size(2) * h.size(3)), *h.shape[2:])),
    "of the images": lambda h, x: h.flatten(0, 1).unflatten(0, (-1, 12)),
}


@pytest.mark.parametrize("name", BACK)
def test_flattened_and_back(name):
    function = BACK[name]
    assert exact(Images(lambda h, x: function(h, x).relu().mean((2, 3))), IMAGES, OTHER_IMAGES) == 12


SUMS = {
    "sum": lambda h, x: h.cos().sum(1),
    "cumsum": lambda h, x: h.cos().cumsum(1),
    "product": lambda h, x: h.cos().prod(1),
    "matmul": lambda h, x: torch.ones(x.shape[0], 1, x.shape[1], dtype=h.dtype) @ h.cos(),
    "einsum": lambda h, x: torch.einsum("btc,bt->bc", h.cos(), x[:, :, 0] * 0 + 1),
    "log-sum-exp": lambda h, x: h.logsumexp(1),
    "norm": lambda h, x: h.cos().norm(dim=1),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_over_the_input_of_a_constant_is_not_known(name):
    assert exact(Between(SUMS[name]), TOKENS, OTHERS) == 0


@pytest.mark.parametrize(
    ("function", "zigs"),
    [
        (lambda h, x: h.sigmoid().mean((2, 3)) * (h.shape[2] * h.shape[3]) ** 0.5, 0),
        (lambda h, x: h.relu().mean((2, 3)) * (h.shape[2] * h.shape[3]) ** 0.5, 12),
        (lambda h, x: h.sigmoid().sum((2, 3)) / (h.shape[2] * h.shape[3]), 0),
        (lambda h, x: h.sigmoid().mean((2, 3)), 12),
        (lambda h, x: F.avg_pool2d(h.sigmoid(), 3, padding=1).mean((2, 3)), 0),
        (lambda h, x: F.avg_pool2d(h.relu(), x.shape[2] // 3).mean((2, 3)), 12),
        (lambda h, x: F.pad(h.exp(), (0, 8 - x.shape[3], 0, 0), value=1.0).mean((2, 3)), 12),
        (lambda h, x: F.pad(h.exp(), (0, x.shape[3] // 8, 0, 0)).mean((2, 3)), 0),
        (lambda h, x: F.pad(h.exp(), (1, 1), value=x.shape[2] / 6).mean((2, 3)), 0),
    ],
)
def test_sizes_of_images(function, zigs):
    others = OTHER_IMAGES if "8 - x" not in str(function) else ()
    assert exact(Images(function), IMAGES, others) == zigs


# -- where it is cut ----------------------------------------------------------------------------------------

CUT = {
    "slice": lambda h, x: h[:, :, : x.shape[1]],
    "slice that takes all": lambda h, x: h[..., : x.shape[1] + 7],
    "from behind": lambda h, x: h[..., -x.shape[1] :],
    "new dimension": lambda h, x: h[:, None, ..., : x.shape[1]],
    "one": lambda h, x: h[..., x.shape[1], None],
    "narrow": lambda h, x: h.narrow(-1, 3, x.shape[1]),
    "split": lambda h, x: h.split(x.shape[1], -1)[0],
    "split into": lambda h, x: h.split([x.shape[1], 12 - x.shape[1]], -1)[1],
    "chunk": lambda h, x: h.chunk(x.shape[1], -1)[0],
    "tensor_split": lambda h, x: h.tensor_split((x.shape[1],), -1)[0],
    "unbind": lambda h, x: h.unbind(-1)[x.shape[1]][..., None],
    "select": lambda h, x: h.select(-1, x.shape[1])[..., None],
    "roll": lambda h, x: h.roll(x.shape[1], -1),
    "repeat": lambda h, x: h.repeat(1, 1, x.shape[1]),
    "pad": lambda h, x: F.pad(h, (0, x.shape[1])),
    "pad by none": lambda h, x: F.pad(h, (0, 5 - x.shape[1])),
    "triangle": lambda h, x: h.tril(x.shape[1]),
    "index": lambda h, x: h[..., torch.arange(x.shape[1])],
    "diagonal": lambda h, x: h[:, :1].expand(-1, 12, -1).diagonal(x.shape[1] - 5, 1, 2),
    "windows": lambda h, x: h.unfold(-1, x.shape[1], 1),
}


class Summed(nn.Module):
    """A function of the hidden channels, summed over them."""

    def __init__(self, function):
        super().__init__()
        self.function, self.a = function, nn.Linear(4, 12)

    def forward(self, x):
        return self.function(self.a(x), x).sum(-1)


@pytest.mark.parametrize("name", CUT)
def test_what_is_cut_at_a_place_that_depends_on_a_size_stays_whole(name):
    assert exact(Summed(CUT[name]), TOKENS, ()) == 0
    if name not in ("triangle", "index", "windows", "unbind"):
        assert PLACE in reasons(Summed(CUT[name]), TOKENS)


OTHER_AXES = {
    "slice": lambda h, x: h[:, : x.shape[1] - 1],
    "slices": lambda h, x: h[:, : x.shape[1] - 1, :8],
    "slices and a new one": lambda h, x: h[:, None, 1 : x.shape[1], ..., 2:],
    "narrow": lambda h, x: h.narrow(1, 1, x.shape[1] - 2),
    "split": lambda h, x: h.split(x.shape[1] - 1, 1)[0],
    "chunk": lambda h, x: h.chunk(x.shape[0], 1)[0],
    "last": lambda h, x: h[:, x.shape[1] - 1],
    "roll": lambda h, x: h.roll(x.shape[1] // 2, 1),
    "repeat": lambda h, x: h.repeat(1, x.shape[1], 1),
    "pad": lambda h, x: F.pad(h, (0, 0, 0, x.shape[1])),
    "halves": lambda h, x: h.chunk(2, -1)[0] * h[..., 6:].sigmoid(),
    "own width": lambda h, x: h[..., : h.shape[-1] // 2] * h[..., h.shape[-1] // 2 :],
}


@pytest.mark.parametrize("name", OTHER_AXES)
def test_along_other_dimensions_nothing_changes(name):
    assert exact(Summed(OTHER_AXES[name]), TOKENS, OTHERS) >= 6


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(20, 12))
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x):
        return self.b((self.a(x) + self.table[: x.shape[1]]).relu())


def test_positions_of_a_table_stay_and_its_channels_go():
    assert exact(Positions(), TOKENS, OTHERS) == 12


class PositionsCounted(Positions):
    def forward(self, x):
        table = self.table[: x.shape[1]].contiguous()
        return self.b(self.a(x).sigmoid().mean(1) / table.shape[0])


def test_the_length_of_a_cut_table_is_not_fixed():
    assert exact(PositionsCounted(), TOKENS, OTHERS) == 0


class Synthesizer(nn.Module):
    """Attention weights that a linear layer makes, cut to the length."""

    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.v = nn.Linear(4, 8), nn.Linear(8, 16), nn.Linear(4, 6)

    def forward(self, x):
        return self.w2(self.w1(x).relu())[..., : x.shape[1]].softmax(-1) @ self.v(x)


@pytest.mark.parametrize("steps", [5, 16])
def test_attention_weights_cut_to_the_length(steps):
    assert exact(Synthesizer(), torch.randn(2, steps, 4), OTHERS) == 8


def test_a_padded_convolution_does_not_fold_where_the_example_has_no_padding():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv1d(3, 12, 1), nn.Conv1d(12, 4, 3)

        def forward(self, x):
            return F.conv1d(self.a(x).sigmoid(), self.b.weight, self.b.bias, padding=x.shape[2] - 8)

    assert exact(Padded(), torch.randn(2, 3, 8), (torch.randn(2, 3, 10),)) == 0


# -- windows, whose channels stay last ----------------------------------------------------------------------


def windows(h, _):
    """To windows of 2 × 2 and back, as SAM 2 and Swin have them; ``-1`` stands for the channels."""
    batch, height, width, channels = h.shape
    h = h.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 2, 2, channels)
    h = h * h.flatten(1, 2).amax(1)[:, None, None]
    batch = h.shape[0] // (height * width // 2 // 2)
    h = h.view(batch, height // 2, width // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
    return h.reshape(batch, height, width, -1)


def rows(h, _):
    return h.flatten(1, 2).relu().view(h.shape[0], h.shape[1], h.shape[2], -1)


GRIDS = (torch.randn(2, 4, 6, 4), torch.randn(3, 8, 4, 4), torch.randn(4, 4, 4, 4))


@pytest.mark.parametrize("function", [windows, rows])
def test_channels_that_stay_last_go(function):
    assert exact(Between(function), GRIDS[0], GRIDS[1:]) == 12


def test_a_size_at_which_channels_would_be_mixed_is_refused():
    """Of 5 steps, two pairs hold 15 numbers each: the model mixes them, and the compact graph says that it does not."""
    model = Between(lambda h, _: h.view(h.shape[0], h.shape[1] // 2, 2, -1).flatten(1, 2)[..., :12]).eval()
    gm = fx_oto.prepare(model, torch.randn(4, 6, 4))
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    for steps in (2, 4, 8):
        x = torch.randn(3, steps, 4)
        torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    for steps in (3, 5):
        x = torch.randn(3, steps, 4)
        assert model(x).shape[-1] == 3
        with pytest.raises((AssertionError, RuntimeError), match=r"the graph was captured where|invalid for input"):
            small(x)


# -- sizes of weights, which are the same on all inputs --------------------------------------------------------


class ThirdOfBias(nn.Module):
    """The keys of a layer have no bias, as in Swin V2."""

    def __init__(self, third):
        super().__init__()
        self.third, self.a, self.b = third, nn.Linear(4, 36), nn.Linear(12, 3)

    def forward(self, x):
        bias = self.a.bias.clone()
        third = self.third(bias)
        bias[third : 2 * third].zero_()
        q, k, v = F.linear(x, self.a.weight, bias).chunk(3, -1)
        return self.b(torch.sigmoid(q) * k + v)


@pytest.mark.parametrize(
    "third",
    [
        lambda bias: bias.numel() // 3,
        lambda bias: bias.nelement() // 3,
        lambda bias: len(bias) // 3,
        lambda bias: bias.shape[0] // 3,
        lambda bias: math.prod(bias.shape) // 3,
    ],
)
def test_sizes_of_weights_are_no_inputs_sizes(third):
    assert exact(ThirdOfBias(third), TOKENS, OTHERS) == 12


class Windows(nn.Module):
    """Attention in windows of 2 × 2, some of which are masked: their number is known by the mask alone, as in Swin."""

    def __init__(self, masked, add=torch.add):
        super().__init__()
        self.add, self.masked = add, masked
        self.a, self.qkv, self.b = nn.Linear(4, 12), nn.Linear(12, 36), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.arange(16) % 9)

    def forward(self, x):
        h = self.a(x)
        batch, height, width, channels = h.shape
        h = h.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, channels)
        q, k, v = (one.view(one.shape[0], -1, 2, 6).transpose(1, 2) for one in self.qkv(h).chunk(3, -1))
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1).contiguous()
        scores = self.masked(self.add(q @ k.transpose(-1, -2), bias.unsqueeze(0)), self.mask(x), h)
        h = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 12)
        return self.b(h.mean(1)).view(batch, -1, 3)

    def mask(self, x):
        rows = x.new_zeros(x.shape[1], x.shape[2])
        rows[-2:] = 1
        rows = rows.view(x.shape[1] // 2, 2, x.shape[2] // 2, 2).transpose(1, 2).reshape(-1, 4)
        return (rows.unsqueeze(1) - rows.unsqueeze(2)).masked_fill(rows.unsqueeze(1) > 0, -100.0)


def by_number_of_windows(scores, mask, h):
    batch, steps, _ = h.shape
    scores = scores.view(batch // mask.shape[0], mask.shape[0], 2, steps, steps) + mask.unsqueeze(1).unsqueeze(0)
    return scores.view(-1, 2, steps, steps)


def by_steps(scores, mask, h):
    scores = scores.view(-1, mask.shape[0], 2, 4, 4) + mask[None, :, None]
    return scores.reshape(-1, 2, 4, 4)


@pytest.mark.parametrize("masked", [by_number_of_windows, by_steps])
@pytest.mark.parametrize("examples", [torch.randn(2, 4, 4, 4), torch.randn(2, 4, 8, 4)])
def test_heads_go_whatever_the_number_of_windows(masked, examples):
    others = [torch.randn(3, 4, 4, 4), torch.randn(1, 6, 4, 4), torch.randn(2, 8, 6, 4)]
    assert exact(Windows(masked), examples, others) >= 12 + 2


@pytest.mark.parametrize(
    "add",
    [
        lambda scores, bias: scores + bias,
        lambda scores, bias: torch.subtract(scores, -bias),
        lambda scores, bias: torch.addcmul(scores, bias, torch.ones((), dtype=bias.dtype)),
        lambda scores, bias: scores.clone().add_(bias),
    ],
)
def test_heads_go_however_positions_are_added(add):
    others = [torch.randn(3, 4, 4, 4), torch.randn(2, 8, 6, 4)]
    assert exact(Windows(by_number_of_windows, add), torch.randn(2, 4, 4, 4), others) == 12 + 2
