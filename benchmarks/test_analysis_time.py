"""How long ``prepare`` and ``compress`` take, as a user calls them, against Torch-Pruning and against depth.

    pytest benchmarks/test_analysis_time.py --benchmark-enable -s

What is measured is all of ``fx_oto.partition(fx_oto.prepare(model, inputs))``, with masks and checks, and all of
``fx_oto.compress(gm)`` of the half-zeroed model, with its comparison of outputs. Torch-Pruning
(``pip install torch-pruning==1.6.1``) lists its groups with ``build_dependency`` and ``get_all_groups``. They take
turns in one process on one thread, and medians of process time are compared.
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
from fx_oto.passes import PhysicalSlicing, Verification
from fx_oto.reports.timing import in_turns

NETWORKS = ("mobilenet_v3_large", "resnet50", "densenet121", "convnext_tiny")
ROUNDS = 9


def prepare(model, inputs):
    return fx_oto.partition(fx_oto.prepare(model, inputs))


def half_zero(model, inputs):
    partition = prepare(model, inputs)
    partition.zero_(0.5, torch.Generator().manual_seed(0))
    return partition.module


def list_groups(model, image):
    """What Torch-Pruning does up to where ``prepare`` ends: it knows every group."""
    import torch_pruning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(torch_pruning.DependencyGraph().build_dependency(model, image).get_all_groups())


def medians(*runs, warmup=1):
    """Of each of the runs, which take turns: seconds of process time."""
    return [statistics.median(mine) for mine in in_turns(runs, ROUNDS, warmup, clock=time.process_time)]


def show(capsys, rows, headers):
    with capsys.disabled():
        print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))


def test_against_torch_pruning(capsys):
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")
    from support.vision import build

    rows, ratios = [], []
    for name in NETWORKS:
        model, image = build(name).eval(), torch.randn(1, 3, 224, 224)
        gm = half_zero(build(name).eval(), image)
        runs = (partial(prepare, model, image), partial(fx_oto.compress, gm), partial(list_groups, model, image))
        prepared, compressed, theirs = medians(*runs)
        ratios.append((prepared / theirs, compressed / theirs))
        rows.append((name, *map("{:.3f} s".format, (prepared, compressed, theirs)), *map("{:.2f}".format, ratios[-1])))
    rows.append(("median", "", "", "", *(f"{statistics.median(column):.2f}" for column in zip(*ratios, strict=True))))
    headers = ("network", "prepare", "compress", "Torch-Pruning 1.6.1", "prepare / it", "compress / it")
    show(capsys, rows, headers)


def test_a_vision_transformer_written_with_einops(capsys):
    """Twelve layers of width 384, in the style of vit-pytorch."""
    pytest.importorskip("einops", reason="einops is not installed")
    from benchmarks.einops_networks import ViT

    model, image = ViT().eval(), torch.randn(1, 3, 224, 224)
    gm = half_zero(ViT().eval(), image)
    prepared, compressed = medians(partial(prepare, model, image), partial(fx_oto.compress, gm))
    show(capsys, [("ViT, 12 layers, einops", f"{prepared:.3f} s", f"{compressed:.3f} s")], ("", "prepare", "compress"))


def test_where_the_time_goes(capsys):
    """Seconds of each pass, as the report has them; what is left of ``prepare`` is capture."""
    from support.vision import build

    rows = []
    for name in NETWORKS:
        model, image = build(name).eval(), torch.randn(1, 3, 224, 224)
        prepare(model, image)
        start = time.perf_counter()
        gm = fx_oto.prepare(model, image)
        whole = time.perf_counter() - start
        passes = {record.name: record.seconds for record in fx_oto.Context.of(gm).records}
        rows.append({"network": name, "capture": whole - sum(passes.values()), **passes, "prepare": whole})
    shown = [{key: f"{v:.3f} s" if isinstance(v, float) else v for key, v in row.items()} for row in rows]
    show(capsys, shown, "keys")


def test_what_the_check_after_each_pass_costs(capsys):
    """``prepare`` and ``compress`` with the check and without, taking turns; process time, for one thread."""
    model, image = ResNet(Bottleneck, [3, 4, 6, 3]).eval(), torch.randn(2, 3, 32, 32)
    gm = half_zero(model, image)

    def run_prepare(verify):
        return fx_oto.prepare(model, image, passes=fx_oto.Pipeline(fx_oto.default_pipeline().stages, verify=verify))

    def run_compress(verify):
        return fx_oto.Pipeline((PhysicalSlicing(), Verification(gm)), verify=verify).run(gm)

    rows = []
    for name, job in (("prepare", run_prepare), ("compress", run_compress)):
        checked, plain = medians(*(partial(job, verify) for verify in (True, False)))
        rows.append((name, f"{plain:.3f} s", f"{checked:.3f} s", f"{checked / plain:.2f}"))
    show(capsys, rows, ("ResNet-50", "without", "with the check", "ratio"))


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("blocks", [4, 8, 16, 32])
def test_growth_with_depth(benchmark, blocks):
    model = ResNet(Bottleneck, [blocks // 4] * 4).eval()
    image = torch.randn(1, 3, 32, 32)
    nodes = len(fx_oto.trace(model, image).graph.nodes)
    benchmark.extra_info["nodes"] = nodes
    benchmark.pedantic(prepare, (model, image), rounds=9, warmup_rounds=2)
    if benchmark.stats:  # None when benchmarks are disabled
        benchmark.extra_info["milliseconds per node"] = 1e3 * benchmark.stats.stats.median / nodes


def _prepare_decoder(layers, pipe):
    torch.set_num_threads(1)
    with torch.device("meta"):
        model, small, ids = Decoder(layers=layers), Decoder(layers=1), torch.zeros(2, 64, dtype=torch.int64)
    prepare(small, ids)  # loads what is loaded at the first use
    start = time.process_time()
    prepare(model, ids)
    passed = time.process_time() - start
    params = sum(parameter.numel() for parameter in model.parameters())
    pipe.send((params, passed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def test_language_models_on_the_meta_device(capsys):
    """Seconds and peak memory, each size in a process of its own; 32 layers have 7 billion parameters."""
    rows = []
    for layers in (4, 8, 16, 32):
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_prepare_decoder, args=(layers, theirs))
        process.start()
        theirs.close()  # a process that died would be waited for else
        params, passed, memory = mine.recv()
        process.join()
        rows.append((str(layers), f"{params / 1e9:.2f}", f"{passed:.1f} s", f"{memory:.2f} GiB"))
    show(capsys, rows, ("layers", "billion parameters", "prepare", "peak memory"))
