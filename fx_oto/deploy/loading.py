"""Makes a model of what ``save`` has written. Nothing is unpickled, imported or traced because a file says so."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.fx import GraphModule

from fx_oto.core.errors import FileError, FxOtoError, SettingsError
from fx_oto.core.handed import assembled
from fx_oto.deploy.about import made_context
from fx_oto.deploy.graphs import made_graph
from fx_oto.deploy.modules import made_modules
from fx_oto.deploy.saving import FORMAT, KEY, sum_of
from fx_oto.deploy.tensors import made_tensors
from fx_oto.deploy.values import Reader, a_dict, a_text, given_names

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    functions: Iterable[Any] = (),
    device: torch.device | str = "cpu",
) -> GraphModule:
    """Make a compact model of the file that ``fx_oto.save`` has written.

    Nothing in the file is run, unpickled or imported: it names functions, operators and classes of torch and fx_oto,
    and everything else is refused by name. The model returns what the one that was saved returned, bit for bit, trains
    on, keeps its report, and can be prepared and pruned again.

    Args:
        path: the file.
        model: of the user's own class, uncompressed and with any weights. Needed if the graph calls modules of other
            classes than torch's and fx_oto's: they are taken from it. If it is given, outputs that are dataclasses and
            named tuples are made again as such; else dataclasses are dictionaries, and named tuples have the same
            name and fields, and nothing else of their class.
        functions: the functions, operators and ``torch.autograd.Function`` classes of the user's own that the graph
            calls.
        device: where the tensors go. What the graph makes on the device on which it was saved, it makes there, too.

    Raises:
        FileError: the file is damaged, or none of ``fx_oto.save``, or it names what it may not; says what to do.
        SettingsError: ``model`` or ``functions`` are not what they should be.

    Example:
        >>> import torch, fx_oto, tempfile, pathlib
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "small.safetensors")
        >>> fx_oto.save(fx_oto.compress(gm), path)
        >>> fx_oto.load(path)
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    _check(path, model, functions)
    given = {names: one for one in functions if (names := given_names(one))}
    try:
        plan, stored = _opened(os.fspath(path))
        return _made(plan, stored, Reader(given=given, device=torch.device(device), saved_on=_device(plan)), model)
    except FxOtoError as error:
        raise FileError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise FileError(f"{path} cannot be read: there is no such file") from error
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    except (RuntimeError, MemoryError, SyntaxError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise FileError(f"{path} holds a plan that makes no sense: {type(error).__name__}: {error}") from error


def _check(path: Any, model: Any, functions: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        raise FileError(f"expected the path of a file that fx_oto.save has written, found {type(path).__name__}")
    if os.path.isdir(path):
        raise FileError(f"{path} cannot be read: it is a folder")
    if model is not None and not isinstance(model, nn.Module):
        raise SettingsError(f"model must be an instance of your own class, uncompressed; found {model!r:.60}")
    if not isinstance(functions, Iterable):
        raise SettingsError(f"functions must be a list of the graph's own functions; found {functions!r:.60}")


def _opened(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The plan and the tensors, in memory of their own."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        text = metadata.get(KEY)
        if text is None:
            raise FileError("a safetensors file, but none of fx_oto.save: it holds no plan")
        if metadata.get(f"{KEY}_sha256") != sum_of(text):
            raise FileError("the plan is damaged: it is not what was written. Write the file again")
        plan = json.loads(text)
        if not isinstance(plan, dict) or plan.get("format") != FORMAT:
            found = plan.get("format") if isinstance(plan, dict) else plan
            raise FileError(f"the plan is of the format {found!r:.40}; this fx_oto reads format {FORMAT}")
        return plan, {name: file.get_tensor(name).clone() for name in list(file.keys())}


def _device(plan: dict[str, Any]) -> torch.device | None:
    return None if plan.get("device") is None else torch.device(a_text(plan["device"]))


def _made(plan: dict[str, Any], stored: dict[str, Tensor], reader: Reader, model: nn.Module | None) -> GraphModule:
    held = made_modules(plan.get("modules"), made_tensors(stored, plan, reader), reader, model)
    graph = made_graph(plan.get("graph"), held, reader, model)
    gm = assembled(held, graph, a_text(plan.get("name")))
    return gm if plan.get("about") is None else made_context(a_dict(plan["about"]), reader).attach(gm)
