"""What a graph owes after a pass: it is well formed, runs on the example inputs, and returns what it returned."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten

from fx_oto.context import ExampleInputs
from fx_oto.errors import InputError, PassError
from fx_oto.graph import described
from fx_oto.tape import Tape, record_tape

__all__ = ["check_integrity"]


def check_integrity(stage: str, before: GraphModule, after: GraphModule, inputs: ExampleInputs) -> Tape:
    """Hold what a pass made to what every graph owes.

    Args:
        stage: name of the pass.
        before: what it was given; its nodes carry their values.
        after: what it made; its nodes get theirs.
        inputs: what both are called with.

    Returns:
        The tape of ``after``.

    Raises:
        PassError: the graph is invalid, does not run, or takes or returns something else; names pass and node.
    """
    _check_form(stage, after)
    old, new = ([str(node.target) for node in gm.graph.nodes if node.op == "placeholder"] for gm in (before, after))
    if old != new:
        raise PassError(
            f"the pass {stage!r} changed what the model is called with: it took {old}, now {new}. A pass keeps the "
            f"placeholders{_REMEDY}"
        )
    try:
        tape = record_tape(after, inputs)
    except InputError as error:
        reason = str(error).removeprefix("the model does not run on the example inputs").split("; found ")[0]
        raise PassError(f"the pass {stage!r} left a graph that does not run{reason}{_REMEDY}") from error
    _check_outputs(stage, before, after, sized=not tape.from_values)
    return tape


_REMEDY = (
    ". The GraphModule that the pass was given is unchanged: mend the pass, or leave it out with pipeline.without(…); "
    "if it is one of fx_oto's own, please report this model"
)


def _check_form(stage: str, gm: GraphModule) -> None:
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            if source.graph is not gm.graph or source._erased:
                raise PassError(
                    f"the pass {stage!r} left an invalid graph: {described(node)} reads {source.name!r}, which is not "
                    "in the graph. Give its readers another value with node.replace_all_uses_with(…) before "
                    f"graph.erase_node(node){_REMEDY}"
                )
    try:
        gm.graph.lint()
    except Exception as error:
        raise PassError(
            f"the pass {stage!r} left an invalid graph: {error}. A node must come after all that it reads "
            f"(graph.inserting_after), and its target must be in the GraphModule{_REMEDY}"
        ) from error


def _check_outputs(stage: str, before: GraphModule, after: GraphModule, sized: bool) -> None:
    (old, old_form), (new, new_form) = (tree_flatten(gm.graph.output_node().args[0]) for gm in (before, after))
    if old_form != new_form:
        was, now = (gm.graph.output_node().args[0] for gm in (before, after))
        raise PassError(f"the pass {stage!r} changed the structure of the output: it was {was}, now {now}{_REMEDY}")
    for one, other in zip(old, new, strict=True):
        was, now = _signature(one, sized), _signature(other, sized)
        if was != now:
            where = f", at {described(other)}" if isinstance(other, Node) else ""
            raise PassError(f"the pass {stage!r} changed an output{where}: it was {was}, now {now}{_REMEDY}")


def _signature(leaf: Any, sized: bool) -> str:
    value = leaf.meta.get("val") if isinstance(leaf, Node) else leaf
    if isinstance(value, Tensor):
        form = tuple(value.shape) if sized else f"{value.ndim} dimensions"
        return f"{form} {value.dtype} on {value.device}"
    return type(value).__name__
