"""Ctrl-C at any moment leaves no setting of the process changed, and the user's model as it was."""

from __future__ import annotations

import copy
import random
import signal
import subprocess
import sys

import pytest
import torch
from support import interrupts
from support.interrupts import calls_of, inside_of, interrupted_at, settings
from torch import nn

import fx_oto

X = torch.randn(2, 5, 6)
MOMENTS = [pytest.param(12), pytest.param(400, marks=pytest.mark.slow)]


class Net(nn.Module):
    """Notes what it is called with, and has what capture changes settings of the process for."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.mix, self.b, self.seen = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3), []

    def forward(self, x):
        self.seen.append(len(x))
        h = self.norm(self.a(x).relu())
        return self.b(h + self.mix(h, h, h, need_weights=False)[0]).mean(1)


def make_net():
    torch.manual_seed(0)
    return Net()


def pruned():
    net = make_net()
    gm = fx_oto.prepare(net, X)
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    return net, gm


def moments(work, count, seed=0):
    """Numbers of calls, spread over all that a piece of work makes; the work has been done once before."""
    total = calls_of(work)
    assert total > 100
    return sorted(random.Random(seed).sample(range(total), count))


# An interrupt inside of a destructor or a generator that is thrown away cannot be raised: Python says so instead.
unraisable = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@unraisable
@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("name", ["prepare", "compress"])
def test_an_interrupt_leaves_everything_as_it_was(name, count):
    net, gm = pruned()
    work = {"prepare": lambda: fx_oto.prepare(net, X), "compress": lambda: fx_oto.compress(gm)}[name]
    work()
    at = moments(work, count)
    before, model = settings(), inside_of(net)
    for number in at:
        with interrupted_at(number) as interrupt:
            work()
        assert interrupt.raised, number
        assert settings() == before, number
        assert inside_of(net) == model, number
    torch.testing.assert_close(fx_oto.compress(pruned()[1]).eval()(X), fx_oto.compress(gm).eval()(X))


@unraisable
@pytest.mark.parametrize("count", MOMENTS)
@pytest.mark.parametrize("kind", ["DHSPG", "HESSO"])
def test_after_an_interrupt_in_a_step_a_training_goes_on_from_what_was_saved(kind, count):
    net = make_net()
    gm = fx_oto.prepare(net, X)
    options = {"start_step": 1, "end_step": 7, "periods": 2, "saliency_batches": 1, "target_group_sparsity": 0.5}
    optimizer = getattr(fx_oto, kind)(gm, torch.optim.SGD, lr=0.1, momentum=0.9, **options)

    def gradients(step):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        net(torch.randn(4, 5, 6, generator=generator)).square().mean().backward()

    def restore(saved):
        net.load_state_dict(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))

    dice, before = random.Random(0), settings()
    for step in range(9):
        saved = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
        gradients(step)
        calls = calls_of(optimizer.step)
        after = copy.deepcopy(net.state_dict())
        for number in dice.sample(range(calls), min(count // 4, calls)):
            restore(saved)
            gradients(step)
            with interrupted_at(number) as interrupt:
                optimizer.step()
            assert interrupt.raised
            assert settings() == before
        restore(saved)
        gradients(step)
        optimizer.step()
        assert all(torch.equal(tensor, after[name]) for name, tensor in net.state_dict().items())
    assert fx_oto.partition(gm).group_sparsity() == 0.5


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the system has no such timers")
def test_a_real_signal():
    done = subprocess.run([sys.executable, interrupts.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
