"""What code asks that is in no input: gradients, autocast, how tensors lie in memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.exactness import compress_half
from torch import is_grad_enabled as gradients_are_on
from torch import nn
from torch.utils.checkpoint import checkpoint

import fx_oto

EXAMPLE = torch.randn(3, 2, 4, 5)


class Way(nn.Module):
    """A layer, a way that code goes, and another layer."""

    def __init__(self, way):
        super().__init__()
        self.way, self.frozen = way, True
        self.first, self.last = nn.Conv2d(2, 16, 1), nn.Conv2d(16, 4, 1)

    def twice(self, h):
        return h + h.tanh()

    def forward(self, x):
        h = self.first(x).relu()
        h = self.way(self, x, h)
        return self.last(h)


def _hooked(model, x, h):
    if model.training and h.requires_grad:
        h.register_hook(lambda grad: 2 * grad)
    return h


def _checkpointed(model, x, h):
    return checkpoint(model.twice, h, use_reentrant=False) if torch.is_grad_enabled() else model.twice(h)


def _frozen(model, x, h):
    with torch.set_grad_enabled(not model.frozen):
        return h + h.mean((2, 3), keepdim=True)


def _in_one_go(model, x, h):
    return h.add(1).relu() if torch.is_grad_enabled() else h.add_(1).relu_()


def _laid_out(model, x, h):
    return h if x.is_contiguous() else h.contiguous()


def _as_precise(model, x, h):
    return h.float().to(h.dtype) if torch.is_autocast_enabled() or torch.is_autocast_enabled("cpu") else h


SAME = [_hooked, _checkpointed, _frozen, _in_one_go, _laid_out, _as_precise]


@pytest.mark.parametrize("way", SAME)
def test_ways_that_lead_to_the_same_are_cut(way):
    found = compress_half(Way(way), EXAMPLE, any_size=True)
    assert found.zigs == 16
    assert not fx_oto.Context.of(found.small).capture.opaque


ASKED = {
    "grads on": lambda x, h: torch.is_grad_enabled(),
    "grads on, by a name of its own": lambda x, h: gradients_are_on(),
    "requires": lambda x, h: h.requires_grad,
    "input requires": lambda x, h: x.requires_grad,
    "has a node": lambda x, h: h.grad_fn is not None,
    "is a leaf": lambda x, h: x.mul(1).is_leaf,
    "inference": lambda x, h: torch.is_inference_mode_enabled(),
    "autocast": lambda x, h: torch.is_autocast_enabled(),
    "autocast on CPUs": lambda x, h: torch.is_autocast_enabled("cpu"),
    "in order": lambda x, h: x.is_contiguous(),
    "channels last": lambda x, h: x.is_contiguous(memory_format=torch.channels_last),
    "of what is computed": lambda x, h: (x + 1).is_contiguous(),
    "place": lambda x, h: x.data_ptr() != h.data_ptr(),
}
WAYS = {
    "bounded": lambda asks, x, h: h.clamp(-1, 1) if asks else h,
    "bounded far away": lambda asks, x, h: h if asks else h.clamp(-100, 100),
    "more": lambda asks, x, h: h * (2 - asks),
    "shifted": lambda asks, x, h: h if asks else h + 1,  # so that what is zero stays zero on one way alone
}


class Asking(nn.Module):
    def __init__(self, asked, way):
        super().__init__()
        self.asked, self.way = asked, way

    def forward(self, x, h):
        return self.way(self.asked(x, h), x, h)


class Around(Way):
    """Calls code that asks as a submodule."""

    def __init__(self, asked, way):
        super().__init__(None)
        self.inner, self.more = nn.Conv2d(2, 12, 1), nn.Conv2d(12, 2, 1)
        self.way = Asking(asked, way)

    def forward(self, x):
        h = self.first(self.more(self.inner(x).relu()) + x).relu()
        return self.last(self.way(x, h))


def agree_however_called(model, small):
    x = 300 * torch.randn(3, 2, 4, 5)
    given = [x, x.clone().requires_grad_(), x.to(memory_format=torch.channels_last), x.mT.contiguous().mT]
    for training in (False, True):
        model.train(training)
        small.train(training)
        for within in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            for one in given:
                with within():
                    torch.testing.assert_close(small(one), model(one), rtol=1e-4, atol=1e-3)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(small(x), model(x), rtol=5e-2, atol=5)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ways_that_lead_elsewhere_are_left_to_the_smallest_piece(asked, way):
    model = Around(asked, way)
    gm = fx_oto.prepare(model, EXAMPLE)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    small = fx_oto.compress(gm)
    assert small.inner.out_channels == 6  # all else is cut
    agree_however_called(model, small)


class Shifting(nn.Module):
    """Of what is zero, something else without gradients."""

    def forward(self, h):
        return h if torch.is_grad_enabled() else h + 1


@pytest.mark.parametrize("handed", [copy.deepcopy, lambda gm: pickle.loads(pickle.dumps(gm))], ids=["copy", "pickle"])
def test_what_a_piece_does_stays_unknown_where_a_graph_is_analysed_anew(handed):
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), Shifting(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    gm = fx_oto.prepare(model, torch.randn(3, 4))
    assert fx_oto.partition(gm).num_zigs == 4
    assert fx_oto.partition(fx_oto.prepare(handed(gm), torch.randn(3, 4))).num_zigs == 4


TEXTS = {
    "whether there are gradients": lambda model, x, h: model.last(h * 2 if h.requires_grad else h),
    "whether torch.autocast is on": lambda model, x, h: model.last(h * 2 if torch.is_autocast_enabled("cpu") else h),
    "how tensors lie in memory": lambda model, x, h: model.last(h * 2 if x.is_contiguous() else h),
}


@pytest.mark.parametrize("asked", TEXTS)
def test_what_cannot_be_left_to_a_piece_is_refused_with_line_and_remedy(asked):
    class Whole(Way):
        def forward(self, x):
            return self.way(self, x, self.first(x))

    text = rf"at .*test_circumstances\.py:\d+ .*: code asks {asked}, and computes something else by it\. What to do:"
    with pytest.raises(fx_oto.TraceError, match=text):
        fx_oto.prepare(Whole(TEXTS[asked]), EXAMPLE)


def test_torch_asks_as_before_after_a_capture():
    before = torch.is_grad_enabled, torch.is_autocast_enabled
    assert before[0] is gradients_are_on
    fx_oto.trace(Way(_checkpointed), EXAMPLE)
    with pytest.raises(fx_oto.TraceError):
        fx_oto.trace(Way(lambda model, x, h: model.last(h).sum().item() and h), EXAMPLE)
    assert before == (torch.is_grad_enabled, torch.is_autocast_enabled)
    assert before[0] is gradients_are_on
