"""How long trace + analysis + partition take, against Torch-Pruning and against depth.

    pytest benchmarks/test_analysis_time.py --benchmark-enable -s

Torch-Pruning (``pip install torch-pruning==1.6.1``) lists its groups with ``build_dependency`` and
``get_all_groups``; the two libraries take turns in one process on one thread, and medians are compared.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
import warnings
from functools import partial

import pytest
import torch
from support.networks import Bottleneck, Decoder, ResNet
from tabulate import tabulate

import fx_oto
from fx_oto.timing import in_turns
from passes import DependencyAnalysis, PhysicalSlicing, Verification, ZIGPartition

NETWORKS = ("resnet50", "densenet121", "mobilenet_v3_large", "convnext_tiny")
ROUNDS = 9


def analyse(model, image):
    pipeline = fx_oto.Pipeline((DependencyAnalysis(), ZIGPartition()))
    return fx_oto.partition(fx_oto.prepare(model, image, passes=pipeline)).num_zigs


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def test_against_torch_pruning(capsys):
    pruning = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    from support.vision import build

    def list_groups(model, image):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(pruning.DependencyGraph().build_dependency(model, image).get_all_groups())

    rows = []
    for name in NETWORKS:
        model, image = build(name).eval(), torch.randn(1, 3, 224, 224)
        runs = [partial(function, model, image) for function in (analyse, list_groups)]
        mine, other = map(statistics.median, in_turns(runs, ROUNDS, warmup=0))
        rows.append((name, f"{mine:.3f} s", f"{other:.3f} s", f"{mine / other:.2f}"))
    with capsys.disabled():
        print("\n" + tabulate(rows, ("network", "fx_oto", "Torch-Pruning 1.6.1", "ratio")))


def test_what_the_check_after_each_pass_costs(capsys):
    """``prepare`` and ``compress`` with the check and without, taking turns; process time, for one thread."""
    model, image = ResNet(Bottleneck, [3, 4, 6, 3]).eval(), torch.randn(2, 3, 32, 32)
    gm = fx_oto.prepare(model, image)
    fx_oto.partition(gm).zero_(0.5)

    def prepare(verify):
        return fx_oto.prepare(model, image, passes=fx_oto.Pipeline(fx_oto.default_pipeline().stages, verify=verify))

    def compress(verify):
        return fx_oto.Pipeline((PhysicalSlicing(), Verification(gm)), verify=verify).run(gm)

    rows = []
    for job in (prepare, compress):
        runs = [partial(job, verify) for verify in (True, False)]
        checked, plain = map(statistics.median, in_turns(runs, ROUNDS, warmup=1, clock=time.process_time))
        rows.append((job.__name__, f"{plain:.3f} s", f"{checked:.3f} s", f"{checked / plain:.2f}"))
    with capsys.disabled():
        print("\n" + tabulate(rows, ("ResNet-50", "without", "with the check", "ratio")))


@pytest.mark.parametrize("blocks", [4, 8, 16, 32])
def test_growth_with_depth(benchmark, blocks):
    model = ResNet(Bottleneck, [blocks // 4] * 4).eval()
    image = torch.randn(1, 3, 32, 32)
    nodes = len(fx_oto.trace(model, image).graph.nodes)
    benchmark.extra_info["nodes"] = nodes
    benchmark.pedantic(analyse, (model, image), rounds=9, warmup_rounds=2)
    if benchmark.stats:  # None when benchmarks are disabled
        benchmark.extra_info["milliseconds per node"] = 1e3 * benchmark.stats.stats.median / nodes


def _analyse_decoder(layers, pipe):
    torch.set_num_threads(1)
    with torch.device("meta"):
        model, ids = Decoder(layers=layers), torch.zeros(2, 64, dtype=torch.int64)
    passed = seconds(analyse, model, ids)
    params = sum(parameter.numel() for parameter in model.parameters())
    pipe.send((params, passed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def test_language_models_on_the_meta_device(capsys):
    """Seconds and peak memory, each size in a process of its own; 32 layers have 7 billion parameters."""
    rows = []
    for layers in (4, 8, 16, 32):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_analyse_decoder, args=(layers, theirs))
        process.start()
        params, passed, memory = mine.recv()
        process.join()
        rows.append((layers, f"{params / 1e9:.2f}", f"{passed:.1f} s", f"{memory:.2f} GiB"))
    with capsys.disabled():
        print("\n" + tabulate(rows, ("layers", "billion parameters", "analysis", "peak memory")))
