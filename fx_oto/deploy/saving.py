"""Writes a compact model into one safetensors file: its tensors, and in the metadata a plan of all else, as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.fx import GraphModule

from fx_oto.core.context import Context
from fx_oto.core.errors import FileError
from fx_oto.core.fx_utils import check_has_numbers
from fx_oto.core.masks import MASKS
from fx_oto.core.paths import because, replaced
from fx_oto.deploy.about import made_context, written_context
from fx_oto.deploy.graphs import made_graph, written_graph
from fx_oto.deploy.modules import written_modules
from fx_oto.deploy.tensors import Collected
from fx_oto.deploy.values import Reader, given_names

__all__ = ["FORMAT", "KEY", "save", "sum_of"]

KEY = "fx_oto"
FORMAT = 1


def save(small: GraphModule, path: str | os.PathLike[str]) -> None:
    """Write a compact model into one file, from which ``fx_oto.load`` makes it again without running code of the file.

    It is a safetensors file of the model's tensors. Its metadata holds a plan as JSON: the graph as a list of nodes,
    which name functions of torch and of fx_oto; the modules, by class and plain attributes; which indices of the
    original model are kept; the passes' records, and checksums. Shapes and types of the example inputs are written,
    their numbers are not. Whatever happens meanwhile, there is the whole new file at the end, or what was there before.

    Args:
        small: what ``compress`` has returned, trained on or not.
        path: where; such files commonly end in ``.safetensors``.

    Raises:
        FileError: the graph calls what no file may name, or the file cannot be written; says what to do.
        InputError: the model is on the meta device.

    Example:
        >>> import torch, fx_oto, tempfile, pathlib
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> small, x = fx_oto.compress(gm), torch.randn(3, 4)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "small.safetensors")
        >>> fx_oto.save(small, path)
        >>> torch.equal(fx_oto.load(path)(x), small(x))
        True
    """
    if not isinstance(small, GraphModule):
        raise FileError(f"expected what fx_oto.compress has returned, a GraphModule; found {type(small).__name__}")
    if MASKS in small._modules:
        raise FileError("the model is prepared for pruning, with masks: save what fx_oto.compress returns instead")
    if not isinstance(path, str | os.PathLike):
        raise FileError(f"expected the path of a file, found {type(path).__name__}: save(small, path)")
    check_has_numbers(small, "saving")
    tensors = Collected()
    plan = _plan(small, tensors)
    text = json.dumps(plan, allow_nan=False, separators=(",", ":"))
    try:
        with replaced(Path(path)) as written:
            save_file(tensors.stored, written, {KEY: text, f"{KEY}_sha256": sum_of(text)})
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} cannot be written: {because(error)}. What was there before is as it was") from error


def sum_of(text: str) -> str:
    """The checksum of a plan."""
    return hashlib.sha256(text.encode()).hexdigest()


def _plan(small: GraphModule, tensors: Collected) -> dict[str, Any]:
    modules = written_modules(small, tensors)
    graph = written_graph(small.graph)
    # what is refused, is refused now, and not only when it is loaded
    made_graph(graph, small, Reader(given=_given(small)), None)
    about = written_context(Context.of(small), small) if KEY in small.meta else None
    if about is not None:
        made_context(about, Reader())
    first = next(iter(tensors.stored), None)
    return {
        "format": FORMAT,
        "versions": {"fx_oto": sys.modules[KEY].__version__, "torch": str(torch.__version__)},
        "name": type(small).__name__,
        "device": None if first is None else str(_device(small)),
        "tensors": tensors.described,
        "objects": tensors.objects,
        "modules": modules,
        "graph": graph,
        "about": about,
    }


def _given(small: GraphModule) -> dict[str, Any]:
    """What the graph calls that is the user's own."""
    called = [node.target for node in small.graph.nodes if node.op == "call_function"]
    return {names: one for one in called if (names := given_names(one))}


def _device(small: GraphModule) -> torch.device:
    return next(iter((*small.parameters(), *small.buffers()))).device
