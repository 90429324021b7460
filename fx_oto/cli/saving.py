"""Writes the file of ``compress --output``: a program that runs without the user's code, or the tensors alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from fx_oto.core.context import ExampleInputs
from fx_oto.core.differences import relative_error
from fx_oto.core.errors import FileError, InputError, VerificationError
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.core.paths import because, check_file, check_folder, free_path, replaced
from fx_oto.core.preserve import evaluating

__all__ = ["Saved", "check_output", "save", "write_tensors"]

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Saved:
    """A file that was written.

    Attributes:
        path: where.
        bytes: its size.
        kind: ``"program"`` or ``"state_dict"``.
        dynamic_batch: whether the program takes any batch size; None of a state_dict.
        error: largest difference of the outputs of the program, loaded again, relative to the largest output.
    """

    path: str
    bytes: int
    kind: str
    dynamic_batch: bool | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"wrote {self.path} ({self.bytes / 1024:,.0f} KiB): "
        if self.kind == "state_dict":
            return f"{text}the state_dict"
        batch = "any batch size" if self.dynamic_batch else "the batch size of the example inputs only"
        return f"{text}a program for {batch}; loaded again, its outputs differ by {self.error:.1e}"


def check_output(path: Path) -> None:
    """Check that a file can be written there, before any long work.

    Raises:
        InputError: it cannot.
    """
    if path.suffix not in (".pt2", ".pt", ".safetensors"):
        raise InputError(f"--output {path}: expected a file ending in .pt2 (program), .pt or .safetensors (state_dict)")
    check_file(path, "--output")
    check_folder(path.parent, "--output")
    if path.suffix == ".safetensors":
        try:
            import safetensors  # noqa: F401
        except ImportError as error:
            raise InputError(f"writing {path} needs safetensors: pip install safetensors") from error


def save(model: nn.Module, inputs: ExampleInputs, path: Path) -> Saved:
    """Write the compact model, as the end of the path says.

    Raises:
        InputError: torch.export cannot take it.
        VerificationError: the program, loaded again, does not return the model's outputs. In both cases its tensors are
            written, for a training may have gone before, and what was at ``path`` is as it was.
        FileError: nothing can be written there.
    """
    if path.suffix != ".pt2":
        return _save_tensors(model, path)
    try:
        return _save_program(model, inputs, path)
    except (InputError, VerificationError) as error:
        instead = _save_tensors(model, free_path(path.with_name(f"{path.stem}-tensors.pt")))
        raise type(error)(f"{error}; the tensors of the compact model are in {instead.path} instead") from error


def _save_tensors(model: nn.Module, path: Path) -> Saved:
    write_tensors({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, path)
    return Saved(str(path), path.stat().st_size, "state_dict")


def write_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, as safetensors where the path ends so.

    Raises:
        FileError: nothing can be written there; what was there before is as it was.
    """
    with _written(path) as file:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file)
        else:
            with file.open("wb") as opened:
                torch.save(state, opened)


def _save_program(model: nn.Module, inputs: ExampleInputs, path: Path) -> Saved:
    written = BytesIO()  # torch ends the process where it writes a program to a disk that is full
    with evaluating(model), torch.no_grad():
        program, dynamic = _export(model, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own deprecated internals
            torch.export.save(program, written)
            loaded = torch.export.load(BytesIO(written.getvalue())).module()
        batches = (inputs, _doubled(inputs)) if dynamic else (inputs,)
        error = max(relative_error(_outputs(model, batch), _outputs(loaded, batch)) for batch in batches)
    if not error <= _TOLERANCE:
        raise VerificationError(
            f"the program for {path}, loaded again, differs from the compact model by {error:.1e} of the output, so it "
            "was not written; please report this model"
        )
    with _written(path) as file:
        file.write_bytes(written.getvalue())
    return Saved(str(path), path.stat().st_size, "program", dynamic, error)


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A file that takes the place of ``path`` once it is whole."""
    try:
        with replaced(path) as file:
            yield file
    except Exception as error:  # OSError, or what the writers of torch and safetensors make of it
        raise FileError(f"{path} cannot be written: {because(error)}. What was there before is as it was") from error


def _outputs(model: nn.Module, inputs: ExampleInputs) -> Any:
    args, kwargs = copy.deepcopy((inputs.args, inputs.kwargs))
    return model(*args, **kwargs)


def _export(model: nn.Module, inputs: ExampleInputs) -> tuple[ExportedProgram, bool]:
    """With a dynamic batch where that is possible."""
    try:
        return _exported(model, _doubled(inputs), Dim.DYNAMIC), True
    except Exception:  # whatever stands in the way, the batch stays as it is
        pass
    try:
        return _exported(model, inputs, None), False
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"torch.export cannot take the compact model ({found})") from error


def _exported(model: nn.Module, inputs: ExampleInputs, batch: Any) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own deprecated internals
        given = (inputs.args, inputs.kwargs)
        sizes = tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, given)
        shapes = None if batch is None else (*sizes[0], *sizes[1].values())
        return torch.export.export(model, *given, dynamic_shapes=shapes, strict=False)


def _doubled(inputs: ExampleInputs) -> ExampleInputs:
    """Twice the batch: torch.export takes a batch of one for a constant."""
    sizes = {leaf.size(0) if leaf.ndim else 0 for leaf in tensor_leaves((inputs.args, inputs.kwargs))}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError("the example inputs have no batch dimension in common")
    return inputs.doubled()
