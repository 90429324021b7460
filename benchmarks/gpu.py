"""What group-sparse training costs on a device, and what compression brings there: one command, minutes on one card.

    python benchmarks/gpu.py                       # on the accelerator; tables in Markdown
    python benchmarks/gpu.py --device cpu --quick  # that it runs: small networks, few rounds

Steps of the base alone and of DHSPG take turns over the same gradients, before, inside and after the pruning window,
with 70% of the ZIGs redundant; ratios are those of medians, inside of means over strides. Forward passes are those of
the model and of its compact one for several group sparsities, in eval mode, as they are and compiled. The last table
shards the model over the one card with FSDP2.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.vision import build, small_vit
from tabulate import tabulate

import fx_oto
from fx_oto.reports.timing import in_turns

SGD = (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9})
ADAMW = (torch.optim.AdamW, {"lr": 1e-4})
STRIDE, REDUNDANT = 16, 0.7


class Place:
    """A device, how much is measured on it, and a clock that waits for it."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device, self.quick = torch.device(device), quick
        self.images, self.size, self.rounds = (2, 64, 3) if quick else (32, 224, 30)

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def waiting(self, run):
        def whole():
            run()
            self.wait()

        return whole

    def networks(self):
        if self.quick:
            return {"ResNet-18, SGD": (build("resnet18"), *SGD)}
        return {
            "ResNet-50, SGD": (build("resnet50"), *SGD),
            "ResNet-50, AdamW": (build("resnet50"), *ADAMW),
            "ViT-S, AdamW": (small_vit(), *ADAMW),
        }

    def batch(self):
        images = torch.randn(self.images, 3, self.size, self.size, device=self.device)
        return images, torch.randint(0, 1000, (self.images,), device=self.device)


def backward(model, batch):
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()


def ratio(pairs, group=1):
    """The second over the first, by medians of means over ``group`` of them."""
    base, ours = ([statistics.mean(column[i : i + group]) for i in range(0, len(column), group)] for column in pairs)
    return statistics.median(ours) / statistics.median(base)


def measured(place, base, ours, steps):
    place.wait()
    return in_turns([place.waiting(base.step), place.waiting(ours.step)], steps, warmup=0)


def steps(place):
    """Rows of what a step costs."""
    for name, (original, base, options) in place.networks().items():
        batch = place.batch()
        twin, third, model = (copy.deepcopy(original).to(place.device) for _ in range(3))
        backward(twin, batch)
        plain = base(twin.parameters(), **options)
        many = max(place.rounds, STRIDE)
        settings = {"target_group_sparsity": REDUNDANT, "saliency_batches": 1, **options}
        row = [name]
        for stride in (None, 1):
            net = copy.deepcopy(model)
            gm = fx_oto.prepare(net, batch[0][:2])
            optimizer = fx_oto.DHSPG(gm, base, start_step=many, end_step=3200 + many, stride=stride, **settings)
            backward(net, batch)
            before = measured(place, plain, optimizer, many)
            measured(place, plain, optimizer, STRIDE)
            row += [ratio(before)] if stride is None else []
            row.append(ratio(measured(place, plain, optimizer, STRIDE * 3), STRIDE))
        over = fx_oto.DHSPG(fx_oto.prepare(third, batch[0][:2]), base, start_step=0, end_step=1, **settings)
        backward(third, batch)
        over.step()
        after = measured(place, plain, over, many)
        whole = in_turns([place.waiting(lambda twin=twin, batch=batch: backward(twin, batch))], 5, warmup=1)[0]
        yield *row, ratio(after), statistics.median(after[0]), statistics.median(whole)


def half_zero(place, model, fraction, image):
    gm = fx_oto.prepare(model, image)
    fx_oto.partition(gm).zero_(fraction, torch.Generator().manual_seed(0))
    return gm, fx_oto.compress(gm)


def passes(place):
    """Rows of multiply-adds that are left, and of what forward passes take."""
    fractions = (0.5,) if place.quick else (0.3, 0.5, 0.7)
    for name, (original, *_) in place.networks().items():
        if "AdamW" in name and "ResNet" in name:
            continue
        images = place.batch()[0]
        for fraction in fractions:
            model = copy.deepcopy(original).to(place.device).eval()
            _, small = half_zero(place, model, fraction, images[:1])
            left = fx_oto.cost(small, images[:1]).macs / fx_oto.cost(model, images[:1]).macs
            pair = [model, small.eval()]
            times = [forward(place, pair, images)]
            if hasattr(torch, "compile"):
                times.append(forward(place, [torch.compile(one) for one in pair], images))
            yield name.split(",")[0], fraction, left, *(full / compact for full, compact in times)


def forward(place, models, images):
    """Median seconds of each model."""
    with torch.no_grad():
        runs = [place.waiting(lambda one=one: one(images)) for one in models]
        return [statistics.median(mine) for mine in in_turns(runs, place.rounds, warmup=3)]


def sharded(place):
    """Rows of a training whose parameters are sharded, or why it cannot be."""
    from torch.distributed.fsdp import fully_shard

    kind = "nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(kind, store=dist.HashStore(), rank=0, world_size=1)
    try:
        name, (model, base, options) = next(iter(place.networks().items()))
        model, batch = model.to(place.device), place.batch()
        gm = fx_oto.prepare(model, batch[0][:2])
        fully_shard(model, mesh=dist.init_device_mesh(place.device.type, (1,)))
        settings = {"target_group_sparsity": REDUNDANT, "saliency_batches": 1, **options}
        ours = fx_oto.DHSPG(gm, base, start_step=0, end_step=STRIDE, **settings)
        times = []
        for _ in range(2 * STRIDE):
            backward(model, batch)
            start = time.perf_counter()
            ours.step()
            place.wait()
            times.append(time.perf_counter() - start)
        yield name, *(f"{1e3 * statistics.median(part):.1f} ms" for part in (times[:STRIDE], times[STRIDE:]))
    except fx_oto.FxOtoError as error:
        yield str(error), "", ""
    finally:
        dist.destroy_process_group()


def show(title, rows, headers):
    print(f"\n{title}\n")
    rows = [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    parser.add_argument("--device", default=str(there or "cpu"))
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds: shows that it runs")
    given = parser.parse_args()
    place = Place(given.device, given.quick)
    known = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else place.device
    print(f"{known}, torch {torch.__version__}, {place.images} images of {place.size} pixels")
    headers = ("network, base", "before", "inside", "inside, stride 1", "after", "base step, s", "passes, s")
    show("Steps over the base's", steps(place), headers)
    headers = ("network", "group sparsity", "MACs left", "speed-up", "speed-up, compiled")
    show("Forward passes", passes(place), headers)
    show("FSDP2 on one device", sharded(place), ("network", "step inside", "step after"))


if __name__ == "__main__":
    main()
