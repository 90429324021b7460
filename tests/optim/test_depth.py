"""``min_kept=0``: depth joins width, so that whole branches go where a target asks for it."""

from __future__ import annotations

import pytest
import torch
from support.exactness import randomise
from torch import nn

import fx_oto


class Block(nn.Module):
    """Attention-less transformer block: a norm, an expansion and a projection beside a shortcut."""

    def __init__(self, width, inner):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Tower(nn.Module):
    def __init__(self, width=6, inner=8, depth=4):
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, 3)
        self.blocks = nn.Sequential(*(Block(width, inner) for _ in range(depth)))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


def train(gm, optimizer, steps=40):
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(64, 5, generator=generator), torch.randn(64, 3, generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        (gm(x) - y).square().mean().backward()
        optimizer.step()


WINDOW = {"lr": 0.01, "total_steps": 40, "start_step": 5, "end_step": 30}


@pytest.mark.parametrize("optimizer", ["DHSPG", "HESSO"])
@pytest.mark.parametrize("target", ["target_macs", "target_params"])
def test_a_target_is_reached_by_whole_blocks(optimizer, target):
    torch.manual_seed(0)
    model, x = Tower(), torch.randn(3, 5)
    gm = fx_oto.prepare(model, x)
    zigs = fx_oto.partition(gm)
    ends = {"unprunable": ["stem"], **WINDOW, target: 0.25}
    with pytest.raises(fx_oto.SettingsError, match="cannot be reached"):  # with one unit left of each block
        getattr(fx_oto, optimizer)(gm, **{**ends, target: 0.15}, min_kept=1)
    opt = getattr(fx_oto, optimizer)(gm, **ends, min_kept={"blocks": 0}, allocation="global", saliency="magnitude")
    train(gm, opt)
    small = fx_oto.compress(gm)
    dropped = fx_oto.Context.of(small).get(fx_oto.DroppedBranches)
    assert dropped.families
    cost, full = fx_oto.cost(small, x), fx_oto.cost(gm, x)
    reached = opt.reached()
    assert reached["params"] == cost.params / full.params
    assert reached["macs"] == pytest.approx(cost.macs / full.macs, abs=1e-12)
    assert reached[target.removeprefix("target_")] <= 0.25
    batch = torch.randn(7, 5)
    torch.testing.assert_close(small.eval()(batch), model.eval()(batch), rtol=1e-5, atol=1e-6)
    assert zigs.depth.may_go(range(len(zigs.families))) == frozenset(range(1, len(zigs.families)))


def gone(model, x, **options):
    """The families of which none need be kept."""
    gm = fx_oto.prepare(model, x)
    optimizer = fx_oto.DHSPG(gm, target_group_sparsity=0.1, **WINDOW, **options)
    families = fx_oto.partition(gm).families
    return [f.name for f, most in zip(families, optimizer.limits.most, strict=True) if most == len(f)]


def test_which_families_may_go_altogether():
    model, x = Tower(depth=2), torch.randn(3, 5)
    both = ["blocks.0.up.weight", "blocks.1.up.weight"]
    assert gone(model, x) == gone(model, x, min_kept=0.0) == gone(model, x, min_kept=1) == []
    assert gone(model, x, min_kept=0) == both
    assert gone(model, x, min_kept={"blocks.1": 0}) == both[1:]
    assert gone(model, x, min_kept={"blocks.0": 3, "blocks": 0}) == both[1:]
    assert gone(model, x, min_kept=0, max_group_sparsity={"blocks.0": 0.9}) == both[1:]
    assert gone(model, x, min_kept=0, round_to=3) == both
    assert gone(model, x, min_kept=0, uniform=["blocks.*.up"]) == both
    assert gone(model, x, min_kept={"blocks.1": 0}, uniform=["blocks.*.up"]) == []
    assert gone(model, x, min_kept=0, unprunable=["blocks.0"]) == both[1:]


def test_of_branches_that_exclude_each_other_one_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(3))

        def forward(self, x):
            return self.a(x) + self.b(x) + self.c(x)

    assert gone(Both(), torch.randn(3, 5), min_kept=0) == ["a.0.weight", "b.0.weight"]
    assert gone(Both(), torch.randn(3, 5), min_kept={"b": 0, "c": 0}) == ["b.0.weight", "c.0.weight"]


def test_a_family_that_all_depends_on_is_refused_by_name():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(3, 5)
    assert gone(model, x, min_kept=0) == []
    with pytest.raises(fx_oto.SettingsError, match=r"min_kept=\{'0': 0\} asks that all of '0.weight' may go"):
        gone(model, x, min_kept={"0": 0})


@pytest.mark.parametrize("quantity", ["params", "macs"])
def test_prices_are_those_of_the_compact_model(quantity):
    """Whatever is gone altogether, and however much of the rest."""
    x, generator = torch.randn(3, 5), torch.Generator().manual_seed(4)
    for case in range(8):
        torch.manual_seed(case)
        gm = fx_oto.prepare(randomise(Tower()), x)
        zigs = fx_oto.partition(gm).zero_(0.3, generator)
        for i in range(1, len(zigs.families)):
            if case >> (i - 1) & 1:
                zigs.zero_zigs_(i, torch.arange(len(zigs.families[i])))
        cost = fx_oto.cost(fx_oto.compress(gm), x)
        assert getattr(zigs, quantity).left(zigs.removed()) == getattr(cost, quantity)


def test_latency_is_measured_without_the_branches():
    torch.manual_seed(0)
    gm = fx_oto.prepare(randomise(Tower(depth=1)), torch.randn(3, 5))
    optimizer = fx_oto.DHSPG(gm, target_latency=0.999, min_kept={"blocks": 0}, unprunable=["stem"], **WINDOW)
    assert optimizer.target.fraction(torch.tensor([0, 8])) > 0
