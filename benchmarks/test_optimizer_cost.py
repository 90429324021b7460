"""What a step of DHSPG costs, against a step of its base alone.

    pytest benchmarks/test_optimizer_cost.py --benchmark-enable -s

Two copies of a network, one trained by the base, one by DHSPG, take turns in one process on one thread; the ratios
are those of medians. ``inside`` is the pruning window, all of it, with 70% of the ZIGs redundant; ``before`` and
``after`` are the rest of the training. ``iteration`` is forward, backward and step inside the window.
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from tabulate import tabulate

import fx_oto

STEPS = 12  # in each phase


def networks():
    from support.vision import build, small_vit

    return {
        "ResNet-50, SGD with momentum": (build("resnet50"), torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
        "ResNet-50, AdamW": (build("resnet50"), torch.optim.AdamW, {"lr": 1e-4}),
        "ViT-S, AdamW": (small_vit(), torch.optim.AdamW, {"lr": 1e-4}),
    }


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def iterate(model, optimizer, image, label, parts):
    optimizer.zero_grad(set_to_none=False)
    parts.append(seconds(lambda: F.cross_entropy(model(image), label).backward()))


def test_step_and_iteration(capsys):
    rows = []
    for name, (model, base, options) in networks().items():
        twin = copy.deepcopy(model)
        image, label = torch.randn(4, 3, 224, 224), torch.randint(0, 1000, (4,))
        gm = fx_oto.prepare(model, image[:1])
        plain = base(twin.parameters(), **options)
        window = {"start_step": STEPS, "end_step": 2 * STEPS, "saliency_batches": 1}
        ours = fx_oto.DHSPG(gm, base, target_group_sparsity=0.7, **window, **options)
        times = {"ours": [], "plain": [], "ours whole": [], "plain whole": []}
        for _ in range(3 * STEPS):
            for key, net, optimizer in (("plain", twin, plain), ("ours", gm, ours)):
                optimizer.zero_grad()
                passes = seconds(lambda net=net: F.cross_entropy(net(image), label).backward())
                step = seconds(optimizer.step)
                times[key].append(step)
                times[f"{key} whole"].append(passes + step)

        def ratio(first, last, which="", times=times):
            mine, other = (statistics.median(times[key + which][first:last]) for key in ("ours", "plain"))
            return f"{mine / other:.2f}"

        base_step = f"{1e3 * statistics.median(times['plain']):.0f} ms"
        choice = f"{times['ours'][STEPS] / statistics.median(times['plain whole']):.2f}"
        inside = (STEPS + 1, 2 * STEPS)
        phases = (ratio(1, STEPS), ratio(*inside), ratio(2 * STEPS + 1, None), ratio(*inside, " whole"))
        rows.append((name, base_step, *phases, choice))
    headers = ("network, base", "base step", "before", "inside", "after", "iteration", "step of choice / iteration")
    with capsys.disabled():
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))
