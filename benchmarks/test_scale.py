"""Growth with the number of layers, of modules in each other, of parameters: seconds of ``prepare`` and ``compress``.

    pytest benchmarks/test_scale.py --benchmark-enable -s

Small layers, so that nearly all of the time is ours; process time on one thread, each size in a process of its own,
with the highest resident memory of it. Networks of timm that took longest: ``prepare`` beside a forward pass.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from tabulate import tabulate
from torch import nn

import fx_oto

WIDTH = 8
LARGE = ("nasnetalarge", "pnasnet5large", "halonet_h1", "sequencer2d_s", "swinv2_cr_tiny_224")


class Layers(nn.Module):
    """Linear layers, one after another or side by side, and a head that reads the last or all of them."""

    def __init__(self, count, kind):
        super().__init__()
        self.kind = kind
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.head = nn.Linear(WIDTH * count if kind == "side by side" else WIDTH, 3)

    def forward(self, x):
        x = self.stem(x)
        if self.kind == "side by side":
            return self.head(torch.cat([layer(x).relu() for layer in self.layers], -1))
        for layer in self.layers if self.kind != "unused" else ():
            x = x + 0.01 * layer(x).tanh() if self.kind == "residual" else layer(x).relu()
        return self.head(x)


class Nested(nn.Module):
    """Modules in each other, ``depth`` deep, around what is innermost."""

    def __init__(self, depth, inner):
        super().__init__()
        self.layer, self.inner = nn.Linear(WIDTH, WIDTH), Nested(depth - 1, inner) if depth else inner

    def forward(self, x):
        return self.inner(self.layer(x).relu())


KINDS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "in a row": (partial(Layers, kind="in a row"), (2_000, 4_000, 8_000)),
    "residual": (partial(Layers, kind="residual"), (2_000, 4_000, 8_000)),
    "side by side": (partial(Layers, kind="side by side"), (2_000, 4_000, 8_000)),
    "unused": (partial(Layers, kind="unused"), (25_000, 50_000)),
    "250 in a row, in modules": (lambda depth: Nested(depth, Layers(250, "in a row")), (75, 150)),
}


def _measure(kind, count, pipe):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = KINDS[kind][0](count), torch.randn(2, WIDTH)
    warm = fx_oto.prepare(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)), x)
    fx_oto.compress(fx_oto.partition(warm).zero_(0.5).module)
    times = [time.process_time()]
    gm = fx_oto.prepare(model, x)
    times.append(time.process_time())
    fx_oto.partition(gm).zero_(0.5)
    times.append(time.process_time())
    fx_oto.compress(gm)
    times.append(time.process_time())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send((len(gm.graph.nodes), times[1] - times[0], times[3] - times[2], peak))


def test_growth(capsys):
    rows = []
    for kind, (_, counts) in KINDS.items():
        for count in counts:
            mine, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_measure, args=(kind, count, theirs))
            process.start()
            theirs.close()  # a process that died would be waited for else
            nodes, prepared, compressed, peak = mine.recv()
            process.join()
            rows.append(
                (kind, f"{count:,}", f"{nodes:,}", f"{prepared:.1f} s", f"{compressed:.1f} s", f"{peak:.2f} GiB")
            )
    with capsys.disabled():
        headers = ("layers", "count", "nodes", "prepare", "compress", "peak memory")
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def test_networks_that_take_long(capsys):
    from support.vision import build

    build("resnet18")  # makes torchvision, which timm imports, importable
    timm, rows = pytest.importorskip("timm", reason="timm is not installed"), []
    for name in LARGE:
        model = timm.create_model(name).eval()
        size = model.pretrained_cfg["input_size"][-1]
        image, start = torch.randn(1, 3, size, size), time.process_time()
        gm = fx_oto.prepare(model, image)
        prepared, start = time.process_time() - start, time.process_time()
        with torch.no_grad():
            model(image)
        passed = time.process_time() - start
        rows.append((name, f"{len(gm.graph.nodes):,}", f"{prepared:.1f} s", f"{passed:.1f} s"))
    with capsys.disabled():
        headers = ("network", "nodes", "prepare", "one forward pass")
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))
