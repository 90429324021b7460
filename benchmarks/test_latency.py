"""The latency of compact models, as a graph and written back, against modules of the same widths written by hand.

    pip install -e '.[bench]' timm transformers; pip install --no-deps torchvision
    pytest benchmarks/test_latency.py --benchmark-enable -s

Half of the ZIGs of a network are cut out, by magnitude, with widths that are multiples of ``round_to``. What one would
write by hand is the network's own code with torch's own layers of these widths; its norms over cut channels divide by
the widths that are left, so its numbers are wrong, and it costs what a network of these widths costs. All take turns in
one process, in evaluation; ratios of medians of wall time, those of the network by hand to a copy of itself show how
much is noise.
"""

from __future__ import annotations

import copy
import statistics
from functools import partial

import pytest
import torch
from support.vision import build, without_compiled_library
from tabulate import tabulate
from torch import nn

import fx_oto
from fx_oto.reports.timing import in_turns

ROUNDS = 15
HEADERS = ("network", "round_to", "MACs left", "full", "by hand", "graph", "written back", "noise", "speed-up")


def vit():
    without_compiled_library()
    return pytest.importorskip("timm", reason="timm is not installed").create_model("vit_small_patch16_224")


def llama():
    """A block in the shape of Llama's, of width 1024, with a small vocabulary."""
    without_compiled_library()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=4,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


def image():
    return torch.randn(1, 3, 224, 224)


NETWORKS = {
    "ResNet-50": (partial(build, "resnet50"), image),
    "MobileNetV3-Large": (partial(build, "mobilenet_v3_large"), image),
    "ConvNeXt-Tiny": (partial(build, "convnext_tiny"), image),
    "ViT-S": (vit, image),
    "Llama block": (llama, lambda: torch.randint(0, 128, (1, 256))),
}


def by_hand(written, model):
    """The model's own modules, with tensors and numbers of the widths of the one that was written back."""
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        like = written.get_submodule(name)
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    new = getattr(like, key).detach().clone(memory_format=torch.contiguous_format)
                    tensors[key] = nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new
        for key, value in vars(module).items():
            if isinstance(value, int | tuple) and type(vars(like).get(key)) is type(value):
                setattr(module, key, vars(like)[key])
        if hasattr(module, "normalized_shape"):
            module.normalized_shape = tuple(module.weight.shape)
    return twin.eval()


def compacted(make, inputs, round_to):
    """The full model, the same written by hand, the graph, the module that was written back, and MACs left."""
    model = make().eval()
    gm = fx_oto.prepare(model, inputs)
    left = fx_oto.prune(gm, target_group_sparsity=0.5, round_to=round_to)["macs"]
    graph = fx_oto.compress(gm).eval()
    written = fx_oto.write_back(graph, model).eval()
    return model, by_hand(written, model), graph, written, left


def row(name, make, inputs, round_to, compiled):
    full, hand, graph, written, left = compacted(make, inputs, round_to)
    models = (full, hand, graph, written, copy.deepcopy(hand))
    if compiled:
        torch._dynamo.reset()
        models = tuple(map(torch.compile, models))
    with torch.inference_mode():
        times = in_turns([partial(model, inputs) for model in models], ROUNDS, warmup=3)
    whole, base, *others = map(statistics.median, times)
    ratios = (f"{seconds / base:.3f}" for seconds in others)
    return (
        name,
        round_to,
        f"{left:.0%}",
        f"{1e3 * whole:.1f} ms",
        f"{1e3 * base:.1f} ms",
        *ratios,
        f"{whole / base:.2f}",
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_latency(capsys, threads, compiled):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = [
            row(name, make, inputs(), round_to, compiled)
            for name, (make, inputs) in NETWORKS.items()
            for round_to in ((8,) if compiled else (1, 8, 16))
        ]
    finally:
        torch.set_num_threads(before)
    with capsys.disabled():
        print(f"\n{threads} threads, {'compiled' if compiled else 'eager'}\n")
        print(tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True))
