"""One run of a model, recorded on two levels: torch functions become the FX graph, ATen calls the tape.

The model's own code runs, on fake tensors and on numbers that remember where they come from, so whatever it asks of its
tensors is answered as ever. Modules that slicing knows are called as a whole; what torch does below the functions that
it lets be seen, such as in scripted code, is recorded as the ATen calls that it makes.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph_module import _assign_attr
from torch.fx.node import base_types
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fx_oto.capture.arguments import Arguments, check_length
from fx_oto.capture.assigned import Assigned
from fx_oto.capture.custom import custom_functions
from fx_oto.capture.names import AnyNames
from fx_oto.capture.numbers import Flag, Float, Int, Origin, remembered
from fx_oto.capture.seen import SeenList, SeenTuple
from fx_oto.capture.whole import GradientHook, LeafTracer, MethodCall, Part, WrappedFunction, is_leaf, parts_in
from fx_oto.dice import Dice
from fx_oto.errors import TraceError
from fx_oto.framework.context import ExampleInputs
from fx_oto.graph import op_name, raised_at, source_line, tensor_leaves, tensor_names
from fx_oto.keeping import evaluating, unwritten, without_caches
from fx_oto.modes import FLAG, IN_PLACE, TrainingFlag
from fx_oto.modules import is_torchs
from fx_oto.norms import WholeNorms
from fx_oto.provenance.fakes import ValuesAskedError
from fx_oto.provenance.flops import FUSED
from fx_oto.provenance.leaves import LeafOp, leaf_of
from fx_oto.provenance.recurrence import WholeRecurrence
from fx_oto.provenance.tape import OpCall, Recording, Tape, laid_out, one_by_one, tape_of_steps

__all__ = ["CaptureRun", "NotCapturedError", "NotHashedError", "RandomError", "holder_of"]

_NOT_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
_DRAWS = "draws random numbers that a capture cannot see: they would stay the same for ever"
_ON_VALUES = "control flow depends on the values in a tensor"
# Read-only properties and methods whose answers say nothing of sizes, and are the same for a fake tensor.
_PLAIN = frozenset(
    "ndim dim ndimension dtype device layout is_cuda is_cpu is_meta is_sparse is_quantized is_mps is_xpu is_contiguous "
    "is_floating_point is_complex is_conj is_neg is_signed is_tensor is_inference is_nested is_leaf get_device names "
    "element_size itemsize __hash__ result_type can_cast promote_types finfo iinfo _version has_names grad_fn "
    "output_nr retains_grad storage untyped_storage data_ptr grad is_storage".split()
)
_TENSORS = frozenset(("T", "mT", "H", "mH", "real", "imag", "data"))
_VALUES = frozenset(("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero"))
_OPERATORS = frozenset(
    "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift neg pos invert abs eq ne lt le gt ge getitem "
    "setitem".split()
) | frozenset(IN_PLACE) | {"imatmul", "ilshift", "irshift"}
_TURNED = {f"r{name}": name for name in _OPERATORS} | {"rdiv": "truediv"}
_LISTS = (tuple, list)

_active = threading.local()
_call_of_torchs = nn.Module.__call__


class NotCapturedError(TraceError):
    """The model's code does something that a capture has no answer to.

    Attributes:
        parts: the methods of the model's modules in which that happened, outermost first.
        where: the place, to be read after what has happened.
        by_values: whether code asked for the numbers in a tensor.
        in_training: whether evaluation can be captured as it is.
    """

    def __init__(
        self, message: str, parts: Collection[Part | WrappedFunction] = (), where: str = "", by_values: bool = False
    ) -> None:
        super().__init__(message)
        self.parts, self.where, self.by_values = tuple(parts), where, by_values
        self.in_training = False


class RandomError(NotCapturedError):
    """The model's code draws random numbers that a capture does not see."""


class NotHashedError(TypeError):
    """A number that remembers was used as a key: code that caches by sizes goes another way then, or is run again.

    Attributes:
        site: the place in the code.
    """

    def __init__(self, site: Any) -> None:
        super().__init__("unhashable type: a size that is captured")
        self.site = site


@dataclasses.dataclass(frozen=True)
class _Item:
    """What a node returns inside of a container, until somebody reads it."""

    parent: Node
    read: Callable[..., Any]
    key: Any


@contextmanager
def _seeing_module_calls() -> Iterator[None]:
    """Let the run of this thread, if there is one, see each call of a module."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run: CaptureRun | None = getattr(_active, "run", None)
        if run is None or run.depth:
            return _call_of_torchs(self, *args, **kwargs)
        return run.call_module(self, args, kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = _call_of_torchs  # type: ignore[method-assign]


@contextmanager
def _said_to_compile() -> Iterator[None]:
    """Tell this thread's code that it is compiled, where it asks."""
    mine, ask = threading.get_ident(), torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: threading.get_ident() == mine or ask()
    try:
        yield
    finally:
        torch.compiler.is_compiling = ask


