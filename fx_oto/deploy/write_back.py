"""Write back: the compact graph as a copy of the user's own module, of the user's own classes."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fx_oto.capture import trace, unwrapped
from fx_oto.capture.names import CONSTANT
from fx_oto.core.context import Context
from fx_oto.core.differences import lowest_tolerance
from fx_oto.core.errors import InputError, MissingResultError, SlicingError
from fx_oto.core.fx_utils import source_line
from fx_oto.core.parts import in_parts, plan_of, whole_again
from fx_oto.core.preserve import Dice
from fx_oto.deploy.aligning import name_as_analysed
from fx_oto.deploy.attributes import Attribute, Attributes, Values, set_attributes
from fx_oto.deploy.calls import CALL, Call, calls_of, watch_calls
from fx_oto.deploy.comparing import Difference, compared, first_difference, warn_of_unused
from fx_oto.deploy.configuring import configured
from fx_oto.deploy.copying import HALF, add_constant, all_tensors, compact_copy, copied_over, leave_out, widened
from fx_oto.deploy.equations import solve
from fx_oto.deploy.rebuilding import Configured
from fx_oto.deploy.recipes import Build, recipe_of
from fx_oto.deploy.replay import Misfit, Replay, values_of
from fx_oto.deploy.scaling import Scaling, fitting_scaling
from fx_oto.deploy.subgraphs import Subgraphs
from fx_oto.deploy.written import ReplacedLayer, SetAttribute, WriteBack, WrittenGraph
from fx_oto.nn import norms
from fx_oto.ops.values import ANALYSED
from fx_oto.passes.physical_slicing import SlicingPlan

__all__ = ["WriteBack", "write_back"]


def write_back(small: GraphModule, model: nn.Module, build: Build | None = None) -> nn.Module:
    """Return the compact graph as a copy of the user's own module: its classes, methods, hooks and names stay.

    Parameters and buffers are the compact graph's, torch's layers have the sizes of these, and the numbers that the
    code of other modules reads, such as ``num_heads``, are solved for: the model is captured again with numbers that
    remember which attribute they come from, and what the code computes from them must be what the compact graph has.
    A module whose code does not fit for any values keeps its class and gets the compact graph of it as its ``forward``,
    as does one of which a branch is gone; the parameters and buffers of the branch are None.
    The copy is compared with the compact graph in both training modes. What was done, ``WriteBack.of(copy)`` says.

    If ``type(model)(model.config)`` builds the model, as it does in transformers, its copy has a ``config`` that builds
    the compact one, wherever numbers of a configuration can say it: ``WriteBack.of(copy).check_config()`` tells.

    Args:
        small: what ``compress`` returned.
        model: the model that was given to ``prepare``, or what wraps it; it is not changed.
        build: what builds the full model in the place of its class, such as
            ``functools.partial(timm.create_model, "vit_tiny_patch16_224")``, without loading weights;
            ``WriteBack.of(copy).call`` is the call with the keyword arguments that build the copy.

    Returns:
        A copy of the model that computes what ``small`` does.

    Raises:
        MissingResultError: ``small`` is not what ``compress`` returned in this process.
        InputError: ``model`` is not the module that ``small`` was made from.
        SlicingError: a module's code does not fit, and neither does a graph in its place.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> fx_oto.write_back(fx_oto.compress(gm), net)
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    model = unwrapped(model)
    _check(small, model)
    plan = Context.of(small).parts
    dice = Dice()
    try:
        # under inference mode no tensor could be trained later; hooks put on layers since are in small as in the model
        with torch.inference_mode(False), _as_captured(small):
            if plan is not None:
                return whole_again(_Writer(small, in_parts(model, plan), build).written(), model)
            new = _Writer(small, model, build).written()
            warn_of_unused(model, small)
            return new
    finally:
        dice.put_back()


def _as_captured(small: GraphModule) -> AbstractContextManager[None]:
    original = Context.of(small).get(SlicingPlan).original
    return nullcontext() if original is None else original.as_captured(small)


