"""What one run of a model is written on: the graph, and which of its nodes makes which value."""

from __future__ import annotations

import dataclasses
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from fx_oto.analysis.disguises import disguise
from fx_oto.analysis.recording import Recording
from fx_oto.capture.numbers import Origin
from fx_oto.capture.refusals import Site, Way
from fx_oto.capture.subject import Subject
from fx_oto.capture.whole import Part, WrappedFunction
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import TraceError
from fx_oto.core.fx_utils import is_users, tensor_names

__all__ = ["Item", "Options", "Sheet"]

_TORCHS, _OURS = (f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))


@dataclasses.dataclass(frozen=True)
class Options:
    """How code is met that a capture has no other answer to.

    Attributes:
        opaque: what is called as a whole, whatever it does inside.
        statements: classes, and lines of their ``forward`` at which statements begin that are called as a whole.
        hashable: places in the code where sizes may be used as keys.
        op_level: whether a single function whose result depends on numbers, even in size, is called as a whole.
        may_fix: whether sizes may be fixed where functions are called as a whole.
        watchful: whether code that draws random numbers, which no graph sees, is looked for.
        compiling: whether code that asks is told that it is compiled, so that it asks for no values; None if that
            was tried, and fails.
        selects: whether code that asks if anything was selected is told so, to see whether it does the same without.
        length: the plain number of rows that were selected, where code asks for one, to see what becomes of it.
        other_number: another number in the place of one that is read from a tensor, to see what becomes of it.
        other_size: another number in the place of a size, for code that does not let it remember, to see what becomes
            of it: see ``remembered``.
        hands_others: whether code that asks for a plain number is given it as well. It may keep something by that for
            all of the process.
        reads_plain: whether code is given plain numbers that are read from tensors.
        steered: where what is chosen, and so counted, is to be something else: see ``Steered``.
        given: which of the numbers among the inputs is another one, and which one, to see what becomes of it.
        in_own_mode: layers, by ``id``, whose code is run: a ``forward`` puts them into a mode before it calls them.
        disguised: whether tensors are of the class of real ones, as far as code can tell.
        ways: where code goes that raises an error otherwise.
        tried: a place where it is given an answer once, to see whether it raises an error then, and that answer.
        untold: what code may not ask, for what it computes depends on it: see ``circumstances``.
    """

    opaque: tuple[Part | WrappedFunction, ...] = ()
    statements: tuple[tuple[type, int], ...] = ()
    hashable: frozenset[Any] = frozenset()
    op_level: bool = False
    may_fix: bool = True
    watchful: bool = False
    compiling: bool | None = False
    selects: bool = False
    length: int | None = None
    other_number: Callable[[Any], Any] | None = None
    other_size: Callable[[int, Origin], int] | None = None
    hands_others: bool = False
    reads_plain: bool = True
    steered: int = 0
    given: tuple[int, float] | None = None
    in_own_mode: frozenset[int] = frozenset()
    disguised: bool = True
    ways: Mapping[Site, Way] = dataclasses.field(default_factory=dict)
    tried: tuple[Site, bool] | None = None
    untold: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Item:
    """What a node returns inside of a container, until somebody reads it; with its gradient, or without."""

    parent: Node
    read: Callable[..., Any]
    key: Any
    detached: bool = False