class CaptureRun(TorchFunctionMode):
    """Runs a model once and records what it does.

    Args:
        model: any module.
        inputs: what it is called with.
        training: the mode.
        opaque: what is called as a whole, whatever it does inside.
        hashable: places in the code where sizes may be used as keys.
        constants: tensors that earlier runs met, by the name they have in the graph.
        op_level: whether a single function whose result depends on numbers, even in size, is called as a whole.
        watchful: whether code that draws random numbers, which no graph sees, is looked for.
        compiling: whether code that asks is told that it is compiled, so that it asks for no values.
        fakes: what an earlier run of the model was recorded on, whose stand-ins are good for another.

    Attributes:
        graph: what torch functions were called.
        held: what the graph's nodes refer to, by name.
        handed: whether code was given numbers made of sizes, or sequences as long as one.
        calls_functions_whole: whether it calls functions as a whole, for their results depend on numbers.
        asked: whether code decided by the training mode.
        events: plain numbers that code was given for those that remember, in order.
        notes: what its user should know of the capture.
        is_plain: whether it is a list of the calls that code made, with nothing that it might have decided.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: ExampleInputs,
        training: bool,
        opaque: Collection[Part | WrappedFunction] = (),
        hashable: Collection[Any] = (),
        constants: dict[str, Tensor] | None = None,
        op_level: bool = False,
        watchful: bool = False,
        compiling: bool = False,
        fakes: Recording | None = None,
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.training = model, inputs, training
        self.graph = Graph()
        self.held: dict[str, Any] = {}
        self.handed = self.asked = self.is_over = self.calls_functions_whole = False
        self.is_plain = True
        self.events: list[tuple[Origin, Any]] = []
        self.notes: list[str] = []
        self.depth = 0
        self.fakes = Recording(tensor_names(model)) if fakes is None else fakes
        self._whole = (WholeRecurrence(self.fakes.whole), WholeNorms(self.fakes.whole))
        self.constants = {} if constants is None else constants
        self._watchful, self._compiling = watchful, compiling
        self._dice: Dice | None = None
        self._opaque, self._hashable, self._op_level = opaque, hashable, op_level
        self._modules = dict(model.named_modules())
        self._names = {id(module): name for name, module in self._modules.items()}
        self._tensors = _names_of_tensors(self._modules)
        self._places: dict[int, Node | _Item] = {}
        self._attributes: dict[str, Node] = {}
        self._alive: list[Any] = []
        self._calls: dict[Node, list[OpCall]] = {}
        self._differentiable = {
            id(fake) for fake in self.fakes.named.values() if self.fakes.real[id(fake)].requires_grad
        }
        self._learning: dict[int, bool] = {}
        self._by_values: set[Node] = set()
        self._checked: dict[Any, Any] = {}
        self._globals: dict[int, dict[str, Any]] = {}
        self._autocast = _autocast()
        self._in_module = ""

    # -- the run ---------------------------------------------------------------------------------------

    def run(self) -> CaptureRun:
        """Run the model.

        Raises:
            NotCapturedError: its code does something that cannot be captured; names the source line.
            NotHashedError: it uses sizes as keys at a place that is not in ``hashable``.
        """
        dice = Dice(torchs=False)  # from torch's, the graph draws
        self._dice = dice if self._watchful else None
        try:
            with ExitStack() as stack:
                for context in self._surroundings():
                    stack.enter_context(context)
                self._run()
        except Exception as error:
            raise self._explained(error) from error
        finally:
            self.is_over, self.fakes.above = True, None
            _active.run = None
            _forget_caches(self._globals.values())
            rolled = dice.rolled()
            dice.put_back()
        if rolled:
            raise RandomError(f"{type(self.model).__name__} {_DRAWS}")
        return self

    def _surroundings(self) -> Iterator[Any]:
        yield torch.inference_mode(False)
        yield without_caches(self.model)
        yield evaluating(self.model, self.training)
        yield torch.enable_grad()
        yield one_by_one()
        yield custom_functions(self)
        yield self._whole_methods()
        yield _seeing_module_calls()
        if self._compiling:
            yield _said_to_compile()
        yield self.fakes
        yield self

    def _run(self) -> None:
        for module in self._modules.values():
            if "training" in module.__dict__ and not is_leaf(module):
                flag = Flag(module.__dict__["training"])
                flag.run = self
                module.__dict__["training"] = flag
        assigned = Assigned(self._modules)
        with self._unseen():
            args, kwargs = Arguments.of(self.model, self.inputs).bind(self)
        _active.run, self.fakes.above = self, self._aten
        result = self.model._call_impl(*args, **kwargs)
        self.depth += 1
        output = self.nodes(result)
        assigned.write(self)
        self.graph.output(output)
        node = next(reversed(self.graph.nodes))
        node.meta["val"] = torch.fx.node.map_arg(output, lambda one: one.meta["val"])
        self._drop_unread_numbers()
        self.graph._tracer_cls = LeafTracer
        self.graph.set_codegen(AnyNames())

    def _explained(self, error: Exception) -> Exception:
        found: BaseException | None = error
        while found is not None:
            if isinstance(found, NotHashedError):
                return found
            found = found.__cause__ or found.__context__
        where = f" at {found}" if (found := raised_at(error)) else self._in_module
        text = str(error) or type(error).__name__
        message = f"{type(self.model).__name__} cannot be captured{where}: {text}"
        by_values = text == _ON_VALUES or isinstance(error, ValuesAskedError)
        return NotCapturedError(message, tuple(parts_in(error.__traceback__, self.model)), where, by_values)

    def size_of_input(self, number: int, dim: int) -> Node:
        """A new node that reads a size of an input, which is the tensor of that number among them."""
        source = self._places[id(self.fakes.of(self._given_tensors()[number]))]
        assert isinstance(source, Node)
        node = self.graph.call_method("size", (source, dim))
        node.meta["val"] = source.meta["val"].shape[dim]
        return node

    def _given_tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves((self.inputs.args, self.inputs.kwargs)) if isinstance(leaf, Tensor)]

    def fix(self, dims: Collection[tuple[int, int]], size: int, difference: Any) -> None:
        """Let the graph check sizes of the inputs.

        Args:
            dims: of each the number of the tensor among the inputs, and the dimension.
            size: what they were.
            difference: what depends on them.
        """
        tensors = self._given_tensors()
        for number, dim in dims:
            source = self._places.get(id(self.fakes.of(tensors[number])))
            if not isinstance(source, Node) or source._erased:
                continue
            text = difference.check or (
                f"the graph was captured where dimension {dim} of {source.name} was {size}, on which {difference} "
                "depends; trace it on such inputs"
            )
            after = source
            for function, args, value in (
                (torch.Tensor.size, (source, dim), size),
                (operator.eq, (None, size), True),
                (torch._assert, (None, text), None),
            ):
                with self.graph.inserting_after(after):
                    given = tuple(after if one is None else one for one in args)
                    after = (
                        self.graph.call_method("size", given)
                        if function is torch.Tensor.size
                        else self.graph.call_function(function, given)
                    )
                after.meta["val"] = value

    def _drop_unread_numbers(self) -> None:
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.meta.get("is_number") and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)

    def module(self) -> GraphModule:
        """The graph with what it refers to, in the model's present modes."""
        return GraphModule(holder_of(self.held), self.graph, type(self.model).__name__)

    def tape(self, gm: GraphModule) -> Tape:
        """The ATen calls, of a module that holds the graph, or one that is the same; its nodes get this run's values."""
        steps = []
        for node, mine in zip(gm.graph.nodes, self.graph.nodes, strict=True):
            node.meta["val"] = mine.meta["val"]
            steps.append((node, self._calls.get(mine, []), mine.meta["val"]))
        return tape_of_steps(gm, self.fakes, steps)

    # -- nodes -----------------------------------------------------------------------------------------

    def create(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
        """A node at the end of the graph, with the line in the user's code."""
        node = self.graph.create_node(op, target, args, kwargs or {})
        if frame := self._user_frame():
            code = frame.f_code
            node.stack_trace = f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_name}\n'
        if any(source in self._by_values for source in node.all_input_nodes):
            self._by_values.add(node)
        return node

    def _user_frame(self) -> Any:
        """The innermost frame of the user's; None if there is none, as at the output, or in torch's containers."""
        frame: Any = sys._getframe(2)
        found = None
        while frame is not None and frame.f_code is not CaptureRun._run.__code__:
            if found is None and not frame.f_code.co_filename.startswith(_NOT_USERS):
                found = frame
                self._globals[id(frame.f_globals)] = frame.f_globals
                break
            frame = frame.f_back
        return found

    def number(self, value: Any, origin: Origin) -> Any:
        """A number that remembers its origin."""
        return remembered(self, value, origin)

    def node_of(self, origin: Origin) -> Node:
        """The node that computes a number; made when somebody reads it."""
        if origin.node is None:
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

    def nodes(self, value: Any) -> Any:
        """The same with a node for each tensor, and each number that remembers.

        Raises:
            TraceError: it holds something that no graph can.
        """
        if isinstance(value, Tensor):
            return self.node_of_tensor(value)
        if isinstance(value, Int | Float) and value.run is self:
            node = self.node_of(value.origin)
            if "val" not in node.meta:
                node.meta["val"] = int.__int__(value) if isinstance(value, Int) else float.__float__(value)
                node.meta["is_number"] = True
            return node
        if isinstance(value, Flag):
            return self._mode(value)
        if isinstance(value, Int | Float):  # of an earlier run, kept by some cache
            return int.__int__(value) if isinstance(value, Int) else float.__float__(value)
        if value is None or isinstance(value, bool | str) or type(value) in (int, float):
            return value
        return self._nodes_of_container(value)

    def _nodes_of_container(self, value: Any) -> Any:
        if isinstance(value, SeenList | SeenTuple) and value.is_as_it_was():
            return value.node
        if isinstance(value, torch.Size) or type(value) in _LISTS:
            made = [self.nodes(one) for one in value]
            return made if isinstance(value, list) else tuple(made)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self.nodes, value))
        if isinstance(value, slice):
            return slice(*map(self.nodes, (value.start, value.stop, value.step)))
        if type(value) is dict:
            return {key: self.nodes(one) for key, one in value.items()}
        if isinstance(value, range):
            return value
        return self._nodes_of_object(value)

    def _nodes_of_object(self, value: Any) -> Any:
        kind = type(value)
        if isinstance(value, dict) and dataclasses.is_dataclass(value):  # a ModelOutput
            node = self.create("call_function", kind, (), {key: self.nodes(one) for key, one in value.items()})
        elif isinstance(value, OrderedDict):
            node = self.create("call_function", kind, ([(key, self.nodes(one)) for key, one in value.items()],))
        elif isinstance(value, dict):
            node = self.create("call_function", _filler(kind), ({key: self.nodes(one) for key, one in value.items()},))
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            node = self.create("call_function", kind, (), {key: self.nodes(one) for key, one in fields.items()})
        elif isinstance(value, base_types) or value is ... or kind.__module__ == "builtins" or is_torchs(kind):
            if isinstance(value, int | float) or not isinstance(value, nn.Module | torch.Generator):
                return value
            raise TraceError(f"a graph cannot hold an object of class {kind.__name__}")
        elif hasattr(value, "item") and kind.__module__ == "numpy":
            return value.item()
        elif type(getattr(value, "__dict__", None)) is dict and not callable(value) and tensor_leaves(vars(value)):
            node = self.create("call_function", _maker(kind), (self.nodes(vars(value)),))
        else:
            raise TraceError(f"a graph cannot hold an object of class {kind.__name__}")
        node.meta["val"], node.meta["is_wrapped"] = value, True
        return node

    def node_of_tensor(self, tensor: Tensor) -> Node:
        """The node whose value a tensor is.

        Raises:
            TraceError: nothing that was captured has made it.
        """
        place = self._places.get(id(tensor))
        if isinstance(place, Node):
            return place
        if place is not None:
            node = self.create("call_function", place.read, (place.parent, place.key))
            node.meta["val"] = tensor
            return self.put(tensor, node)
        tensor = self.fakes.real.get(id(tensor), tensor)
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.fakes.torchs:
            raise TraceError("a tensor comes from code in which torch's functions cannot be seen")
        return self.attribute(self._tensors.get(id(tensor)) or self._constant(tensor), tensor)

    def attribute(self, name: str, tensor: Tensor) -> Node:
        """The node that reads a tensor that the model holds."""
        if name not in self._attributes:
            node = self.create("get_attr", name, ())
            node.meta["val"] = self.fakes.of(tensor)
            self.held[name] = tensor
            self._attributes[name] = node
            self._places.setdefault(id(node.meta["val"]), node)
        return self._attributes[name]

    def reads(self, name: str) -> bool:
        """Whether the graph reads a tensor that the model holds."""
        return name in self._attributes

    def _constant(self, tensor: Tensor) -> str:
        with _without_modes():
            for name, other in self.constants.items():
                if other is tensor or (_form(other) == _form(tensor) and torch.equal(other, tensor)):
                    return name
        name = f"_tensor_constant{len(self.constants)}"
        self.constants[name] = tensor
        return name

    def _mode(self, flag: Flag) -> Node:
        """The node that tells the mode when the graph runs."""
        if FLAG not in self._attributes:
            self.held[FLAG] = TrainingFlag()
            node = self._attributes[FLAG] = self.create("call_module", FLAG, ())
            node.meta["val"] = bool(int(flag))
        return self._attributes[FLAG]

    def put(self, tensor: Tensor, node: Node) -> Node:
        """Remember which node's value a tensor is."""
        self._places[id(tensor)] = node
        self._alive.append(tensor)
        return node

    # -- what numbers tell (see numbers.Run) -----------------------------------------------------------

    def decided(self, origin: Origin, answer: Any) -> None:
        """Check in the graph that the answer is what it was."""
        self.is_plain = False
        node = self.node_of(origin)
        node.meta.setdefault("val", answer)
        node.meta["is_number"] = True
        if node in self._by_values:
            raise TraceError(_ON_VALUES)
        if self._checked.get(self._question(node)) == answer:
            return
        self._checked[self._question(node)] = answer
        same = self.create("call_function", operator.eq, (node, answer))
        same.meta["val"] = True
        text = f"the graph was captured where this was {answer!r} ({source_line(node)}); trace it on such inputs"
        check = self.create("call_function", torch._assert, (same, text))
        check.meta["val"] = None

    def _question(self, node: Node) -> Any:
        return node.op, node.target, str(node.args)

    def handed_out(self, number: Any, plain: Any) -> None:
        """Note a plain number, which may come back in the graph."""
        self.is_plain = False
        self.events.append((number.origin, plain))

    def hashed(self, number: Any) -> None:
        """Check it, where that is allowed."""
        frame = sys._getframe(2)
        site = (frame.f_code, frame.f_lasti)
        if site not in self._hashable:
            raise NotHashedError(site)
        plain = int.__int__(number) if isinstance(number, Int) else float.__float__(number)
        self.decided(number.origin, plain)

    def asked_for_mode(self) -> None:
        """Note that the other mode may go another way."""
        if not self.depth:
            self.asked = True

    # -- torch functions -------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._dice is not None and not self.depth and self._dice.rolled():
            raise TraceError(_DRAWS)
        if self.depth or self.is_over:
            return self._call(func, self.fakes.faked(tuple(args)), self.fakes.faked(dict(kwargs)))
        name = _name_of(func)
        if name in _PLAIN or func is torch._C._set_grad_enabled:
            return func(*args, **kwargs)
        self.depth += 1
        try:
            return self._see(func, name, args, kwargs)
        finally:
            self.depth -= 1

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function, some of them so that the tape has one call for it."""
        name = getattr(func, "__name__", "")
        for whole in self._whole:
            if name in whole.names and not kwargs and (shown := whole.shown(func, args)) is not None:
                return whole.run(*shown)
        return func(*args, **kwargs)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """What torch is asked meanwhile is not the user's code."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _see(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        special = _SPECIAL.get(name)
        if special is None and getattr(func, "__name__", "") == "__get__":
            special = _property_of_tensor
        if special is not None:
            answer = special(self, func, args, kwargs)
            if answer is not NotImplemented:
                return answer
        return self._record(func, name, args, kwargs)

    def _record(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if _is_wrapped_by_functorch(args) or self._is_cast():
            return self._call_by_call(func, args, kwargs)
        if name.startswith("set "):
            raise TraceError(f"code sets {name[4:]!r} of a tensor, which a graph does not")
        op, target, order = _target(func, name)
        given = tuple(reversed(args)) if order else args
        last = next(reversed(self.graph.nodes), None)
        node = self.create(op, target, self.nodes(tuple(given)), self.nodes(dict(kwargs)))
        return self._computed(node, args, kwargs, partial(self._call, func), last)

    def _is_cast(self) -> bool:
        """Whether ``torch.autocast`` has begun, or ended, inside of the model."""
        if changed := _autocast() != self._autocast:
            self.asked, self.is_plain = True, False  # what layers come to is another thing in training
        return changed

    def _call_by_call(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Let what depends on its surroundings be recorded as the ATen calls that it comes to."""
        depth, self.depth = self.depth, 0
        try:
            return func(*args, **kwargs)
        finally:
            self.depth = depth

    def _computed(
        self, node: Node, args: Any, kwargs: Any, compute: Callable[[Any, Any], Any], last: Node | None,
        module: nn.Module | None = None, anything: bool = False,
    ) -> Any:
        """The value of a node, to be handed to the user's code."""
        args, kwargs = _without_memory(self.fakes.faked(tuple(args))), _without_memory(self.fakes.faked(dict(kwargs)))
        self.fakes.node, self.fakes.calls = node.name, []
        dice = Dice(torchs=False) if anything else None
        try:
            value = compute(args, kwargs)
        except Exception as error:
            if not (anything or (self._op_level and isinstance(error, ValuesAskedError))):
                self._forget_after(last)
                raise
            value = self._really(node, module, (args, kwargs), error, last)
        finally:
            if dice is not None:  # the graph draws the numbers
                dice.put_back()
        return self._handed_over(node, args, kwargs, value, module)

    def _handed_over(self, node: Node, args: Any, kwargs: Any, value: Any, module: nn.Module | None) -> Any:
        given = {id(tensor) for tensor in tensor_leaves((args, kwargs))}
        value = laid_out(node, value) if isinstance(value, Tensor) and node.op != "call_module" else value
        value = self._bound(value, node, given)
        node.meta["val"] = _without_memory(value)
        self._calls[node] = self.fakes.calls
        tensors = tensor_leaves(value)
        if not tensors and isinstance(value, Int | Float | torch.Size):
            node.meta["is_number"] = True
        if torch.is_grad_enabled():
            self._note_gradients(tensors, given, module)
        elif isinstance(value, Tensor) and value.is_floating_point() and not self._is_written(value):
            value = self._detached(value, node)
        return value

    def _note_gradients(self, tensors: list[Tensor], given: set[int], module: nn.Module | None) -> None:
        if not self._differentiable.isdisjoint(given) or (module is not None and self._learns(module)):
            self._differentiable.update(id(tensor) for tensor in tensors if tensor.is_floating_point())

    def _learns(self, module: nn.Module) -> bool:
        if id(module) not in self._learning:
            held = {id(self.fakes.of(parameter)) for parameter in module.parameters()}
            self._learning[id(module)] = not self._differentiable.isdisjoint(held)
        return self._learning[id(module)]

    def _detached(self, value: Tensor, node: Node) -> Tensor:
        """Under ``torch.no_grad`` a value is without gradient."""
        detached = self.create("call_method", "detach", (node,))
        self.fakes.node, self.fakes.calls = detached.name, []
        fresh: Tensor = self.fakes.call(torch.ops.aten.detach.default, (value,), {})
        detached.meta["val"] = fresh
        self._calls[detached] = self.fakes.calls
        self.put(fresh, detached)
        return fresh

    def _is_written(self, tensor: Tensor) -> bool:
        return any(written is tensor for call in self.fakes.calls for written in call.written)

    def _bound(self, value: Any, node: Node, given: set[int]) -> Any:
        """Remember which node a value comes from; numbers in it remember it."""
        if isinstance(value, Tensor):
            value = self.fakes.of(value)
            if id(value) in given and not self._is_written(value):  # in another mode it may be another tensor
                value = self.fakes.call(torch.ops.aten.alias.default, (value,), {})
            self.put(value, node)
            return value
        if isinstance(value, torch.Size):
            self.handed = True
            return torch.Size([self.number(n, Origin(operator.getitem, (node, i))) for i, n in enumerate(value)])
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.handed = True
            return self.number(value, Origin(_itself, (node,), node))
        if isinstance(value, tuple | list):
            return self._bound_parts(value, node, given)
        if isinstance(value, dict):
            for key, one in value.items():
                self._bound_part(one, node, operator.getitem, key, given)
        return value

    def _bound_parts(self, value: Any, node: Node, given: set[int]) -> Any:
        parts = [self._bound_part(one, node, operator.getitem, i, given) for i, one in enumerate(value)]
        if type(value) not in _LISTS:
            return value
        if node.meta.get("asks_values"):
            return (SeenList if isinstance(value, list) else SeenTuple).of(self, node, parts)
        self.handed = True  # perhaps as many as an input is long
        return type(value)(parts)

    def _bound_part(self, value: Any, parent: Node, read: Callable[..., Any], key: Any, given: set[int]) -> Any:
        if isinstance(value, Tensor):
            value = self.fakes.of(value)
            if id(value) in given:
                value = self.fakes.call(torch.ops.aten.alias.default, (value,), {})
            self._places[id(value)] = _Item(parent, read, key)
            self._alive.append(value)
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return self.number(value, Origin(read, (parent, key)))
        if isinstance(value, tuple | list | dict) and tensor_leaves(value):
            node = self.create("call_function", read, (parent, key))
            node.meta["val"] = value
            return self._bound(value, node, given)
        return value

    def _forget_after(self, last: Node | None) -> None:
        """Take back the nodes that were made for a call that failed."""
        for node in reversed(list(self.graph.nodes)):
            if node is last:
                break
            if node.users:
                continue
            self.graph.erase_node(node)
            for places in (self._places, self._attributes):
                for key in [key for key, one in places.items() if one is node]:
                    del places[key]  # type: ignore[attr-defined]

    def _aten(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An ATen call; those that no torch function makes that can be seen become nodes."""
        self.fakes.note_literal(func, args)
        if self.depth or self.is_over:
            return self.fakes.call(func, self.fakes.faked(tuple(args)), self.fakes.faked(kwargs))
        with self._unseen():
            args, kwargs = self.fakes.faked(tuple(args)), self.fakes.faked(dict(kwargs))
            last = next(reversed(self.graph.nodes), None)
            self.is_plain = False
            node = self.create("call_function", func, self.nodes(args), self.nodes(kwargs))
            return _without_memory(
                self._computed(node, args, kwargs, lambda a, k: self.fakes.call(func, a, k), last)
            )

    # -- modules and methods ---------------------------------------------------------------------------

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module is called: as a whole, or its code is run."""
        module = getattr(module, "_orig_mod", module) if type(module).__name__ == "OptimizedModule" else module
        name = self._names.get(id(module))
        opaque = Part(module, "forward") in self._opaque
        if name is None or not (opaque or is_leaf(module)) or (self._is_cast() and not opaque):
            return module._call_impl(*args, **kwargs)
        self.depth += 1
        try:
            return self._call_whole(module, name, opaque, args, kwargs)
        finally:
            self.depth -= 1

    def _call_whole(self, module: nn.Module, name: str, opaque: bool, args: Any, kwargs: Any) -> Any:
        self.held[name] = module
        self._in_module = f" in the module {name!r} ({type(module).__name__})"

        def compute(given: Any, named: Any) -> Any:
            if leaf_of(module) is None:
                return module._call_impl(*given, **named)
            return self.fakes.leaf(
                *LeafOp.of(module, given, named), lambda: module._call_impl(*given, **named)
            )

        last = next(reversed(self.graph.nodes), None)
        node = self.create("call_module", name, self.nodes(tuple(args)), self.nodes(dict(kwargs)))
        if opaque:
            self.is_plain = False
        return self._computed(node, args, kwargs, compute, last, module, anything=opaque or not is_torchs(type(module)))

    @contextmanager
    def _whole_methods(self) -> Iterator[None]:
        """Let the methods that are called as a whole become nodes."""
        methods = [part for part in self._opaque if isinstance(part, Part) and part.method != "forward"]
        functions = [part for part in self._opaque if isinstance(part, WrappedFunction)]
        try:
            for part in methods:
                part.owner.__dict__[part.method] = partial(self._call_method, part)
            for one in functions:
                one.names[one.name] = one.seen_by(self, threading.get_ident())
            yield
        finally:
            for part in methods:
                part.owner.__dict__.pop(part.method, None)
            for one in functions:
                one.names[one.name] = one.function

    def call_wrapped(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A function that is marked with ``torch.fx.wrap`` is called, as a whole."""
        with self._unseen():
            last = next(reversed(self.graph.nodes), None)
            self.is_plain = False
            node = self.create("call_function", function, self.nodes(tuple(args)), self.nodes(dict(kwargs)))
            node.meta["is_wrapped"] = True
            return self._computed(node, args, kwargs, lambda a, k: function(*a, **k), last, anything=True)

    def _call_method(self, part: Part, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(part.owner), part.method)
        if self.depth or self.is_over:
            return method(part.owner, *args, **kwargs)
        name = part.target_in(self.model)
        module = self.held.setdefault(name, MethodCall(part))
        last = next(reversed(self.graph.nodes), None)
        node = self.create("call_module", name, self.nodes(args), self.nodes(kwargs))

        def compute(given: Any, named: Any) -> Any:
            value = method(part.owner, *given, **named)
            held = {id(tensor) for tensor in self.fakes.named.values()}
            if any(id(tensor) in held for call in self.fakes.calls for tensor in call.inputs):
                raise TraceError("a method that would be called as a whole uses parameters of the model")
            return value

        self.is_plain = False
        with self._unseen():
            return self._computed(node, args, kwargs, compute, last, module, anything=True)

    def call_custom(self, function: Callable[..., Any], args: Any, compute: Callable[[Any, Any], Any]) -> Any:
        """A ``torch.autograd.Function`` is applied: as a node of the graph it keeps its own backward."""
        last = next(reversed(self.graph.nodes), None)
        self.is_plain = False
        node = self.create("call_function", function, self.nodes(tuple(args)))
        node.meta["is_wrapped"] = True
        with torch.enable_grad(), self._unseen():
            return self._computed(node, args, {}, compute, last)

    def hook(self, hook: Callable[..., Any], tensor: Tensor) -> None:
        """The gradient of a value is hooked."""
        name = f"gradient_hook_{sum(isinstance(one, GradientHook) for one in self.held.values())}"
        self.held[name] = GradientHook(hook)
        self.is_plain = False
        node = self.create("call_module", name, (self.node_of_tensor(tensor),))
        node.meta["val"] = None

    def refuse_values(self, tensor: Tensor) -> None:
        """Code counts what a tensor holds.

        Raises:
            TraceError: how much that is depends on the values in another.
        """
        if self.node_of_tensor(tensor) in self._by_values:
            raise TraceError(_ON_VALUES)

    def differentiable(self, tensor: Tensor) -> bool:
        """Whether a tensor would require a gradient."""
        return id(tensor) in self._differentiable

    def mark_differentiable(self, tensor: Tensor) -> None:
        """Note that a tensor requires a gradient."""
        self._differentiable.add(id(tensor))

    # -- real numbers ----------------------------------------------------------------------------------

    def _really(self, node: Node, module: Any, given: Any, error: Exception, last: Node | None) -> Any:
        """The value of a node on the example inputs themselves, of what cannot be run on fake tensors."""
        if not self._can_really():
            self._forget_after(last)
            raise error
        try:
            value, macs = self.evaluated([*self.graph.nodes], node)
        except Exception as really:
            self._forget_after(last)
            raise really from error
        self.is_plain = False
        if module is None:  # of what else is called as a whole, the graph checks the sizes that code decides by
            self._by_values.add(node)
            self.calls_functions_whole = True
        node.meta["asks_values"] = True
        return self.fakes.opaque(node, module, given, value, macs)

    def _can_really(self) -> bool:
        tensors = (*tensor_names(self.model).values(), *tensor_leaves((self.inputs.args, self.inputs.kwargs)))
        return not any(tensor.is_meta for tensor in tensors)

    def evaluated(self, nodes: list[Node], wanted: Node) -> tuple[Any, int]:
        """The real value of one of the graph's nodes, computed from those before it, and its multiply-adds."""
        values: dict[Node, Any] = {}
        with _without_modes(), torch.no_grad(), unwritten(self.model):
            given = Arguments.of(self.model, self.inputs.copied()).given
            for node in nodes:
                if node is wanted:
                    break
                values[node] = self._evaluate(node, values, given)
            watch = _Refusing(self.model) if isinstance(self._called(wanted), MethodCall) else nullcontext()
            with watch, FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
                value = self._evaluate(wanted, values, given)
        return value, counter.get_total_flops() // 2

    def _called(self, node: Node) -> Any:
        return self.held[str(node.target)] if node.op == "call_module" else None

    def _evaluate(self, node: Node, values: dict[Node, Any], given: dict[str, Any]) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "placeholder":
            return given.get(str(node.target).lstrip("*"), *node.args)
        if node.op == "get_attr":
            return self.held[str(node.target)]
        if node.op == "call_module":
            return self.held[str(node.target)](*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def constant(self, tensor: Tensor) -> Tensor | None:
        """The real content of a tensor that depends on no input."""
        wanted = self.node_of_tensor(tensor)
        needed, waiting = set[Node](), [wanted]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        written = {id(one) for calls in self._calls.values() for call in calls for one in call.written}
        for node in needed:
            if node.op == "placeholder" or id(node.meta.get("val")) in written or _is_random(node):
                return None
        if not self._can_really():
            return None
        value, _ = self.evaluated([node for node in self.graph.nodes if node in needed], wanted)
        return value if isinstance(value, Tensor) else None


class _Refusing(TorchDispatchMode):
    """Refuses calls on the parameters and buffers of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._held = {id(tensor) for tensor in tensor_names(model).values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(id(tensor) in self._held for tensor in tensor_leaves((args, kwargs))):
            raise TraceError("a method that would be called as a whole uses parameters of the model")
        return func(*args, **(kwargs or {}))


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def holder_of(held: Mapping[str, Any]) -> nn.Module:
    """A module that holds others, and tensors, under these names."""
    holder = nn.Module()
    for name, value in held.items():
        _assign_attr(value, holder, name)
    return holder


def _is_random(node: Node) -> bool:
    return "rand" in str(node.target) or "dropout" in str(node.target)


@contextmanager
def _without_modes() -> Iterator[None]:
    """Really compute, whatever is captured."""
    run, _active.run = getattr(_active, "run", None), None
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            yield
    finally:
        _active.run = run


def _itself(value: Any) -> Any:
    return value


@cache
def _filler(kind: type) -> Callable[[Mapping[Any, Any]], Any]:
    """What makes a dictionary of another class."""

    def fill(items: Mapping[Any, Any]) -> Any:
        made = kind()
        made.update(items)
        return made

    fill.__name__, fill.__module__ = kind.__name__, kind.__module__
    return fill


@cache
def _maker(kind: type) -> Callable[[dict[str, Any]], Any]:
    """What makes an object of a class of the user's with these attributes."""

    def make(attributes: dict[str, Any]) -> Any:
        made = kind.__new__(kind)
        made.__dict__.update(attributes)
        return made

    make.__name__, make.__module__ = kind.__name__, kind.__module__
    return make


def _without_memory(value: Any) -> Any:
    """The same with plain numbers."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Int):
        return int.__int__(value)
    if isinstance(value, Float):
        return float.__float__(value)
    if isinstance(value, Flag):
        return bool(int(value))
    if isinstance(value, SeenList | SeenTuple):
        return value.plain
    if isinstance(value, torch.Size):
        return torch.Size([_without_memory(one) for one in value])
    if type(value) in _LISTS:
        return type(value)(map(_without_memory, value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_without_memory, value))
    if isinstance(value, slice):
        return slice(*map(_without_memory, (value.start, value.stop, value.step)))
    if type(value) is dict:
        return {key: _without_memory(one) for key, one in value.items()}
    return value


def _autocast() -> tuple[Any, ...]:
    """What is cast to which type, on CPUs and on CUDA."""
    return tuple(torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda"))


def _is_wrapped_by_functorch(args: Any) -> bool:
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensor_leaves(args))


def _names_of_tensors(modules: Mapping[str, nn.Module]) -> dict[int, str]:
    """The name of each tensor that modules hold, by ``id``."""
    names: dict[int, str] = {}
    for registry in ("_parameters", "_buffers", "__dict__"):
        for path, module in modules.items():
            held = module.__dict__ if registry == "__dict__" else module.__dict__[registry]
            for name, value in held.items():
                if isinstance(value, Tensor):
                    names.setdefault(id(value), f"{path}.{name}".lstrip("."))
    return names


def _forget_caches(namespaces: Collection[dict[str, Any]]) -> None:
    """Empty the caches of functions that code uses: what they keep of the run has no numbers."""
    cached = type(lru_cache(lambda: None))
    for names in namespaces:
        for value in list(names.values()):
            if isinstance(value, cached):
                value.cache_clear()


@lru_cache(maxsize=4096)
def _name_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        owner = getattr(func, "__self__", None)
        read = getattr(owner, "__name__", None) or getattr(getattr(owner, "fget", None), "__name__", "")
        return read if name == "__get__" else f"set {read}"
    return name


@lru_cache(maxsize=4096)
def _target(func: Any, name: str) -> tuple[str, Any, bool]:
    """What a node calls: its kind, its target, and whether operands come in the other order."""
    bare = name.strip("_") if name.startswith("__") else ""
    if bare in _TURNED and bare not in _OPERATORS:
        return "call_function", getattr(operator, _spelled(_TURNED[bare])), True
    if bare in _OPERATORS:
        return "call_function", getattr(operator, _spelled(bare)), False
    if name in _TENSORS:
        return "call_function", getattr, False
    if is_tensor_method_or_property(func):
        return "call_method", name, False
    return "call_function", func, False


def _spelled(name: str) -> str:
    return f"{name}_" if name in ("and", "or") else name


# -- functions that are answered in their own way --------------------------------------------------------


def _shape(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    tensor = args[0] if args else kwargs.get("self", kwargs.get("input"))
    which = args[1] if len(args) > 1 else kwargs.get("dim")
    size = tuple.__iter__(func(tensor) if _name_of(func) == "shape" else torch.Size(tensor.shape))
    if id(tensor) not in run._places:  # the model holds it
        sizes = torch.Size(size)
        return sizes if which is None else sizes[which]
    run.handed = True
    dims = list(size)
    node = run.node_of_tensor(tensor)
    if which is not None:
        which = int(_without_memory(which)) % max(len(dims), 1)
        return run.number(dims[which], _size_of(run, node, which))
    return torch.Size([run.number(n, _size_of(run, node, dim)) for dim, n in enumerate(dims)])


def _size_of(run: CaptureRun, node: Node, dim: int) -> Origin:
    sizes = run._checked.setdefault(("size", node), {})
    if dim not in sizes:
        sizes[dim] = Origin("size", (node, dim))
    found: Origin = sizes[dim]
    return found


def _length(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    """``len(x)``, which must be a plain number."""
    (tensor,) = args
    if not tensor.ndim or id(tensor) not in run._places:
        return func(*args)
    run.refuse_values(tensor)
    run.handed = True
    n = int(tensor.shape[0])
    run.events.append((_size_of(run, run.node_of_tensor(tensor), 0), n))
    run.is_plain = False
    return n


def _iterate(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor,) = args
    if not tensor.ndim:
        raise TypeError("iteration over a 0-d tensor")
    run.refuse_values(tensor)
    run.handed = True
    run.is_plain = False
    return iter(run._record(torch.Tensor.unbind, "unbind", (tensor, 0), {}))


def _ask_values(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor, *_) = args
    node = run.node_of_tensor(tensor)
    if name_is_bool(func) and (known := _always(node)) is not None:
        return known
    real = run.constant(tensor)
    if real is None:
        raise TraceError(_ON_VALUES)
    name = _name_of(func)
    with _without_modes():
        value = getattr(real, name)()
    if name == "item":
        return run.number(value, Origin("item", (node,)))
    run.decided(Origin("tolist" if name == "tolist" else "item", (node,)), value if name == "tolist" else real.item())
    return value


def name_is_bool(func: Any) -> bool:
    """Whether a truth value is asked for."""
    return _name_of(func) == "__bool__"


def _always(node: Node) -> bool | None:
    """Whether a comparison with a number that is drawn from [0, 1) holds, or fails, whatever is drawn."""
    if node.target not in (operator.lt, operator.ge) or len(node.args) != 2:
        return None
    drawn, bound = node.args
    if not (isinstance(drawn, Node) and op_name(drawn) == "rand" and isinstance(bound, int | float)):
        return None
    below = False if bound <= 0 else True if bound >= 1 else None
    return below if node.target is operator.lt or below is None else not below


def _set_requires_grad(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> None:
    tensor, wanted = args
    node = run.create("call_method", "requires_grad_", (run.node_of_tensor(tensor), bool(wanted)))
    node.meta["val"] = tensor
    if wanted:
        run.mark_differentiable(tensor)


def _requires_grad(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    (tensor,) = args
    if not isinstance(tensor, FakeTensor):
        return func(*args)
    return run.differentiable(tensor) and torch.is_grad_enabled()


def _register_hook(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    tensor, hook = args
    run.hook(hook, tensor)
    return _NoHandle()


class _NoHandle:
    """What ``register_hook`` returns while a model is captured."""

    def remove(self) -> None:
        """Refuse, for the graph would keep the hook."""
        raise TraceError("a gradient hook is removed in forward, which a graph does not keep")


def _property_of_tensor(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    name = _name_of(func)
    last = next(reversed(run.graph.nodes), None)
    node = run.create("call_function", getattr, (run.node_of_tensor(args[0]), name))
    return run._computed(node, args, {}, lambda a, _: a[0].detach() if name == "data" else getattr(a[0], name), last)


def _set_data(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    """``x.data = y``: where it is of the same form, ``x`` is written."""
    target, source = args
    if (target.shape, target.dtype) != (source.shape, source.dtype):
        raise TraceError("the data of a tensor is replaced by data of another form")
    with torch.no_grad():
        run._record(torch.Tensor.copy_, "copy_", (target, source), {})


def _assertion(run: CaptureRun, func: Any, args: Any, kwargs: Any) -> Any:
    """What code asserts of plain truth values it has decided already."""
    return NotImplemented if isinstance(args[0], Tensor) else func(*args, **kwargs)


_SPECIAL: dict[str, Callable[[CaptureRun, Any, Any, Any], Any]] = {
    "shape": _shape,
    "size": _shape,
    "_assert": _assertion,
    "__len__": _length,
    "__iter__": _iterate,
    "requires_grad": _requires_grad,
    "register_hook": _register_hook,
    "set data": _set_data,
    "set requires_grad": _set_requires_grad,
    **dict.fromkeys(_VALUES, _ask_values),
    **dict.fromkeys(_TENSORS, _property_of_tensor),
}
