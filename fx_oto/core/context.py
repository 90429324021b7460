"""The results of all passes on a GraphModule in one typed, immutable object, ``gm.meta["fx_oto"]``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map, tree_map_only

from fx_oto.core.errors import InputError, MissingResultError
from fx_oto.core.fx_utils import tensor_leaves
from fx_oto.core.layouts import by_way_of_dense
from fx_oto.core.original import Original
from fx_oto.core.parts import PartPlan
from fx_oto.core.records import PassRecord

__all__ = ["Capture", "Context", "ExampleInputs", "InputSize", "Untraced", "inputs_now"]

_KEY = "fx_oto"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class ExampleInputs:
    """The arguments of one call of the model, as given by the user.

    Attributes:
        args: the positional ones.
        kwargs: those by keyword.

    Example:
        >>> import torch, fx_oto
        >>> given = fx_oto.ExampleInputs.of(((torch.zeros(2, 4),), {"mask": None}))
        >>> len(given.args), given.kwargs
        (1, {'mask': None})
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> ExampleInputs:
        """Read what a user passes.

        Args:
            inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or ``(args, kwargs)``.

        Raises:
            InputError: it is something else.
        """
        if isinstance(inputs, ExampleInputs):
            return inputs
        if isinstance(inputs, dict):
            return cls((), dict(inputs))
        if isinstance(inputs, tuple | list):
            if len(inputs) == 2 and isinstance(inputs[0], tuple | list) and isinstance(inputs[1], dict):
                return cls(tuple(inputs[0]), dict(inputs[1]))
            return cls(tuple(inputs))
        if isinstance(inputs, Tensor):
            return cls((inputs,))
        raise InputError(
            "example_inputs must be a tensor, a tuple of positional arguments, a dict of keyword arguments, or "
            f"(args, kwargs); found {type(inputs).__name__}{_hint(inputs)}"
        )

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The arguments if all are plain integers, as when a shape was given in the place of a tensor; else ``()``."""
        plain = bool(self.args) and not self.kwargs and all(type(value) is int for value in self.args)
        return self.args if plain else ()

    def mapped(self, change: Callable[[Tensor], Tensor]) -> ExampleInputs:
        """The same structure with ``change`` applied to each tensor."""
        return ExampleInputs(*tree_map_only(Tensor, change, (self.args, self.kwargs)))

    def copied(self) -> ExampleInputs:
        """A copy with tensors, containers and objects of its own, which a model may write into."""
        return ExampleInputs(*tree_map(_copied, (self.args, self.kwargs)))

    @property
    def samples(self) -> int:
        """The batch size: the length of the first dimension of the first tensor that has one; 1 where none has."""
        return next((tensor.size(0) for tensor in tensor_leaves((self.args, self.kwargs)) if tensor.ndim), 1)

    def doubled(self) -> ExampleInputs:
        """Twice the batch: of each tensor whose first dimension is as long as the batch."""
        samples = self.samples

        def twice(tensor: Tensor) -> Tensor:
            if not tensor.ndim or tensor.size(0) != samples:
                return tensor
            return by_way_of_dense(lambda dense: torch.cat([dense, dense]), tensor)

        return self.mapped(twice)


def _copied(value: Any) -> Any:
    """A tensor, a set, or an object of Python's with what is in it; anything else as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, set):
        return copy.copy(value)
    if callable(value) or isinstance(value, type | nn.Module) or type(getattr(value, "__dict__", None)) is not dict:
        return value
    made = copy.copy(value)
    if made is not value:  # of which there is one only
        made.__dict__.update(tree_map(_copied, vars(value)))
    return made