def _check(small: Any, model: Any) -> None:
    if (
        not isinstance(small, GraphModule)
        or SlicingPlan not in getattr(small, "meta", {}).get("fx_oto", _Nothing).results
    ):
        raise MissingResultError(
            "write_back needs the GraphModule that fx_oto.compress returned, in the same process: "
            "fx_oto.compress(gm, into=model) does both at once"
        )
    if not isinstance(model, nn.Module) or isinstance(model, GraphModule):
        raise InputError(
            f"write_back needs the model that was prepared, found {type(model).__name__}; what was prepared as a "
            "GraphModule has no code of its own to write back to: use what fx_oto.compress returned"
        )
    kept, axes = Context.of(small).get(SlicingPlan).kept, Context.of(small).get(SlicingPlan).cuts.found.axes
    mine = dict(all_tensors(model))
    for axis in axes:
        if axis.tensor.startswith(CONSTANT):  # which code makes in each call, and is not part of the model
            continue
        if (axis.tensor, axis.dim) in kept and (
            axis.tensor not in mine or mine[axis.tensor].size(axis.dim) != axis.size
        ):
            found = "it has none" if axis.tensor not in mine else f"it is {tuple(mine[axis.tensor].shape)}"
            raise InputError(
                f"the model is not the one that was compressed: {axis.tensor!r} had {axis.size} in dimension "
                f"{axis.dim}, and {found}. Give the model that was given to prepare"
            )


_MOST = 1e-5  # that a norm may differ from its graph, in float32 or better


class _Nothing:
    results: dict[type, Any] = {}  # noqa: RUF012 - never written


@dataclass
class _Plan:
    """What is done to a copy.

    Attributes:
        values: of attributes, those that are set.
        constants: what is added to the output of a layer, by path.
        norms: how norms are scaled, by path.
        graphs: which modules compute what the compact graph says, and where their code fails.
    """

    values: dict[Attribute, Any] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Scaling] = field(default_factory=dict)
    graphs: dict[str, Misfit] = field(default_factory=dict)

    def covers(self, call: Call | None) -> bool:
        """Whether code in a call is run no more, or fits."""
        around = () if call is None else call.around()
        return "" in self.graphs or any(one.path in self.graphs or one.path in self.norms for one in around)

    def add_graph(self, path: str, misfit: Misfit) -> None:
        """Let a module be a graph, and none of those inside of it: the graph itself says what it adds, and scales."""
        inside = f"{path}." if path else ""
        self.constants = {layer: one for layer, one in self.constants.items() if not layer.startswith(inside)}
        self.graphs = {other: why for other, why in self.graphs.items() if not other.startswith(inside)}
        self.norms = {other: scaling for other, scaling in self.norms.items() if not other.startswith(inside)}
        self.graphs[path] = misfit


