"""What a step of the group-sparse optimizers costs, against a step of the base alone.

    pytest benchmarks/test_optimizer_cost.py --benchmark-enable -s

Two copies of a network, one trained by the base and one by DHSPG, take turns in one process on one thread, with 70% of
the ZIGs redundant. A training of 2,000 steps is begun: ``before`` and ``inside`` are its
first steps and those from the opening of the pruning window on, ``after`` is a training whose window is over. What
counts are ratios of medians; inside, where not every step is the same, of the means of strides of sixteen steps.
``iteration`` is forward and backward of the eager model on four images and a step inside, ``iteration, gm`` the same of
the prepared GraphModule with its masks; both are over an iteration of the eager model with the base alone, in which
``choosing``, the one step that chooses the redundant ZIGs, is counted too.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from support.vision import build, small_vit
from tabulate import tabulate

import fx_oto
from fx_oto.reports.timing import in_turns

STRIDE, STRIDES = 16, 3
SGD = (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9})
ADAMW = (torch.optim.AdamW, {"lr": 1e-4})


def networks():
    return {
        "ResNet-50, SGD + momentum": (build("resnet50"), *SGD, 0.7),
        "ResNet-50, AdamW": (build("resnet50"), *ADAMW, 0.7),
        "ViT-S, AdamW": (small_vit(), *ADAMW, 0.7),
    }


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def by_step(base, ours, steps):
    """Seconds of each step of both optimizers, taking turns."""
    return list(zip(*in_turns([base.step, ours.step], steps, warmup=0), strict=True))


def ratio(pairs, group=1):
    """Ours over the base's, by the medians of means over ``group`` steps."""
    means = [
        [statistics.mean(column) for column in zip(*pairs[i : i + group], strict=True)]
        for i in range(0, len(pairs) - group + 1, group)
    ]
    base, ours = (statistics.median(column) for column in zip(*means, strict=True))
    return ours / base


def passes(model, image, label):
    model.zero_grad()
    return seconds(lambda: F.cross_entropy(model(image), label).backward())


def measure(model, base, options, target):
    image, label = torch.randn(4, 3, 224, 224), torch.randint(0, 1000, (4,))
    gm, third, twin = (*(fx_oto.prepare(copy.deepcopy(model), image[:1]) for _ in range(2)), model)
    plain = base(twin.parameters(), **options)
    settings = {"target_group_sparsity": target, "saliency_batches": 1, **options}
    ours = fx_oto.DHSPG(gm, base, total_steps=2000, start_step=STRIDE, **settings)
    over = fx_oto.DHSPG(third, base, start_step=0, end_step=1, **settings)
    turns = [[passes(net, image, label) for net in (twin, gm)] for _ in range(5)]
    eager, masked = (statistics.median(column) for column in zip(*turns, strict=True))
    passes(third, image, label)
    before = by_step(plain, ours, STRIDE)
    choosing = seconds(ours.step)
    by_step(plain, ours, STRIDE - 1)
    inside = by_step(plain, ours, STRIDE * STRIDES)
    over.step()
    after = by_step(plain, over, STRIDE)
    base_step = statistics.median(pair[0] for pair in before)
    step, whole = ratio(inside, STRIDE) * base_step, eager + base_step
    iterations = ((eager + step) / whole, (masked + step) / whole)
    figures = (ratio(before), ratio(inside, STRIDE), ratio(after), *iterations, choosing / whole)
    return f"{1e3 * base_step:.0f} ms", *(f"{figure:.2f}" for figure in figures)


def test_step_and_iteration(capsys):
    rows = [(name, *measure(*case)) for name, case in networks().items()]
    headers = ("network, base", "base step", "before", "inside", "after", "iteration", "iteration, gm", "choosing")
    with capsys.disabled():
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))
