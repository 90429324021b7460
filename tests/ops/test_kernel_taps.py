"""What a convolution slides along stays whole, however its weight was computed and whatever else reads it."""

import copy

import pytest
import torch
from support.exactness import randomise
from torch import nn
from torch.nn import functional as F

import fx_oto

SLIDES = "a convolution slides along it"
CONVS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
RUN = {
    1: (F.conv1d, F.conv_transpose1d),
    2: (F.conv2d, F.conv_transpose2d),
    3: (F.conv3d, F.conv_transpose3d),
}


def cut_each(model, inputs, others=()):
    """Cut some of each family alone and compare; returns the slots of all families."""
    model = randomise(model.double()).eval()
    gm = fx_oto.prepare(model, inputs.double())
    families = fx_oto.partition(gm).families
    for i, family in enumerate(families):
        if len(family) == 1:
            continue
        part = copy.deepcopy(gm)
        fx_oto.partition(part).zero_zigs_(i, torch.arange(0, len(family), 2))
        sparse = copy.deepcopy(model)
        sparse.load_state_dict({name: part.state_dict()[name] for name in model.state_dict()})
        small = fx_oto.compress(part).eval()
        for x in (inputs, *others):
            torch.testing.assert_close(small(x.double()), sparse(x.double()), rtol=1e-10, atol=1e-10)
    return {(slot.tensor, slot.dim) for family in families for slot in family.slots}, families


class Read(nn.Module):
    """A convolution whose filters are normalised by their own size, in another place."""

    def __init__(self, dims, transposed, padding, groups=1):
        super().__init__()
        kind = CONVS[dims][transposed]
        self.dims, self.rows = dims, 1 if transposed else 0
        self.first = CONVS[dims][0](3, 8, 1)
        self.conv = kind(8, 16, 3, padding=padding, groups=groups)
        self.out = CONVS[dims][0](16, 4, 1)

    def forward(self, x):
        over = [dim for dim in range(self.dims + 2) if dim != self.rows]
        scale = (self.conv.weight.square().sum(over) + 1e-8).rsqrt()
        return self.out((self.conv(self.first(x)) * scale.view(-1, *[1] * self.dims)).relu())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_filters_read_by_other_arithmetic(dims, transposed, padding):
    x = torch.randn(2, 3, *[6] * dims)
    slots, families = cut_each(Read(dims, transposed, padding), x)
    assert {dim for name, dim in slots if name == "conv.weight"} == {0, 1}
    assert sum(map(len, families)) == 24


def test_the_reason_is_told_where_something_could_cut_it():
    frozen = fx_oto.partition(fx_oto.prepare(Read(2, False, 1), torch.randn(2, 3, 6, 6))).frozen
    assert {(axis.tensor, axis.dim) for axis in frozen if axis.reason.why == SLIDES} == {
        ("conv.weight", 2),
        ("conv.weight", 3),
    }


class Computed(nn.Module):
    """A convolution of a computed weight."""

    def __init__(self, dims, transposed, compute):
        super().__init__()
        self.run, self.compute = RUN[dims][transposed], compute
        self.first = CONVS[dims][0](3, 8, 1)
        self.weight = nn.Parameter(torch.randn(*((8, 12) if transposed else (12, 8)), *[3] * dims))
        self.out = CONVS[dims][0](12, 4, 1)

    def forward(self, x):
        return self.out(self.run(self.first(x), self.compute(self, self.weight), padding=1).relu())


def standardised(_, w):
    over = list(range(1, w.ndim))
    return (w - w.mean(over, keepdim=True)) / (w.var(over, keepdim=True) + 1e-5).sqrt()


WEIGHTS = {
    "scaled": lambda _, w: w * 0.5,
    "standardised": standardised,
    "equalised": lambda _, w: w / w.square().sum(dtype=w.dtype).sqrt(),
    "by mode": lambda module, w: w * 2 if module.training else w * 0.5,
    "tap by tap": lambda _, w: w * w.abs().amax((0, 1), keepdim=True),
    "flipped": lambda _, w: w.flip(-1),
    "mirrored": lambda _, w: w + w.flip(-1),
    "one tap": lambda _, w: w - w[..., :1],
}


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_computed_weight(dims, transposed, name):
    slots, _ = cut_each(Computed(dims, transposed, WEIGHTS[name]), torch.randn(2, 3, *[6] * dims))
    assert {dim for tensor, dim in slots if tensor == "weight"} <= {0, 1}


class Modulated(nn.Module):
    """StyleGAN's modulated convolution: a weight for each image, as many groups as there are images."""

    def __init__(self):
        super().__init__()
        self.style, self.first = nn.Linear(5, 8), nn.Conv2d(3, 8, 1)
        self.weight, self.out = nn.Parameter(torch.randn(12, 8, 3, 3)), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        h, style = self.first(x), self.style(x.mean((2, 3)) @ x.new_ones(3, 5))
        w = self.weight * style[:, None, :, None, None]
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        batch, _, height, width = h.shape
        h = F.conv2d(h.reshape(1, -1, height, width), w.reshape(-1, 8, 3, 3), padding=1, groups=batch)
        return self.out(h.reshape(batch, -1, height, width).relu())


def test_a_modulated_convolution():
    slots, _ = cut_each(Modulated(), torch.randn(2, 3, 6, 6))
    assert {dim for tensor, dim in slots if tensor == "weight"} <= {0, 1}


class Mamba(nn.Module):
    """A causal depthwise convolution whose weight is also squeezed and used in a product, step by step."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.conv = nn.Conv1d(8, 8, 4, groups=8, padding=3)
        self.mix = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        h = self.a(x).transpose(1, 2)
        y = self.conv(h)[..., : x.shape[1]]
        taps = self.conv.weight.squeeze(1)
        step = (h[..., -4:] * taps).sum(-1) + (self.mix(taps) * h[..., :4]).sum(-1)
        return self.b((y + step[..., None]).transpose(1, 2).relu())


def test_taps_that_are_also_used_in_a_product():
    slots, families = cut_each(Mamba(), torch.randn(2, 6, 4), (torch.randn(3, 9, 4),))
    assert ("conv.weight", 2) not in slots
    assert [len(family) for family in families] == [8]
