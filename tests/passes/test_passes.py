"""What every pass owes: same inputs and outputs, honest ``modified``, idempotent, deterministic, input untouched."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from support.exactness import randomise
from support.networks import DemoNet
from torch import nn

import fx_oto
import fx_oto.passes
from fx_oto.api import default_pipeline
from fx_oto.core.masks import masks_of
from fx_oto.testing import check_pass

IMAGE = torch.randn(2, 3, 16, 16, dtype=torch.float64)


@pytest.fixture
def traced():
    return fx_oto.trace(randomise(DemoNet().double()), IMAGE)


@pytest.fixture
def prepared():
    return fx_oto.prepare(randomise(DemoNet().double()), IMAGE)


@pytest.mark.parametrize("stage", list(default_pipeline()), ids=lambda stage: stage.name)
def test_preparing_passes(stage, traced):
    gm = traced
    for earlier in default_pipeline():
        if earlier.name == stage.name:
            break
        gm = earlier(gm).graph_module
    check_pass(stage, gm)


def test_slicing_and_verification(prepared):
    fx_oto.partition(prepared).zero_(0.5)
    small = check_pass(fx_oto.passes.PhysicalSlicing(), prepared)
    assert fx_oto.passes.Verification(prepared)(small).graph_module is small
    report = fx_oto.Context.of(small).get(fx_oto.VerificationReport)
    assert report.error <= report.tolerance == 1e-10


def test_the_plan_tells_which_indices_were_kept(prepared):
    fx_oto.partition(prepared).zero_(0.5)
    full = {name: tensor.clone() for name, tensor in prepared.named_parameters()}
    small = fx_oto.compress(prepared)
    kept = fx_oto.Context.of(small).get(fx_oto.SlicingPlan).kept
    for name, tensor in small.named_parameters():
        expected = full[name]
        for dim in range(expected.ndim):
            if (name, dim) in kept:
                expected = expected.index_select(dim, kept[name, dim])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_the_compact_model_owns_its_parameters(prepared):
    fx_oto.partition(prepared).zero_(0.5)
    small = fx_oto.compress(prepared)
    mine = {p.untyped_storage().data_ptr() for p in (*prepared.parameters(), *prepared.buffers())}
    assert not mine & {p.untyped_storage().data_ptr() for p in (*small.parameters(), *small.buffers()) if p.numel()}
    assert not any("mask" in name for name, _ in small.named_buffers())


def test_verification_names_the_first_node_that_differs(prepared):
    fx_oto.partition(prepared).zero_(0.5)
    small = fx_oto.passes.PhysicalSlicing()(prepared).graph_module
    with torch.no_grad():
        small.get_parameter("conv3.weight").mul_(1.01)
    text = r"first at node 'conv3' \(Conv2d at .*networks\.py:\d+\)\. Nothing was changed: please report this model"
    with pytest.raises(fx_oto.VerificationError, match=text):
        fx_oto.passes.Verification(prepared)(small)


class Sampling(nn.Module):
    """Random in evaluation too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)

    def forward(self, x):
        other = x.new(3, 6).zero_() + x.new_empty(2, 6).fill_(0).sum()  # of unwritten memory at first
        return self.b(F.dropout(F.relu(self.a(x + other.sum())), 0.5, training=True))


def test_a_model_that_is_random_in_evaluation_is_told_so():
    gm = fx_oto.prepare(Sampling(), torch.randn(8, 6))
    fx_oto.partition(gm).zero_(0.5)
    with pytest.raises(fx_oto.VerificationError) as caught:
        fx_oto.compress(gm)
    assert "the group-sparse model does not return the same twice, in evaluation" in str(caught.value)
    assert re.search(r"first at node 'dropout' \(dropout at .*test_passes\.py:\d+\)", str(caught.value))
    assert "Let the model draw random numbers only in training" in str(caught.value)
    assert "a seed is not enough" in str(caught.value)


def test_masks_alone_have_the_effect_of_zero_groups(prepared):
    zigs = fx_oto.partition(prepared)
    twin = copy.deepcopy(prepared)
    generator = torch.Generator().manual_seed(0)
    for i, family in enumerate(zigs.families):
        gone = torch.randperm(len(family), generator=generator)[: len(family) // 2]
        zigs.mask_(i, gone)
        fx_oto.partition(twin).zero_zigs_(i, gone)
    masked, zeroed = prepared.eval()(IMAGE), twin.eval()(IMAGE)
    torch.testing.assert_close(masked, zeroed, rtol=1e-10, atol=1e-12)
    assert zigs.group_sparsity() == 0
    assert [hidden.sum() for hidden in zigs.masked()] == [len(family) // 2 for family in zigs.families]
    torch.testing.assert_close(fx_oto.compress(twin).eval()(IMAGE), masked, rtol=1e-10, atol=1e-12)


def test_there_is_one_mask_for_each_family(prepared):
    for i, family in enumerate(fx_oto.partition(prepared).families):
        assert torch.equal(masks_of(prepared).of(i), torch.ones(len(family)))


def test_a_model_with_an_expanded_buffer_is_verified():
    """Its elements share memory, which cannot be written element by element."""

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
            self.register_buffer("offset", None)

        def forward(self, x):
            return self.body(x) + self.offset

    model, x = Offset().double(), torch.randn(2, 4, dtype=torch.float64)
    model.offset = torch.full((1,), 0.5, dtype=torch.float64).expand(3)
    gm = fx_oto.prepare(model, x)
    fx_oto.partition(gm).zero_(0.5)
    torch.testing.assert_close(fx_oto.compress(gm)(x), model(x), rtol=1e-10, atol=0)


class Tempered(nn.Module):
    """What a removed unit is worth depends on a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("temperature", torch.tensor(2.0))

    def forward(self, x):
        return self.b(torch.sigmoid(self.a(x)) * self.temperature)


def test_a_buffer_that_has_changed_since_is_named():
    model = Tempered()
    gm = fx_oto.prepare(model, torch.randn(8, 6))
    fx_oto.partition(gm).zero_(0.5)
    assert fx_oto.compress(gm) is not None
    model.temperature.fill_(3.0)
    with pytest.raises(fx_oto.VerificationError, match="the content of the buffer temperature has changed since"):
        fx_oto.compress(gm)