class Sheet(TorchFunctionMode):
    """The graph that one run of a model is written on, and what is known of its values.

    Args:
        subject: the model.
        inputs: what it is called with.
        options: how code is met that a capture has no other answer to.
        constants: tensors that earlier runs met, and what makes objects again, by the name they have in the graph.
        fakes: what an earlier run of the model was recorded on, whose stand-ins are good for another.

    Attributes:
        graph: what torch functions were called.
        held: what the graph's nodes refer to, by name.
        handed: whether code was given numbers made of sizes, or sequences as long as one.
        asked: whether code decided by the training mode.
        events: nodes of numbers that code was given as plain ones, and those, in order.
        in_own_mode: layers, by ``id``, that code has put into another mode than the run's before it called them.
        numbers_given: the nodes of numbers among the inputs, those, and what they are called.
        types_asked: nodes that code asked for their types, or tensors that the model holds, and those types.
        types_asked_before: how many of these there were when a node was made, if any.
        branches: nodes that code decided by, and the answer that it was given, for each element of a tensor.
        answered: where code decided last by what nobody knows, and what it was told; None if it was told nothing.
        has_tried: whether it was given the answer that is tried: then nothing is kept of what it does.
        counts_rows: whether code was given the plain number of rows that were selected.
        raised: the last error that the run raised into code, which may have caught it and gone on.
        asked_for: what code has asked of how it is called.
        notes: what its user should know of the capture.
        is_plain: whether it is a list of the calls that code made, with nothing that it might have decided.
        rewritten: whether what was recorded is not what the graph computes, which has to be run again for its tape.
        is_over: whether nothing is captured any more.
        is_at_output: whether what is written down now is what the model returns.
        depth: how many calls deep the run is in what is not the user's code.
        places: which node's value a tensor is, by ``id``.
        gets_gradient: the tensors that would require a gradient, by ``id``.
        by_values: nodes whose values depend, even in size, on the numbers in others.
        stays_in_graphs: see ``numbers.Run``.
    """

    stays_in_graphs = False

    def __init__(
        self,
        subject: Subject,
        inputs: ExampleInputs,
        options: Options,
        constants: dict[str, Tensor | nn.Module] | None = None,
        fakes: Recording | None = None,
    ) -> None:
        super().__init__()
        self.subject, self.inputs, self.options = subject, inputs, options
        self.model, self.modules = subject.model, subject.modules
        self.graph = Graph()
        self.held: dict[str, Any] = {}
        self.handed = self.asked = self.is_over = self.is_at_output = False
        self.is_plain = True
        self.rewritten = self.counts_rows = False
        self.counted_parts: set[str] = set()
        self.events: list[tuple[Node, Any]] = []
        self.numbers_given: list[tuple[Node, float, str]] = []
        self.types_asked: list[tuple[Node | Tensor, torch.dtype]] = []
        self.types_asked_before: dict[Node, int] = {}
        self.branches: list[tuple[Node, bool]] = []
        self.answered: tuple[Site, bool | None] | None = None
        self.has_tried = False
        self.in_own_mode: set[int] = set()
        self.raised: Exception | None = None
        self.asked_for: set[str] = set()
        self.notes: list[str] = []
        self.depth = 0
        self.fakes = Recording(tensor_names(self.model)) if fakes is None else fakes
        self.constants = {} if constants is None else constants
        self.places: dict[int, Node | Item] = {}
        self.by_values: set[Node] = set()
        self.checked: dict[Any, Any] = {}
        self.gets_gradient = {id(fake) for fake in self.fakes.named.values() if self.fakes.real[id(fake)].requires_grad}
        self._attributes: dict[str, Node] = {}
        self._alive: list[Any] = []
        self._globals = {id(names): names for names in subject.namespaces}

    @property
    def hands_others(self) -> bool:
        """See ``numbers.Run``."""
        return self.options.hands_others

    def create(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A node at the end of the graph, with the line in the user's code."""
        node = self.graph.create_node(op, target, args, kwargs or {})
        if frame := self._user_frame():
            code = frame.f_code
            node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        if any(source in self.by_values for source in node.all_input_nodes):
            self.by_values.add(node)
        if self.types_asked:
            self.types_asked_before[node] = len(self.types_asked)
        return node

    def _user_frame(self) -> Any:
        """The innermost frame of the user's; None if there is none, as at the output, or in torch's containers."""
        frame: Any = sys._getframe(2)
        found = None
        while frame is not None and frame.f_code.co_name != "_run_of_users_code":
            if found is None and is_users(frame.f_code.co_filename):
                found = frame
                self._globals[id(frame.f_globals)] = frame.f_globals
                break
            frame = frame.f_back
        return found

    def is_torch_asking(self) -> bool:
        """Whether it is a line of torch's own Python code that runs, not of the user's."""
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename.startswith(_OURS):
            frame = frame.f_back
        return bool(frame.f_code.co_filename.startswith(_TORCHS))

    def asks(self, what: str) -> None:
        """Code asks for something that is in no input.

        Raises:
            TraceError: it may not, for what it computes depends on that.
        """
        if not self.is_torch_asking():
            if what in self.options.untold:
                self.raised = TraceError(f"code asks {what}, and computes something else by it")
                raise self.raised
            self.asked_for.add(what)

    def differentiable(self, tensor: Tensor) -> bool:
        """Whether a tensor would require a gradient."""
        return id(tensor) in self.gets_gradient

    def mark_differentiable(self, tensor: Tensor) -> None:
        """Note that a tensor requires a gradient."""
        self.gets_gradient.add(id(tensor))

    @abstractmethod
    def number(self, value: Any, origin: Origin) -> Any:
        """A number that remembers its origin."""

    @abstractmethod
    def number_given(self, value: float, node: Node, name: str) -> Any:
        """A number among the inputs, which remembers its node."""

    @abstractmethod
    def differs_by_values(self, node: Node) -> bool:
        """Whether a number may be another one where tensors hold other numbers."""

    @abstractmethod
    def refuse_lengths(self, node: Node) -> None:
        """Code counts the parts that a node returns.

        Raises:
            TraceError: how many those are depends on the numbers in a tensor.
        """

    @abstractmethod
    def branch(self, node: Node) -> bool:
        """The way that code goes which decides by a node's value."""

    @abstractmethod
    def asserts(self, node: Node, way: Way) -> None:
        """Let the graph raise an error unless code would go the same way by a node's value."""

    def node_of(self, origin: Origin) -> Node:
        """The node that computes a number; made when somebody reads it."""
        if origin.node is None or origin.node._erased:
            origin.node = self.computed(origin)
        return origin.node

    def computed(self, origin: Origin) -> Node:
        """A new node that computes a number."""
        args = self.nodes(origin.args)
        if isinstance(origin.function, str):
            node = self.create("call_method", origin.function, args)
        else:
            node = self.create("call_function", origin.function, args)
        return node

    def put(self, tensor: Tensor, node: Node) -> Node:
        """Remember which node's value a tensor is."""
        self._show(tensor, node)
        return node

    def _show(self, tensor: Tensor, place: Node | Item) -> None:
        """Code may get a tensor from here on."""
        if self.options.disguised:
            disguise((tensor,))
        self.places[id(tensor)] = place
        self._alive.append(tensor)

    def attribute(self, name: str, tensor: Tensor) -> Node:
        """The node that reads a tensor that the model holds."""
        if name not in self._attributes:
            node = self._attributes[name] = self._read(name, tensor)
            self.places.setdefault(id(node.meta["val"]), node)
        return self._attributes[name]

    def _read(self, name: str, tensor: Tensor) -> Node:
        node = self.create("get_attr", name, ())
        node.meta["val"] = self.fakes.of(tensor)
        self.held[name] = tensor
        return node

    def read(self, tensor: Tensor) -> Node:
        """A new node that reads a tensor that the model holds."""
        return self._read(self.subject.tensors[id(tensor)], tensor)

    def reads(self, name: str) -> bool:
        """Whether the graph reads a tensor that the model holds."""
        return name in self._attributes

    @abstractmethod
    def nodes(self, value: Any) -> Any:
        """The same with a node for each tensor, and each number that remembers.

        Raises:
            TraceError: it holds something that no graph can.
        """
