"""The authors' published dependency graphs: how many groups there are, and which."""

from __future__ import annotations

import pytest
import torch
from support import networks

import fx_oto

IMAGE = torch.randn(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("build", "zigs"),
    [
        (networks.DemoNet, 64 + 128 + 256 + 128),
        (networks.VGG, 5248),
        (networks.resnet18, 2880),
        (networks.resnet50, 11456),
    ],
    ids=["DemoNet", "VGG16-BN", "ResNet18", "ResNet50"],
)
def test_number_of_groups(build, zigs):
    assert fx_oto.partition(fx_oto.prepare(build(), IMAGE)).num_zigs == zigs


def test_demonet_is_the_authors():
    assert fx_oto.cost(networks.DemoNet(), IMAGE) == fx_oto.Cost(627_338, 605_783_296)


def test_demonet_families_and_concatenation_offsets():
    families = fx_oto.partition(fx_oto.prepare(networks.DemoNet(), IMAGE)).families
    slots = {frozenset(slot.tensor for slot in family.slots if slot.variable and slot.dim == 0) for family in families}
    stem, both = {"conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias"}, {"bn4.weight", "bn4.bias"}
    pair = {f"{kind}{i}.{part}" for kind in ("conv", "bn") for i in (2, 3) for part in ("weight", "bias")}
    assert slots == {
        frozenset(stem | both),
        frozenset(pair | both),
        frozenset({"conv5.weight", "conv5.bias"}),
        frozenset({"linear1.weight", "linear1.bias"}),
    }
    offsets = {
        len(family): int(slot.index.min())
        for family in families
        for slot in family.slots
        if slot.tensor == "bn4.weight"
    }
    assert offsets == {64: 0, 128: 64}


def test_residual_stages_are_one_family_each():
    families = fx_oto.partition(fx_oto.prepare(networks.resnet50(), IMAGE)).families
    residual = [len(family) for family in families if sum(s.variable and s.dim == 0 for s in family.slots) > 9]
    assert residual == [256, 512, 1024, 2048]
    assert len(families) == 37  # the authors count the output as one more component


def test_every_index_is_in_one_group_only():
    gm = fx_oto.prepare(networks.DemoNet(), IMAGE)
    seen = {}
    for family in fx_oto.partition(gm).families:
        for slot in family.slots:
            seen.setdefault((slot.tensor, slot.dim), []).append(slot.index.reshape(-1))
    for (name, dim), parts in seen.items():
        indices = torch.cat(parts)
        assert indices.unique().numel() == indices.numel()
        tensor = dict(gm.named_parameters()) | dict(gm.named_buffers())
        assert int(indices.max()) < tensor[name].shape[dim]


def test_counts_are_exact_after_slicing():
    net = networks.DemoNet()
    gm = fx_oto.prepare(net, IMAGE)
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm)
    a, b, c, d = 32, 64, 128, 64
    both = a + b
    weights = 9 * (3 * a + 2 * a * b + both * c) + c * d + d * 10
    biases_and_norms = 3 * a + 6 * b + 2 * both + c + d + 10
    assert fx_oto.cost(small, IMAGE) == fx_oto.Cost(
        weights + biases_and_norms, 1024 * 9 * (3 * a + 2 * a * b + both * c) + c * d + d * 10
    )