@dataclass(frozen=True)
class InputSize:
    """A size of the example inputs, and which other sizes the graph accepts.

    Attributes:
        dims: the dimensions that have this size in common: the input's name and the dimension of each.
        size: in the example inputs.
        fixed: the reason why the graph accepts no other, with the line in the user's code; empty if it does.
        decided: the line that branches on the size, if the graph accepts only sizes that take the same branch.

    Example:
        >>> import torch, fx_oto
        >>> print(fx_oto.Context.of(fx_oto.trace(torch.nn.Linear(4, 8), torch.randn(2, 4))).capture.sizes[0])
        input[0]: any
    """

    dims: tuple[tuple[str, int], ...]
    size: int
    fixed: str = ""
    decided: str = ""

    def __str__(self) -> str:
        where = ", ".join(f"{name}[{dim}]" for name, dim in self.dims)
        if self.fixed:
            return f"{where}: fixed at {self.size}, by {self.fixed}"
        return f"{where}: those like {self.size} for {self.decided}" if self.decided else f"{where}: any"


@dataclass(frozen=True)
class Capture:
    """The way in which a model became a graph.

    Attributes:
        front_end: ``"fx_oto"``, or ``"GraphModule"`` if the user gave one.
        opaque: names of the submodules, methods and functions that could not be captured and are called as a whole.
        sizes: the sizes of the example inputs, and which others the graph accepts. Empty for a GraphModule.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> print(fx_oto.Context.of(gm).capture)
        captured by fx_oto; sizes: input[0]: any; input[1]: any
    """

    front_end: str
    opaque: tuple[str, ...] = ()
    sizes: tuple[InputSize, ...] = ()

    @property
    def takes_any_batch(self) -> bool:
        """Whether the graph is known to take other batches than that of the example inputs."""
        batch = next((one for one in self.sizes if one.dims[0][1] == 0), None)
        return batch is not None and not (batch.fixed or batch.decided)

    def __str__(self) -> str:
        opaque = f"; called as a whole: {', '.join(self.opaque)}" if self.opaque else ""
        sizes = f"; sizes: {'; '.join(map(str, self.sizes))}" if self.sizes else ""
        return f"captured by {self.front_end}{opaque}{sizes}"


@dataclass(frozen=True)
class Context:
    """The example inputs, the capture, the records of passes, and the results of analyses by type.

    A transformation that changes the graph replaces the context by one that keeps only what it preserves.

    Attributes:
        inputs: of one call of the model.
        capture: how it became a graph.
        results: of analyses, by type; read them with ``get``.
        records: one for each pass that was run, in order.
        dropped: of results that are no longer true, the name of the pass that changed the graph.
        original: the model that was captured, by which the compact one is verified.
        kept: by tensor name and dimension, of each axis that lost indices in any round of compression those that are
            kept, as the very first model counts them, int64, ascending, shape ``(kept,)``; and its size there.
        parts: how the parts that ``prepare`` was given are called; None of a whole model.

    Example:
        >>> import torch, fx_oto
        >>> gm = fx_oto.prepare(torch.nn.Linear(4, 8), torch.randn(2, 4))
        >>> context = fx_oto.Context.of(gm)
        >>> context.capture.front_end, len(context.records), context.get(fx_oto.Partition).num_zigs
        ('fx_oto', 3, 0)
    """

    inputs: ExampleInputs
    capture: Capture
    results: dict[type, Any] = field(default_factory=dict)
    records: tuple[PassRecord, ...] = ()
    dropped: dict[type, str] = field(default_factory=dict)
    original: Original | None = None
    kept: Mapping[tuple[str, int], tuple[Tensor, int]] = field(default_factory=dict)
    parts: PartPlan | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Context:
        """Share what never changes with the copy: everything but the record of a training that still runs."""
        shared = {kind: copy.deepcopy(one, memo) if _changes(one) else one for kind, one in self.results.items()}
        return replace(self, results=shared, original=self.original and self.original.without_model())

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[()]]:
        """Drop it when pickled, as torch.fx drops the metadata of nodes, which the results refer to."""
        return dict, ()

    @classmethod
    def of(cls, gm: nn.Module) -> Context:
        """The context of ``gm``, a GraphModule that was traced or prepared.

        Raises:
            MissingResultError: the module carries none.
        """
        context = gm.meta.get(_KEY) if isinstance(gm, GraphModule) else None
        if not isinstance(context, Context):
            raise MissingResultError(
                f"expected the GraphModule that fx_oto.prepare(model, example_inputs) returns, found {_instead(gm)}"
            )
        return context

    def attach(self, gm: GraphModule) -> GraphModule:
        """Make this the context of ``gm`` and return ``gm``."""
        gm.meta[_KEY] = self
        return gm

    def get(self, kind: type[_Result]) -> _Result:
        """The result of the type ``kind``.

        Raises:
            MissingResultError: no pass has provided it; the text names the pass that does.
        """
        if kind not in self.results:
            raise MissingResultError(f"no {kind.__name__} is known for this GraphModule{self.remedy(kind)}")
        found: _Result = self.results[kind]
        return found

    def remedy(self, kind: type) -> str:
        """Text that says how to obtain a missing result of the type ``kind``."""
        known = getattr(kind, "provided_by", None)
        provider = f"the pass {known!r}" if known else f"an analysis whose class says provides = ({kind.__name__},)"
        if kind in self.dropped:
            by = self.dropped[kind]
            if any(record.name == by and record.cuts for record in self.records):
                return (
                    f", because the pass {by!r} has cut this model, and what was known is of the one before: to prune "
                    "it further, call fx_oto.prepare(model, example_inputs) on it, and give what that returns"
                )
            return (
                f", because the pass {by!r} changed the graph and dropped it: run {provider} again, or let the class "
                f"of {by!r} say that it stays true, preserves = ({kind.__name__},)"
            )
        calls = {"physical-slicing": "compress", "verification": "compress"}
        return f": run {provider} first, or fx_oto.{calls.get(known or '', 'prepare')}, which runs all that are needed"

    def provide(self, result: object) -> Context:
        """A context that also holds ``result``."""
        return replace(self, results={**self.results, type(result): result})

    def keep(self, kinds: Iterable[type], by: str) -> Context:
        """A context that holds only the results of the types in ``kinds``, after the pass called ``by``."""
        kept = {kind: self.results[kind] for kind in kinds if kind in self.results}
        lost = dict.fromkeys(self.results.keys() - kept.keys(), by)
        return replace(self, results=kept, dropped=self.dropped | lost)


