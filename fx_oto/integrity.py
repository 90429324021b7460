"""What a graph owes after a pass: it is well formed, runs on the example inputs, and returns what it returned."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_structure

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
    _check_structure(stage, before, after)
    if _changed(before, after):  # or what is noted of it is not true now: not run yet, or sizes that weights decide
        record_tape(before, inputs)
    for was, now, where in _changed(before, after):
        raise PassError(f"the pass {stage!r} changed an output{where}: it was {was}, now {now}{_REMEDY}")
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


def _check_structure(stage: str, before: GraphModule, after: GraphModule) -> None:
    was, now = (gm.graph.output_node().args[0] for gm in (before, after))
    if tree_structure(was) != tree_structure(now):
        raise PassError(f"the pass {stage!r} changed the structure of the output: it was {was}, now {now}{_REMEDY}")


def _changed(before: GraphModule, after: GraphModule) -> list[tuple[str, str, str]]:
    """What is of another form: how it was, how it is, and where."""
    old, new = (tree_leaves(gm.graph.output_node().args[0]) for gm in (before, after))
    return [
        (was, now, f", at {described(other)}" if isinstance(other, Node) else "")
        for one, other in zip(old, new, strict=True)
        if (was := _signature(one)) != (now := _signature(other))
    ]


def _signature(leaf: Any) -> str:
    value = leaf.meta.get("val") if isinstance(leaf, Node) else leaf
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return type(value).__name__
