"""What becomes of compact models in each runtime: converted, run on other batch sizes, and compared with torch.

    pip install -e '.[bench]' timm transformers onnx onnxscript onnxruntime torchao; pip install --no-deps torchvision
    python benchmarks/runtimes.py                       # all; or names of networks
    python benchmarks/runtimes.py lstm --only onnx      # one runtime
    python benchmarks/runtimes.py --table               # only render runtimes.md

Of each network, half of every family of groups is zero and cut out. Its error is the largest difference from what the
compact model returns in eager float32, over three batch sizes, relative to the largest value. Where a runtime refuses
the compact model, the full one is tried as well. Results are kept in ``runtimes.json`` as they come.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[1:1] = [str(HERE / "coverage"), str(HERE.parent / "tests"), str(HERE.parent)]
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # in a process that was forked

import torch
from apart import Limits, run_apart
from networks import Built, images, load
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import fx_oto

BATCHES = (2, 1, 5)  # the first is that of the example
TOLERANCE = 1e-5
Model = Callable[..., Any]


class Recurrent(nn.Module):
    """Two layers of LSTM over features, and a head on the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(12, 32), nn.LSTM(32, 48, 2, batch_first=True), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.relu(self.embed(x)))[0][:, -1])


def _of_zoo(zoo: str, name: str, *shape: int) -> Callable[[], Built]:
    def build() -> Built:
        if zoo == "transformers":
            return load(zoo).build(name)
        load("torchvision")  # which timm imports
        if zoo == "timm":
            import timm

            return Built(timm.create_model(name, num_classes=10), images(*shape), {})
        from torchvision import models

        return Built(getattr(models, name)(weights=None, num_classes=10), images(*shape), {})

    return build


NETWORKS: dict[str, Callable[[], Built]] = {
    "resnet18": _of_zoo("torchvision", "resnet18", 3, 64, 64),
    "mobilenet_v3_small": _of_zoo("torchvision", "mobilenet_v3_small", 3, 64, 64),
    "convnext_tiny": _of_zoo("torchvision", "convnext_tiny", 3, 64, 64),
    "swin_t": _of_zoo("torchvision", "swin_t", 3, 64, 64),
    "timm vit_tiny": _of_zoo("timm", "vit_tiny_patch16_224", 3, 224, 224),
    "transformers bert": _of_zoo("transformers", "bert"),
    "transformers llama": _of_zoo("transformers", "llama"),
    "lstm": lambda: Built(Recurrent(), images(7, 12), {}),
}


# -- runtimes: each takes a model and example inputs, and returns what runs it ---------------------------------


def _dynamic(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: {0: torch.export.Dim.DYNAMIC}, inputs)


def _exported(model: nn.Module, args: Any, kwargs: Any) -> Any:
    if kwargs:
        shapes: Any = {**_dynamic(kwargs)}
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    return torch.export.export(model, args, dynamic_shapes=_dynamic(args))


def export(model: nn.Module, args: Any, kwargs: Any) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        torch.export.save(_exported(model, args, kwargs), f"{folder}/small.pt2")
        return torch.export.load(f"{folder}/small.pt2").module()


def aot_inductor(model: nn.Module, args: Any, kwargs: Any) -> Model:
    path = torch._inductor.aoti_compile_and_package(_exported(model, args, kwargs))
    return torch._inductor.aoti_load_package(path)


def _onnx(model: nn.Module, args: Any, kwargs: Any, dynamo: bool) -> Model:
    import onnxruntime

    names = [f"input_{i}" for i in range(len(args))] + list(kwargs)
    path = Path(tempfile.mkdtemp()) / "small.onnx"
    if dynamo:
        settings: dict[str, Any] = {"dynamo": True, "dynamic_shapes": _dynamic(kwargs) if kwargs else _dynamic(args)}
    else:
        outputs = [f"output_{i}" for i, _ in enumerate(_tensors(model(*args, **kwargs)))]
        axes = {name: {0: "batch"} for name in names}
        settings = {"dynamo": False, "dynamic_axes": axes, "output_names": outputs}  # a GraphModule's must be named
    torch.onnx.export(model, args, path, kwargs=kwargs or None, input_names=names, verbose=False, **settings)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        given = dict(zip(names, (*args, *kwargs.values()), strict=True))
        wanted = {one.name for one in session.get_inputs()}
        found = session.run(None, {name: value.numpy() for name, value in given.items() if name in wanted})
        return [torch.from_numpy(one) for one in found]

    return run