def _hint(inputs: Any) -> str:
    """What to do where that can be told."""
    if isinstance(inputs, nn.Module):
        return ": the model comes first, then its inputs"
    if isinstance(inputs, Iterable) and not isinstance(inputs, str):
        return ": give a batch of tensors, without labels, as the model is called with it"
    return ""


def _instead(given: Any) -> str:
    """What was given in the place of a GraphModule with a context, and what to do."""
    kind = type(given).__name__
    if isinstance(given, GraphModule):
        return (
            f"a GraphModule ({kind}) without fx_oto's data in its meta (copy.deepcopy keeps it, pickle does not): "
            "prepare it anew"
        )
    inside = given.named_children() if isinstance(given, nn.Module) else ()
    for name, child in inside:
        if _KEY in getattr(child, "meta", {}):
            return f"{kind} around it: pass what is inside, which is its attribute {name!r}"
    return f"{kind}: call that first, and pass what it returns"


def _changes(result: Any) -> bool:
    """Return whether a result may change after it was provided: a dataclass that is not frozen."""
    settings = getattr(type(result), "__dataclass_params__", None)
    return settings is not None and not settings.frozen


def inputs_now(gm: nn.Module, context: Context) -> ExampleInputs:
    """The example inputs, of the type and on the device that the weights of ``gm`` have now."""
    if context.original is None:
        return context.inputs
    args, kwargs = context.original.on_its_place(gm, (context.inputs.args, context.inputs.kwargs))
    return ExampleInputs(args, kwargs)


@dataclass(frozen=True)
class Untraced:
    """Parameters of a model that its graph does not use, so that they are not in the GraphModule.

    Attributes:
        shapes: the shape of each, by name.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, gm: nn.Module) -> Untraced:
        """The parameters of ``model`` that ``gm`` lacks."""
        traced = {id(parameter) for parameter in gm.parameters()}
        return cls({name: tuple(p.shape) for name, p in model.named_parameters() if id(p) not in traced})
