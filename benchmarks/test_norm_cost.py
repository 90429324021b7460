"""What it costs that norms over channels keep dividing by the original count.

    pytest benchmarks/test_norm_cost.py --benchmark-enable -s

Half of the ZIGs of a network are zero and it is compressed; a twin has native norms of the same width in the place of
those over the original count: wrong numbers, same shapes. The two take turns in one process on one thread, on one image
of 224 × 224 and on four; what counts is the ratio of the medians of the thread's own time, ``spread`` is that of the
twin to a copy of itself. ``training`` is forward and backward.
"""

from __future__ import annotations

import copy
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from support.vision import build, small_vit
from tabulate import tabulate
from torch import nn

import fx_oto
from fx_oto.nn.norms import LayerNormOver, layer_norm_over
from fx_oto.reports.timing import in_turns

ROUNDS = 15


def compact(model):
    gm = fx_oto.prepare(model.eval(), torch.randn(1, 3, 224, 224))
    fx_oto.partition(gm).zero_(0.5, torch.Generator().manual_seed(0))
    return fx_oto.compress(gm).eval()


def layer_norm(value, count, weight, bias, eps):
    return F.layer_norm(value, value.shape[-1:], weight, bias, eps)


def with_native_norms(gm):
    """A copy whose norms divide by the count that is left; and how many there are."""
    twin = copy.deepcopy(gm)
    norms = [(name, module) for name, module in twin.named_modules() if isinstance(module, LayerNormOver)]
    for name, norm in norms:
        native = nn.LayerNorm(len(norm.weight), norm.eps)
        native.weight, native.bias = norm.weight, norm.bias
        twin.set_submodule(name, native)
    calls = [node for node in twin.graph.nodes if node.target is layer_norm_over]
    for node in calls:
        node.target = layer_norm
    twin.recompile()
    return twin, len(norms) + len(calls)


def milliseconds(models, run):
    """Median of each, taking turns."""
    runs = [partial(run, model) for model in models]
    seconds = in_turns(runs, ROUNDS, warmup=2, clock=time.thread_time)
    return [1e3 * statistics.median(times) for times in seconds]


def measure(model, batch):
    exact, images = compact(model), torch.randn(batch, 3, 224, 224)
    native, count = with_native_norms(exact)
    assert count
    with torch.inference_mode():
        ours, theirs, again = milliseconds((exact, native, copy.deepcopy(native)), lambda m: m(images))
    training = milliseconds((exact, native), lambda m: m(images).square().mean().backward())
    ratios = (ours / theirs, again / theirs, training[0] / training[1])
    return count, f"{theirs:.1f} ms", f"{ours:.1f} ms", *(f"{ratio:.3f}" for ratio in ratios)


def test_forward(capsys):
    networks = {"ConvNeXt-Tiny": build("convnext_tiny"), "ViT-S": small_vit()}
    rows = [(name, batch, *measure(model, batch)) for name, model in networks.items() for batch in (1, 4)]
    headers = ("half of", "images", "norms", "native", "exact", "ratio", "spread", "training")
    with capsys.disabled():
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))
