"""What is known of a compact model beside its graph: inputs, capture, passes, training, verification, kept indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from fx_oto.core.context import Capture, Context, ExampleInputs, InputSize
from fx_oto.core.errors import FileError
from fx_oto.core.fx_utils import tensor_names
from fx_oto.core.records import PassRecord, Snapshot
from fx_oto.deploy.values import Reader, UnwritableError, a_list, an_integer, written
from fx_oto.framework.trajectory import Trajectory
from fx_oto.passes.verification import VerificationReport

__all__ = ["made_context", "written_context"]

_MOST = 1 << 26  # elements of an example input that get memory when it is made anew


def written_context(context: Context, gm: nn.Module) -> dict[str, Any]:
    """A context as JSON.

    Args:
        context: the context.
        gm: the GraphModule that it belongs to.
    """
    snapshots = list({id(one): one for record in context.records for one in (record.before, record.after)}.values())
    places = {id(one): place for place, one in enumerate(snapshots)}
    records = [
        {**vars(record), "before": places[id(record.before)], "after": places[id(record.after)]}
        for record in context.records
    ]
    found = context.results
    return {
        "inputs": _written_inputs(context.inputs),
        "capture": written(asdict(context.capture)),
        "snapshots": [written(vars(one)) for one in snapshots],
        "records": [written(record) for record in records],
        "training": _written_training(found.get(Trajectory)),
        "verification": written(asdict(found[VerificationReport])) if VerificationReport in found else None,
        "kept": _written_kept(context, gm),
    }


def _written_inputs(inputs: ExampleInputs) -> Any:
    """Shapes and types of the example inputs, not the numbers; None where they hold what no file can."""

    def form(tensor: Tensor) -> Any:
        return {_TENSOR: [list(tensor.shape), tensor.dtype]}

    try:
        return written(tree_map_only(Tensor, form, [inputs.args, inputs.kwargs]))
    except UnwritableError:
        return None


def _written_training(training: Trajectory | None) -> Any:
    if training is None:
        return None
    training.rows()  # losses become numbers
    fields = {name: value for name, value in vars(training).items() if name in _TRAINING}
    return written({**fields, "gone": [one.tolist() for one in training.gone]})


def _written_kept(context: Context, gm: nn.Module) -> list[Any]:
    """Tensor, dimension, size in the first model and kept indices of each axis, where they still fit."""
    shapes = {name: tensor.shape for name, tensor in tensor_names(gm).items()}
    fits = {key: one for key, one in context.kept.items() if _fits(shapes.get(key[0], ()), key[1], len(one[0]))}
    return [[name, dim, size, indices.tolist()] for (name, dim), (indices, size) in fits.items()]


def _fits(shape: Any, dim: int, length: int) -> bool:
    return len(shape) > dim and shape[dim] == length


def made_context(about: dict[str, Any], reader: Reader) -> Context:
    """The context of a loaded model. Its example inputs have the shapes and types of the former, and are zeros.

    Raises:
        FileError: something is not of the form that it has.
    """
    snapshots = [_made(Snapshot, one, reader, _SNAPSHOT) for one in a_list(about.get("snapshots"))]
    records = tuple(_record(one, snapshots, reader) for one in a_list(about.get("records")))
    capture = _made(Capture, about.get("capture"), reader, _CAPTURE)
    capture = Capture(capture.front_end, capture.opaque, tuple(_size(one) for one in capture.sizes))
    context = Context(_inputs(about.get("inputs"), reader), capture, records=records, kept=_kept(about.get("kept")))
    if about.get("training") is not None:
        training = _made(Trajectory, about["training"], reader, _TRAINING)
        training.gone = [torch.tensor(a_list(one), dtype=torch.int64) for one in a_list(training.gone)]
        context = context.provide(training)
    if about.get("verification") is not None:
        context = context.provide(_made(VerificationReport, about["verification"], reader, _VERIFICATION))
    return context


_Check = Callable[[Any], bool]


def _of(*kinds: type) -> _Check:
    return lambda value: type(value) in kinds


def _each(inside: _Check, *kinds: type) -> _Check:
    return lambda value: type(value) in (kinds or (tuple,)) and all(map(inside, value))


def _fields(*checks: _Check) -> _Check:
    return lambda value: (
        type(value) in (tuple, list)
        and len(value) == len(checks)
        and all(c(v) for c, v in zip(checks, value, strict=True))
    )


def _shapes(value: Any) -> bool:
    return type(value) is dict and all(map(_of(str), value)) and all(map(_each(_of(int)), value.values()))


def _is_size(value: Any) -> bool:
    dims = _each(_fields(_of(str), _of(int)))
    checks = {"dims": dims, "size": _of(int), "fixed": _of(str), "decided": _of(str)}
    return type(value) is dict and value.keys() == checks.keys() and all(checks[key](value[key]) for key in checks)


_TENSOR = "__tensor__"
_TEXT, _NUMBER, _PERHAPS = _of(str), _of(float, int), _of(int, type(None))
_SNAPSHOT = {"nodes": _of(int), "params": _of(int), "macs": _PERHAPS, "code": _TEXT, "shapes": _shapes}
_RECORD = {
    "name": _TEXT,
    "options": _TEXT,
    "seconds": _NUMBER,
    "peak_memory": _PERHAPS,
    "before": _of(int),
    "after": _of(int),
    "modified": _of(bool),
    "refusals": _each(_TEXT),
}
_CAPTURE = {"front_end": _TEXT, "opaque": _each(_TEXT), "sizes": _each(_is_size)}
_POINT = _fields(_of(int), _of(int), _of(float, int, type(None)))
_TRAINING = {
    "zigs": _of(int),
    "asked": _TEXT,
    "reached": _TEXT,
    "points": _each(_POINT, list),
    "stride": _of(int),
    "steps": _of(int),
    "end": _of(int),
    "total": _PERHAPS,
    "done": _of(bool),
    "gone": _each(_each(_of(int), list), list),
}
_VERIFICATION = {"error": _NUMBER, "tolerance": _NUMBER, "gradients": _of(int)}


def _made(kind: Any, value: Any, reader: Reader, checks: dict[str, _Check]) -> Any:
    fields = reader.read(value)
    if not isinstance(fields, dict) or fields.keys() != checks.keys():
        raise FileError(f"expected the fields of {kind.__name__}, found {value!r:.60}")
    for name, check in checks.items():
        if not check(fields[name]):
            raise FileError(f"{name} of {kind.__name__} cannot be {fields[name]!r:.60}")
    return kind(**fields)


def _record(value: Any, snapshots: list[Snapshot], reader: Reader) -> PassRecord:
    fields = vars(_made(PassRecord, value, reader, _RECORD))
    places = (fields["before"], fields["after"])
    if not all(0 <= place < len(snapshots) for place in places):
        raise FileError(f"{places} are no snapshots")
    return PassRecord(**{**fields, "before": snapshots[places[0]], "after": snapshots[places[1]]})


def _size(fields: Any) -> InputSize:
    return InputSize(**fields)


def _inputs(value: Any, reader: Reader) -> ExampleInputs:
    found = [(), {}] if value is None else _with_zeros(reader.read(value), reader)
    if not _fields(_of(tuple), _of(dict))(found) or not all(map(_TEXT, found[1])):
        raise FileError("the example inputs are not described as arguments")
    return ExampleInputs(*found)


def _with_zeros(value: Any, reader: Reader) -> Any:
    if type(value) is dict and value.keys() == {_TENSOR}:
        shape, dtype = a_list(value[_TENSOR], 2)
        count = 1
        for size in a_list(shape):
            count *= an_integer(size)
        if count >= 2**63 or not isinstance(dtype, torch.dtype):
            raise FileError(f"an example input cannot have the shape {shape!r:.60}")
        return torch.zeros(shape if count <= _MOST else (), dtype=dtype, device=reader.device).expand(shape)
    if type(value) is dict:
        return {key: _with_zeros(one, reader) for key, one in value.items()}
    return type(value)(_with_zeros(one, reader) for one in value) if type(value) in (tuple, list) else value


def _kept(rows: Any) -> dict[tuple[str, int], tuple[Tensor, int]]:
    found = {}
    for name, dim, size, indices in (a_list(row, 4) for row in a_list(rows)):
        kept = [an_integer(one) for one in a_list(indices)]
        if not isinstance(name, str) or kept != sorted(set(kept)) or (kept and kept[-1] >= an_integer(size)):
            raise FileError(f"the kept indices of {name!r:.60} are none of its axis")
        found[name, an_integer(dim)] = (torch.tensor(kept, dtype=torch.int64), an_integer(size))
    return found
