"""Two trainings in two threads of one process do not meet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fx_oto

STEPS = 30


def conv(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.SiLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).double()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.mix = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(1)[:, :96].view(len(x), 12, 8)
        return self.head(self.norm(self.mix(self.embed(tokens))).mean(1))


def attention(seed):
    torch.manual_seed(seed)
    return Attention().double()


JOBS = {
    "dhspg": (conv, 0, "DHSPG", torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "dhspg, adamw": (attention, 1, "DHSPG", torch.optim.AdamW, {"lr": 2e-3}),
    "hesso": (conv, 2, "HESSO", torch.optim.AdamW, {"lr": 2e-3}),
}


def job(net, seed, kind, base, options, wait=lambda: None):
    """From the model to the compact one."""
    generator = torch.Generator().manual_seed(seed)
    wait()
    gm = fx_oto.prepare(net, torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator))
    wait()
    optimizer = getattr(fx_oto, kind)(gm, base, target_macs=0.5, total_steps=STEPS, **options)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=generator)
        y = torch.randint(0, 4, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    wait()
    return net.state_dict(), fx_oto.compress(gm).state_dict()


@pytest.mark.parametrize("names", [("dhspg", "dhspg, adamw"), ("hesso", "dhspg"), ("dhspg", "dhspg")])
def test_two_threads_end_as_one_after_the_other(names):
    one_by_one = [job(make(seed), seed, *rest) for make, seed, *rest in map(JOBS.get, names)]
    together = Barrier(len(names)).wait
    nets = [JOBS[name][0](JOBS[name][1]) for name in names]
    with ThreadPoolExecutor(len(names)) as pool:
        started = [pool.submit(job, net, *JOBS[name][1:], together) for net, name in zip(nets, names, strict=True)]
        at_once = [one.result() for one in started]
    for expected, found in zip(one_by_one, at_once, strict=True):
        for wanted, state in zip(expected, found, strict=True):
            assert wanted.keys() == state.keys()
            assert all(torch.equal(tensor, state[name]) for name, tensor in wanted.items())
