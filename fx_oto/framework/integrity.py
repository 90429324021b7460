"""Checks of a graph after a pass: it is well formed, runs at any batch size, and returns the same shapes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_structure

from fx_oto.analysis.dependencies import Dependencies
from fx_oto.analysis.recording import fake_run, record_tape
from fx_oto.analysis.tape import Tape
from fx_oto.core.context import Context, ExampleInputs
from fx_oto.core.errors import InputError, PassError
from fx_oto.core.fx_utils import described, graph_copy, tensor_leaves
from fx_oto.core.interpreter import PlainInterpreter, run_graph
from fx_oto.nn.modules import is_opaque

__all__ = ["REMEDY", "check_integrity", "check_notes"]


def check_integrity(stage: str, before: GraphModule, after: GraphModule, inputs: ExampleInputs) -> Tape:
    """Check the graph that a pass has made.

    Args:
        stage: name of the pass.
        before: what it was given; its nodes carry their values.
        after: what it made; its nodes get theirs.
        inputs: what both are called with.

    Returns:
        The tape of ``after``.

    Raises:
        PassError: the graph is invalid, does not run, takes or returns something else, or is for one batch size where
            it was not; names pass and node.
    """
    _check_form(stage, after)
    old, new = ([str(node.target) for node in gm.graph.nodes if node.op == "placeholder"] for gm in (before, after))
    if old != new:
        raise PassError(
            f"the pass {stage!r} changed what the model is called with: it took {old}, now {new}. A pass keeps the "
            f"placeholders{REMEDY}"
        )
    try:
        tape = record_tape(after, inputs)
    except InputError as error:
        reason = str(error).removeprefix("the model does not run on the example inputs").split("; found ")[0]
        raise PassError(f"the pass {stage!r} left a graph that does not run{reason}{REMEDY}") from error
    _check_structure(stage, before, after)
    if _changed(before, after):  # or what is noted of it is not true now: not run yet, or sizes that weights decide
        record_tape(before, inputs)
    for was, now, where in _changed(before, after):
        raise PassError(f"the pass {stage!r} changed an output{where}: it was {was}, now {now}{REMEDY}")
    _check_batch(stage, before, after, inputs.doubled())
    return tape


def check_notes(stage: str, before: GraphModule, after: GraphModule, inputs: ExampleInputs, macs: int | None) -> None:
    """As ``check_integrity``, and compare the values and multiply-adds that the pass has noted with those of a run.

    Args:
        stage: name of the pass.
        before: what it was given.
        after: what it made; its nodes carry their values.
        inputs: what both are called with.
        macs: the multiply-adds that the pass has counted; None if it does not know.

    Raises:
        PassError: a node carries another value than it returns, or there are more or fewer multiply-adds.
    """
    copy = graph_copy(after)
    tape = check_integrity(stage, before, copy, inputs)
    given = [node for node in after.graph.nodes if node.op == "placeholder"]
    if list(map(_form, given)) != [_form(node) for node in copy.graph.nodes if node.op == "placeholder"]:
        return  # what nodes return was noted on larger inputs, for sizes of 1 hide what they are combined with
    untrue: set[Node] = set()
    for noted, ran in zip(after.graph.nodes, copy.graph.nodes, strict=True):
        if (was := _form(noted)) == (now := _form(ran)):
            continue
        as_whole = is_opaque(noted, after) or noted.meta.get("asks_values")  # may return what depends on the weights
        if not as_whole and untrue.isdisjoint(noted.all_input_nodes):
            raise PassError(f"the pass {stage!r} noted {was} at {described(noted)}, which returns {now}{REMEDY}")
        untrue.add(noted)
    # How much code does that asks for numbers depends on the weights as well.
    asks = any(node.meta.get("asks_values") for node in after.graph.nodes)
    if macs is not None and macs != tape.macs and not (untrue or asks):
        raise PassError(f"the pass {stage!r} counted {macs} multiply-adds, but there are {tape.macs}{REMEDY}")


def _form(node: Node) -> list[str]:
    return [_signature(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in tree_leaves(node.meta.get("val"))]


REMEDY = (
    ". The GraphModule that it was given is unchanged. If the pass is yours, mend it, or leave it out with "
    "pipeline.without(…). If it is one of fx_oto's own and the model's type, device or layers were changed since, call "
    "fx_oto.prepare again; otherwise please report this model"
)


def _check_form(stage: str, gm: GraphModule) -> None:
    for node in gm.graph.nodes:
        for source in node.all_input_nodes:
            if source.graph is not gm.graph or source._erased:
                raise PassError(
                    f"the pass {stage!r} left an invalid graph: {described(node)} reads {source.name!r}, which is not "
                    "in the graph. Give its readers another value with node.replace_all_uses_with(…) before "
                    f"graph.erase_node(node){REMEDY}"
                )
    try:
        gm.graph.lint()
    except Exception as error:
        raise PassError(
            f"the pass {stage!r} left an invalid graph: {error}. A node must come after all that it reads "
            f"(graph.inserting_after), and its target must be in the GraphModule{REMEDY}"
        ) from error


def _check_structure(stage: str, before: GraphModule, after: GraphModule) -> None:
    was, now = (gm.graph.output_node().args[0] for gm in (before, after))
    if tree_structure(was) != tree_structure(now):
        raise PassError(f"the pass {stage!r} changed the structure of the output: it was {was}, now {now}{REMEDY}")


def _changed(before: GraphModule, after: GraphModule) -> list[tuple[str, str, str]]:
    """Outputs whose form has changed: the old form, the new form, and the place."""
    old, new = (tree_leaves(gm.graph.output_node().args[0]) for gm in (before, after))
    found = Context.of(before).results.get(Dependencies)
    vocabularies = {len(rows) for rows in found.tokens.values()} if found is not None else set()
    return [
        (was, now, f", at {described(other)}" if isinstance(other, Node) else "")
        for one, other in zip(old, new, strict=True)
        if (was := _signature(one)) != (now := _signature(other)) and not _lost_tokens(one, other, vocabularies)
    ]


def _lost_tokens(before: Any, after: Any, vocabularies: Collection[int]) -> bool:
    """Whether scores of tokens, which are those of a vocabulary of one of these lengths, are fewer."""
    was, now = (leaf.meta.get("val") if isinstance(leaf, Node) else leaf for leaf in (before, after))
    if not (isinstance(was, Tensor) and isinstance(now, Tensor) and was.ndim == now.ndim > 0):
        return False
    if (was.dtype, was.device) != (now.dtype, now.device):
        return False
    return all(one == other or one in vocabularies for one, other in zip(was.shape, now.shape, strict=True))


def _check_batch(stage: str, before: GraphModule, after: GraphModule, doubled: ExampleInputs) -> None:
    """Check that a graph that accepted twice the batch still does, and returns as much as before."""
    now, failure = _Run(after), None
    try:
        if now.on(doubled).grown():  # as nearly always: no need to ask what it was
            return
    except InputError as error:
        failure = error
    try:
        was = _Run(before).on(doubled)
    except InputError:  # it is for one batch size, or asks for values
        return
    if failure is not None:
        reason = str(failure.__cause__).split("\n\nWhile executing")[0]
        raise _baked(stage, _stuck(before, now) or now.node, f"it fails: {reason}") from failure
    for (_, expected), (leaf, found) in zip(was.outputs(), now.outputs(), strict=False):
        if expected != found:
            raise _baked(stage, _stuck(before, now) or leaf, f"an output is of shape {found} instead of {expected}")


def _baked(stage: str, node: Node, found: str) -> PassError:
    return PassError(
        f"the pass {stage!r} baked the batch size into the graph, at {described(node)}: with twice the batch of the "
        f"example inputs, {found}. Take it from a value, such as x.size(0) or -1 in a reshape{REMEDY}"
    )


class _Run(PlainInterpreter):
    """Runs a graph that has been run before, and notes of what shape the nodes' values are now."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.gm = gm
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.node = gm.graph.output_node()
        self.leaves = [leaf for leaf in tree_leaves(self.node.args[0]) if isinstance(leaf, Node)]

    def on(self, inputs: ExampleInputs) -> _Run:
        """Run on fake tensors."""
        fake_run(_Run.Module(self), inputs)
        return self

    def run_node(self, n: Node) -> Any:
        """The base class's."""
        self.node = n
        value = super().run_node(n)
        self.shapes[n.name] = _shapes(value)
        return value

    def outputs(self) -> list[tuple[Node, tuple[int, ...]]]:
        """Shapes of all tensors that are returned, each with the node that it comes from."""
        return [(leaf, shape) for leaf in self.leaves for shape in self.shapes[leaf.name]]

    def grown(self) -> bool:
        """Return whether every output is as it was, but twice as long in its first dimension."""
        before = [shape for leaf in self.leaves for shape in _shapes(leaf.meta["val"])]
        return [shape for _, shape in self.outputs()] == [(2 * shape[0], *shape[1:]) for shape in before if shape]

    class Module(nn.Module):
        """The same as a module."""

        def __init__(self, run: _Run) -> None:
            super().__init__()
            self.gm, self.run = run.gm, run

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return run_graph(self.run, args, kwargs)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensor_leaves(value)]


def _stuck(before: GraphModule, run: _Run) -> Node | None:
    """The first node that the pass made or changed whose first dimension does not grow with that of what it reads."""
    known = {node.format_node() for node in before.graph.nodes}

    def grows(node: Node) -> bool:
        shapes = zip(_shapes(node.meta.get("val")), run.shapes.get(node.name, ()), strict=False)
        return any(was[:1] != now[:1] for was, now in shapes)

    made = (node for node in run.gm.graph.nodes if node.format_node() not in known)
    return next((node for node in made if not grows(node) and any(map(grows, node.all_input_nodes))), None)


def _signature(leaf: Any) -> str:
    value = leaf.meta.get("val") if isinstance(leaf, Node) else leaf
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} on {value.device}"
    return type(value).__name__