def onnx(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return _onnx(model, args, kwargs, dynamo=True)


def onnx_by_torchscript(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return _onnx(model, args, kwargs, dynamo=False)


def jit_trace(model: nn.Module, args: Any, kwargs: Any) -> Model:
    given = {"example_kwarg_inputs": kwargs} if kwargs else {"example_inputs": args}
    return _reloaded(torch.jit.trace(model, strict=False, check_trace=False, **given))


def jit_script(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return _reloaded(torch.jit.script(model))


def _reloaded(scripted: Any) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        scripted.save(f"{folder}/small.pt")
        return torch.jit.load(f"{folder}/small.pt")


def compile_(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return torch.compile(model, dynamic=True)


def bfloat16(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return _cast(model, torch.bfloat16)


def float16(model: nn.Module, args: Any, kwargs: Any) -> Model:
    return _cast(model, torch.float16)


def _cast(model: nn.Module, dtype: torch.dtype) -> Model:
    model = copy.deepcopy(model).to(dtype)

    def run(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, (args, kwargs))
        return model(*args, **kwargs)

    return run


def channels_last(model: nn.Module, args: Any, kwargs: Any) -> Model:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def run(*args: Any, **kwargs: Any) -> Any:
        as_images = lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t  # noqa: E731
        return model(*tree_map_only(Tensor, as_images, args), **kwargs)

    return run


def int8_weights(model: nn.Module, args: Any, kwargs: Any) -> Model:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def int8_dynamic(model: nn.Module, args: Any, kwargs: Any) -> Model:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def int8_static(model: nn.Module, args: Any, kwargs: Any) -> Model:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(_exported(model, args, kwargs).module(), quantizer)
    prepared(*args, **kwargs)
    return convert_pt2e(prepared)


EXACT = {
    "torch.export, .pt2": export,
    "AOTInductor": aot_inductor,
    "torch.compile": compile_,
    "ONNX": onnx,
    "ONNX, dynamo=False": onnx_by_torchscript,
    "jit.trace": jit_trace,
    "jit.script": jit_script,
    "channels_last": channels_last,
}
ROUNDING = {
    "bfloat16": bfloat16,
    "float16": float16,
    "int8 weights": int8_weights,
    "int8 dynamic": int8_dynamic,
    "int8 static": int8_static,
}
RUNTIMES = {**EXACT, **ROUNDING}


# -- measuring ----------------------------------------------------------------------------------------------


def _tensors(value: Any) -> list[Tensor]:
    return [leaf.float() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def error_of(model: nn.Module, built: Built, convert: Callable[..., Model]) -> float:
    """The largest difference that a conversion makes, relative to the largest value."""
    examples = [built.inputs(batch, batch) for batch in BATCHES]
    with torch.no_grad():
        expected = [_tensors(model(*args, **kwargs)) for args, kwargs in examples]
        runs = convert(model, *examples[0])
        worst = 0.0
        for (args, kwargs), wanted in zip(examples, expected, strict=True):
            found = _tensors(runs(*args, **kwargs))
            for one, other in zip(wanted, found, strict=True):
                assert one.shape == other.shape, f"a shape is {tuple(other.shape)}, and not {tuple(one.shape)}"
                worst = max(worst, ((one - other).abs().max() / one.abs().max().clamp(min=1e-12)).item())
    return worst


def attempt(model: nn.Module, built: Built, runtime: str) -> dict[str, Any]:
    try:
        return {"error": error_of(model, built, RUNTIMES[runtime])}
    except BaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return {"refused": f"{type(error).__name__}: {lines[0][:160] if lines else ''}"}


def _settled(built: Built) -> nn.Module:
    """The model with statistics of batch norms like a trained one's: random ones leave numbers too small to round."""
    for seed in range(5):
        args, kwargs = built.inputs(8, seed)
        with torch.no_grad():
            built.model.train()(*args, **kwargs)
    return built.model


def measure(name: str, runtimes: list[str], limits: Limits) -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    built = NETWORKS[name]()
    full = _settled(built).eval()
    args, kwargs = built.inputs(BATCHES[0], 0)
    gm = fx_oto.prepare(full, (args, kwargs)).eval()
    fx_oto.partition(gm).zero_(0.5)
    small = fx_oto.compress(gm).eval()

    def work(runtime: str, note: Callable[[str], None]) -> dict[str, Any]:
        note("converting the compact model")
        found = attempt(small, built, runtime)
        if "refused" in found or runtime in ROUNDING:
            note("converting the full model")
            found["full"] = attempt(full, built, runtime)
        return found

    return dict(run_apart(runtimes, work, limits))


# -- the table ----------------------------------------------------------------------------------------------


def cell(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    full = record.get("full", {})
    if "error" in record:
        beside = f" ({full['error']:.0e})" if "error" in full else ""
        return f"{record['error']:.0e}{beside}"
    if "status" in record:
        return str(record["status"])
    return "full one refused, too" if "refused" in full else "**refused**"


def render(records: dict[str, dict[str, Any]]) -> str:
    head = ["network", *RUNTIMES]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in NETWORKS:
        found = records.get(name, {})
        lines.append(f"| {' | '.join([name, *(cell(found.get(runtime)) for runtime in RUNTIMES)])} |")
    reasons = [
        f"- {name}, {runtime}: {one['refused']}"
        for name in NETWORKS
        for runtime, one in records.get(name, {}).items()
        if "refused" in one
    ]
    versions = ", ".join(f"{one} {version(one)}" for one in ("torch", "onnxruntime", "torchao", "timm", "transformers"))
    return "\n".join(
        [
            "# Compact models in other runtimes",
            "",
            "Written by `python benchmarks/runtimes.py`. Half of each family of groups is cut out of random weights; "
            "the numbers are the largest differences from the compact model in eager float32, over batches of "
            f"{', '.join(map(str, BATCHES))}, relative to the largest value, one conversion for all batches. In "
            "parentheses: the difference that the same conversion makes to the full model. Where the compact model is "
            "refused, the full one was tried as well.",
            "",
            *lines,
            "",
            "Refused:",
            "",
            *reasons,
            "",
            f"With {versions}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), metavar="network", help=", ".join(NETWORKS))
    parser.add_argument("--only", action="append", choices=list(RUNTIMES), help="a runtime; may be given several times")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one conversion")
    parser.add_argument("--table", action="store_true", help="only render runtimes.md")
    arguments = parser.parse_args()
    kept = HERE / "runtimes.json"
    records: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    warnings.simplefilter("ignore")
    for name in [] if arguments.table else arguments.networks:
        found = measure(name, arguments.only or list(RUNTIMES), Limits(arguments.timeout, 12))
        records.setdefault(name, {}).update(found)
        for runtime, record in found.items():
            print(f"{name:20} {runtime:22} {cell(record):24} {record.get('refused', '')}", flush=True)
        kept.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")
    (HERE / "runtimes.md").write_text(render(records))


if __name__ == "__main__":
    main()
