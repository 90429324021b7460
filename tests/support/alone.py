"""The whole job with nothing installed but the library: run by continuous integration in an environment of its own."""

from __future__ import annotations

import torch
from torch import nn

import fx_oto

if __name__ == "__main__":
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 4)
    )
    inputs, labels = torch.randn(256, 8), torch.randint(0, 4, (256,))
    gm = fx_oto.prepare(model, inputs[:2])
    optimizer = fx_oto.DHSPG(gm, torch.optim.AdamW, lr=1e-3, target_group_sparsity=0.5, total_steps=40)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    small = fx_oto.compress(gm)
    torch.testing.assert_close(small.eval()(inputs), model.eval()(inputs))
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
    fx_oto.save(small, "small.safetensors")
    assert torch.equal(fx_oto.load("small.safetensors").eval()(inputs), small(inputs))
    for shown in (fx_oto.report(small), fx_oto.partition(gm).explain(), fx_oto.latency([model, small], inputs)):
        assert str(shown)