class _Writer:
    def __init__(self, small: GraphModule, model: nn.Module, build: Build | None) -> None:
        self.small, self.model = small, model
        self.recipe = None if plan_of(model) else recipe_of(model, build)  # nothing builds parts alone
        self.inputs = Context.of(small).inputs
        original = Context.of(small).get(SlicingPlan).original
        self.original = original if original is not None and original.is_of(model) else None
        # In half precision, a norm over too few channels would pass for the right one.
        self.wide, self.wide_inputs = small, self.inputs
        if any(tensor.dtype in HALF for _, tensor in all_tensors(small)):
            self.wide = widened(copy.deepcopy(small))
            self.wide_inputs = self.inputs.mapped(lambda one: one.float() if one.dtype in HALF else one)
        self.attributes = Attributes()
        self.code = self._captured()
        self.calls = calls_of(self.code.graph.nodes)
        self.expected = values_of(self.wide, self.wide_inputs)
        fixed = any(size.fixed for size in Context.of(small).capture.sizes)
        tensors = {name: one for name, one in self.expected.items() if isinstance(one, Tensor) and fixed}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.subgraphs = Subgraphs(self.code, small, self.calls, shapes)
        self.allowed = min(lowest_tolerance(small), _MOST)
        self.plan, self.read = _Plan(), set[Attribute]()
        self.compact = {node.meta[ANALYSED]: node for node in small.graph.nodes if node.meta.get(ANALYSED)}

    def _captured(self) -> GraphModule:
        """The graph of the user's code, in which numbers remember the attributes that they come from."""
        twin = copied_over(self.model, {id(tensor): tensor for _, tensor in all_tensors(self.model)})
        if self.original is not None:
            self.original.strip(twin)
        self.attributes.plant(twin)
        watch_calls(twin)
        code = trace(twin, self.inputs)
        values = Context.of(self.small).get(SlicingPlan).cuts.found.values
        known = name_as_analysed(code.graph, list(values))
        names = [node.meta.get(ANALYSED) for node in self.small.graph.nodes]
        lost = [name for name in names if name is not None and name not in known and values[name]]  # a tensor
        if lost:
            raise InputError(
                "this is not the model that was compressed, or a deep copy of it computes something else "
                f"({lost[0]!r} is not computed any more), as one does whose code calls layers in closures, or goes by "
                "what an earlier call has left: use the compact graph itself"
            )
        return code

    def written(self) -> nn.Module:
        while self._adapt():
            pass
        while True:
            result = self._made()
            with self._as_captured(result):
                any_batch = Context.of(self.small).capture.takes_any_batch
                difference = compared(result, self.small, self.inputs, any_batch)
            if difference.fits:
                return self._reported(result, difference)
            self._give_way(result, difference)

    def _adapt(self) -> bool:
        """Find what does not fit in a copy, and change the plan; returns whether it was changed."""
        model, self.added = widened(self._copy()), set(self.plan.constants)
        if self.original is not None:
            self.original.strip(model)
        set_attributes(model, self.plan.values, self.read)
        replay = Replay(self.code, self.wide, model, self.attributes, self.expected)
        misfits = list(replay.misfits(self.plan.values))
        equations = [one for one in replay.equations if not self.plan.covers(one.node.meta.get(CALL))]
        self.read = {place for one in equations for place in one.attributes}
        values = solve(equations, self.attributes.original)
        if values != self.plan.values:
            self.plan.values = values
            set_attributes(model, values, self.read)
            misfits = list(replay.misfits(values))
        changed = False
        for misfit in misfits:
            call = misfit.node.meta.get(CALL)
            if not self.plan.covers(call):
                self._meet(misfit, call, model)
                changed = True
        return changed

    def _copy(self) -> nn.Module:
        model = compact_copy(self.model, self.small)
        if self.original is not None:
            self.original.drop_forwards_of_others(model)
        for path, constant in self.plan.constants.items():
            add_constant(model.get_submodule(path), constant)
        return model

    def _meet(self, misfit: Misfit, call: Call | None, model: nn.Module) -> None:
        """Change the plan so that a node of the user's code fits, or is not run."""
        twin = self.compact.get(misfit.node.name)
        if twin is not None and self._is_constant(misfit.node, twin, model):
            return
        if call is not None and twin is not None:
            numbers = self.attributes.original
            scaling = fitting_scaling(model, call, twin, self.expected, numbers, self.allowed)
            if scaling is not None:
                self.plan.norms[call.path] = scaling
                return
        if twin is not None and getattr(twin.target, "__module__", "") == norms.__name__:
            misfit = Misfit(misfit.node, "what it computes over channels counts those that are gone as well", True)
        self._make_graph([one.path for one in call.around()] if call is not None else [""], misfit, model)

    def _is_constant(self, node: Node, twin: Node, model: nn.Module) -> bool:
        """Whether a layer only lacks what the channels that are gone contributed, which its bias can hold."""
        path = str(node.target)
        if node.op != "call_module" or twin.target is not torch.add or path in self.added:
            return False
        constant: Any = twin.args[1]
        if not isinstance(constant, Node) or not str(constant.target).startswith("_folded"):
            return False
        content = self.small.get_buffer(str(constant.target))
        if path in self.plan.constants:  # it is called more than once
            return torch.equal(self.plan.constants[path], content)
        if add_constant(copy.deepcopy(model.get_submodule(path)), content):
            self.plan.constants[path] = content
        return path in self.plan.constants

    def _make_graph(self, paths: list[str], misfit: Misfit, model: nn.Module) -> None:
        for path in dict.fromkeys((*paths, "")):
            if path not in self.plan.graphs and not self.subgraphs.why_not(path, model):
                self.plan.add_graph(path, misfit)
                return
        raise SlicingError(self._text(misfit, "no graph can be put in its place"))

    def _text(self, misfit: Misfit, more: str) -> str:
        call = misfit.node.meta.get(CALL)
        where = (call.path if call is not None else "") or type(self.model).__name__
        return (
            f"the compact graph cannot be written back into {where!r}: node {misfit.node.name!r} at "
            f"{source_line(misfit.node) or 'no source line'}: {misfit.reason}; {more}. Nothing was changed: use the "
            "compact GraphModule as it is"
        )

    def _made(self, values: Values | None = None) -> nn.Module:
        """The copy, as the plan says; or with attributes at other values, which modules share as they did."""
        model = self._copy()
        if values is None:
            set_attributes(model, self.plan.values, self.read)
        else:
            set_attributes(model, values, set())
        for scaling in self.plan.norms.values():
            scaling.apply(model)
        for path in self.plan.graphs:
            self.subgraphs.put(path, model)
        leave_out(model, self.small, list(self.plan.graphs))
        return model

    def _as_captured(self, result: nn.Module) -> AbstractContextManager[None]:
        """Run a copy without what others have put on the model since; a graph in the place of a ``forward`` is ours."""
        if self.original is None:
            return nullcontext()
        own = {
            path: (hooks, replaced or path in self.plan.graphs) for path, (hooks, replaced) in self.original.own.items()
        }
        return replace(self.original, own=own).as_captured(result)

    def _give_way(self, result: nn.Module, difference: Difference) -> None:
        """Put a graph in the place of the first module that returns something else than the compact graph.

        Raises:
            SlicingError: even the graph of the whole model does not fit.
        """
        wide = widened(copy.deepcopy(result))
        with self._as_captured(wide):
            call = first_difference(wide, self.calls, self.expected, self.wide_inputs, self.plan.graphs)
        misfit = Misfit(self._first_node(call), difference.text)
        if "" in self.plan.graphs:
            raise SlicingError(self._text(misfit, "neither does the graph of the whole model"))
        self._make_graph([one.path for one in call.around()] if call is not None else [""], misfit, result)

    def _first_node(self, call: Call | None) -> Node:
        """The first node of a call that has a line in the user's code."""
        mine = [node for node in self.code.graph.nodes if call is not None and node.meta.get(CALL) is not None]
        inside = (node for node in mine if any(one.key == call.key for one in node.meta[CALL].around()))  # type: ignore[union-attr]
        return next((node for node in inside if source_line(node)), self.code.graph.output_node())

    def _reported(self, result: nn.Module, difference: Difference) -> nn.Module:
        """The copy with its configuration, where there is one that can say it, and the report of both."""
        report = self._report(result, difference)
        if self.recipe is None:
            return report.attach(result)
        needed = {place: self.attributes.original[place] for place in self.read} | self.plan.values
        for scaling in self.plan.norms.values():
            needed |= {place: eps / scaling.share for place, eps in scaling.epsilons.items()}
        found = configured(result, report, Configured(self.recipe, self.model), self.small, needed, self._made)
        if found.refusal:
            return replace(report, config_refusal=found.refusal).attach(result)
        return replace(report, attributes=found.attributes, config=found.changes, call=found.call).attach(found.model)

    def _report(self, result: nn.Module, difference: Difference) -> WriteBack:
        now = dict(result.named_modules(remove_duplicate=False))
        layers = [
            ReplacedLayer(path, type(module).__name__, type(now[path]).__name__)
            for path, module in self.model.named_modules(remove_duplicate=False)
            if type(now[path]) is not type(module)
        ]
        values = [
            SetAttribute(place.module, place.name, self.attributes.original[place], value)
            for place, value in self.plan.values.items()
        ]
        values += [
            SetAttribute(place.module, place.name, eps, eps / scaling.share)
            for scaling in self.plan.norms.values()
            for place, eps in scaling.epsilons.items()
        ]
        graphs = [
            WrittenGraph(
                path,
                type(self.model.get_submodule(path)).__name__,
                misfit.node.name,
                source_line(misfit.node),
                misfit.reason,
                misfit.is_norm,
            )
            for path, misfit in self.plan.graphs.items()
        ]
        return WriteBack(
            tuple(values), tuple(layers), tuple(self.plan.norms), tuple(graphs), difference.error, difference.modes
        )
