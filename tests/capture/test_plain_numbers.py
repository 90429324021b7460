"""``int`` and ``float`` of a tensor: plain numbers, of which the graph computes what code makes of them."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from support.exactness import compress_half
from torch import nn
from torch.nn import functional

import fx_oto


class Net(nn.Module):
    """Something made of sequences and their lengths, spelled by ``code``, between layers."""

    def __init__(self, code):
        super().__init__()
        self.a, self.inner, self.b, self.code = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3), code

    def forward(self, x, lengths):
        y = self.a(x).relu()
        return self.b(self.inner(self.code(x, y, lengths)).tanh())


def _mask(lengths):
    return torch.arange(int(lengths.max()), device=lengths.device)[None] < lengths[:, None]


def _mask_made_twice(x, y, lengths):
    y = y[:, : int(lengths.max())] * _mask(lengths)[..., None]
    return y.masked_fill(~_mask(lengths)[..., None], 1.0)


def _longest_and_shortest(x, y, lengths):
    longest, shortest = int(lengths.max()), int(lengths.min())
    return y[:, :longest] + y[:, :shortest].sum(1, keepdim=True)


def _written_between(x, y, lengths):
    lengths = lengths.clone()
    before = int(lengths.max())
    lengths.clamp_(max=2)
    return y[:, :before] + y[:, : int(lengths.max())].sum(1, keepdim=True)


def _one_more(x, y, lengths):
    n = int(lengths.max()) - 1
    return functional.pad(y, (0, 0, 1, 0))[:, : n + 2] * torch.arange(n + 2)[:, None]


CODES = {
    "a slice": lambda x, y, lengths: y[:, : int(lengths.max())],
    "a slice, of a sum": lambda x, y, lengths: y[:, : int((lengths > 1).sum())],
    "new_zeros": lambda x, y, lengths: y.new_zeros(len(y), int(lengths.max()), 8) + y[:, : int(lengths.max())],
    "narrow": lambda x, y, lengths: y.narrow(1, 0, int(lengths.min())),
    "a scale": lambda x, y, lengths: y / float(lengths.float().mean()),
    "a root": lambda x, y, lengths: y / math.sqrt(float(lengths.sum())),
    "a root of a whole number": lambda x, y, lengths: y / math.sqrt(int(lengths.sum())),
    "from the end": lambda x, y, lengths: y[:, -int(lengths.min()) :],
    "a clamp": lambda x, y, lengths: y.clamp(max=float(x.abs().max())),
    "rounded": lambda x, y, lengths: y[:, : int(lengths.float().mean())],
    "a mask": lambda x, y, lengths: y[:, : int(lengths.max())] * _mask(lengths)[..., None],
    "masks, made twice": _mask_made_twice,
    "the longest and the shortest": _longest_and_shortest,
    "written in between": _written_between,
    "one more": _one_more,
}
# All are as long, and as long as there are steps, so that nothing tells one from the other.
LENGTHS = [torch.tensor([5, 3, 2, 4, 1, 3]), torch.full((6,), 5), torch.full((6,), 2)]
OTHERS = [
    (torch.randn(6, 7, 4), torch.tensor([5, 7, 2, 1, 3, 3])),
    (torch.randn(3, 5, 4), torch.tensor([3, 2, 2])),
    (torch.randn(2, 9, 4), torch.tensor([8, 8])),
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=["of some lengths", "as long as can be", "of one length"])
@pytest.mark.parametrize("name", CODES)
def test_what_follows_from_a_plain_number_is_computed(name, lengths, tmp_path):
    torch.manual_seed(0)
    found = compress_half(Net(CODES[name]), (torch.randn(6, 5, 4), lengths), others=OTHERS)
    fx_oto.save(found.small, tmp_path / "small.safetensors")
    loaded = fx_oto.load(tmp_path / "small.safetensors").eval()
    for x, others in OTHERS:
        assert torch.equal(loaded(x.double(), others), found.small.eval()(x.double(), others))
    assert not fx_oto.Context.of(found.gm).capture.opaque
    assert found.zigs == 16


def _checked(y, largest):
    if largest > 100:
        raise ValueError(largest)
    return y


# What follows in a way that nobody knows.
UNKNOWN = {
    "whether to raise": lambda x, y, lengths: _checked(y, float(x.abs().max())),
    "as many turns": lambda x, y, lengths: sum((y[:, i : i + 1] for i in range(int(lengths.max()))), y),
    "rounded": lambda x, y, lengths: y * round(float(lengths.float().mean()) / 3, 1),
    "a mean by hand": lambda x, y, lengths: y * (float(lengths.sum()) / len(lengths)),
    "half of them": lambda x, y, lengths: y[:, : int(lengths.max()) // 2],
    "whether there are any": lambda x, y, lengths: y * int((lengths > 4).any()),
    "more than two": lambda x, y, lengths: y * 2 if int(lengths.max()) > 2 else y,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_does_not_is_refused(name):
    torch.manual_seed(0)
    with pytest.raises(fx_oto.TraceError, match=r"test_plain_numbers\.py:\d+.*depends on the values in a tensor"):
        fx_oto.prepare(Net(UNKNOWN[name]), (torch.randn(6, 5, 4), LENGTHS[0]))


def test_a_number_of_sizes_is_not_said_to_be_decided_by_what_the_tensor_is_made_of():
    class Counted(nn.Module):
        """A batch norm that BigGAN writes by hand, over weights whose norm is estimated in a buffer."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
            self.register_buffer("norm", torch.ones(8))

        def forward(self, x):
            y = self.a(x) * self.norm[:, None, None]
            if self.training:
                self.norm.mul_(0.9)
            return self.b(y - y.sum([0, 2, 3], keepdim=True) / float(torch.prod(torch.tensor(y.shape)[[0, 2, 3]])))

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", fx_oto.FxOtoWarning)
        fx_oto.prepare(Counted(), torch.randn(2, 3, 8, 8))
    assert not any("which calls of the model write" in str(one.message) for one in told)
