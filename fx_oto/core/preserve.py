"""Context managers that restore a model's modes, attributes, tensors and random state."""

from __future__ import annotations

import gc
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import BaseTorchFunctionMode

from fx_oto.core.contents import Content, Kept, Writes
from fx_oto.core.errors import InputError
from fx_oto.core.layouts import is_sparse
from fx_oto.core.overridden import left_in_evaluation

__all__ = [
    "Dice",
    "evaluating",
    "forget_parameters",
    "kept",
    "on_cpu",
    "tensors_put_back",
    "unchanged",
    "uncollected",
    "unwritten",
    "without_autocast",
    "without_backward_hooks",
    "without_fast_paths",
    "without_zeros",
]


@contextmanager
def evaluating(
    module: nn.Module, training: bool = False, children: Iterable[nn.Module] | None = None
) -> Iterator[None]:
    """Put a module and its children in one mode for a while, then restore each child's own.

    In training those stay in evaluation that the module's own ``train`` leaves in it.

    Args:
        module: the module.
        training: the mode.
        children: the module and all inside of it, if they are known already: to walk through takes its time.
    """
    before = [(child, child.training) for child in (module.modules() if children is None else children)]
    left = set(left_in_evaluation(module)) if training else set()
    try:
        for child, _ in before:
            _set_mode(child, training)
        for name, child in module.named_modules() if left else ():
            _set_mode(child, training and name not in left)
        yield
    finally:
        for child, mode in before:
            _set_mode(child, mode)


def _set_mode(module: nn.Module, training: bool) -> None:
    if "training" in module.__dict__:  # as assignment would, which takes its time
        module.__dict__["training"] = training
    else:
        module.training = training


@contextmanager
def uncollected() -> Iterator[None]:
    """Pause garbage collection, which would take as long as the work itself: it looks at all objects of the process."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def on_cpu() -> AbstractContextManager[Any]:
    """Make the CPU the default device, where the analysis works, whatever the user has set."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled code, and code marked for ``torch.compile``, eagerly, as it is written."""
    compiled = "torch._dynamo" in sys.modules  # else nothing is compiled, and to load it takes long
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def without_autocast() -> Iterator[None]:
    """Let ops compute in the types of what they are given, whatever the user's code is inside of."""
    with ExitStack() as stack:
        for device in ("cpu", torch.accelerator.current_accelerator() or "cpu"):
            kind = str(torch.device(device).type)
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def unchanged(
    model: nn.Module, but: tuple[str, ...] = (), found: list[Any] | None = None
) -> Iterator[Callable[[], None]]:
    """Undo afterwards what code sets on modules and in the containers that they hold.

    Tensors are not copied: what is written into them stays.

    Args:
        model: the root of the modules.
        but: prefixes of attributes of the root itself that keep their new values.
        found: what can be changed, as ``_changeable`` lists it, if that is known already.

    Yields:
        A function that undoes the changes at once; it can be called any number of times.
    """
    found = _changeable(model) if found is None else found
    before = [(held, tuple(held.items() if isinstance(held, dict) else held)) for held in found]

    def put_back() -> None:
        for held, content in before:
            if not held and not content:  # as most registries of modules
                continue
            kept: dict[str, Any] = {}
            if but and (held is vars(model) or held is model._modules):
                kept = {key: value for key, value in held.items() if key.startswith(but)}
            held.clear()
            (held.extend if isinstance(held, list | deque) else held.update)(content)
            if kept:
                held.update({key: value for key, value in kept.items() if key not in held})

    try:
        yield put_back
    finally:
        put_back()


def forget_parameters(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Make modules drop what they cached from their parameters in evaluation, as they do when training begins.

    Args:
        model: the model.
        modules: it and all inside of it, by name.

    Raises:
        InputError: ``train`` and ``eval`` of a module write into its parameters, which are as they were.
    """
    changing = [(path, one) for path, one in modules.items() if type(one).train is not nn.Module.train]
    trained = [(parameter, parameter.requires_grad) for parameter in (model.parameters() if changing else ())]
    with evaluating(model, True) if changing else nullcontext():
        for path, module in changing:
            watch = Writes(module.parameters())
            try:
                with watch:
                    module.train(False)
                    module.train(True)
                if watch.found():
                    raise InputError(
                        f"train() and eval() of the module {path!r} write into its parameters, as where weights are "
                        "merged, but a graph shares these and does not follow: merge them for good before prepare, or "
                        "keep them apart in both modes, as merge_weights=False does in loralib"
                    )
            finally:
                watch.put_back()
                for parameter, requires_grad in trained:
                    parameter.requires_grad = requires_grad


@contextmanager
def without_backward_hooks(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take backward hooks off modules for a while: they cannot be called on tensors without gradients."""
    before = [(module.__dict__, name) for module in modules for name in _BACKWARD if module.__dict__.get(name)]
    hooks = [held[name] for held, name in before]
    try:
        for held, name in before:
            held[name] = OrderedDict()
        yield
    finally:
        for (held, name), own in zip(before, hooks, strict=True):
            held[name] = own


@contextmanager
def unwritten(
    model: nn.Module, training: bool = False, written: Collection[Tensor] | None = None
) -> Iterator[Callable[[], list[Tensor]]]:
    """Run a model in one mode, without gradients, and leave it as it was.

    What it writes into tensors, and sets on modules, is undone. Of buffers copies are made; of parameters, which are
    large, when they are about to be written.

    Args:
        model: the model.
        training: the mode.
        written: the parameters that it writes into, if that is known: then calls take as long as ever.

    Yields:
        A function that tells the parameters that were written by now.
    """
    found = _changeable(model)
    parameters = list(model.parameters())
    held = {id(one): one for one in (*model.buffers(), *(written or ()), *_plain_tensors(found))}.values()
    before = [Content(tensor) for tensor in held]
    counted = tuple(tensor for tensor in (*held, *parameters) if not tensor.is_inference())
    watch = Writes(parameters if written is None else ())
    gradients = [(one, one.grad) for one in parameters if one.is_leaf]  # to which code may add
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with (
            unchanged(model, found=found),
            evaluating(model, training),
            torch.no_grad(),
            _unsafe_preserve_version_counter(counted),
            nullcontext() if written is not None else watch,
        ):
            yield watch.found
    finally:
        watch.put_back()
        for content in before:
            content.put_back()
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def tensors_put_back(model: nn.Module) -> Iterator[None]:
    """Undo what is written into buffers, and into tensors that modules hold, and which buffers; all else stays."""
    held = {id(one): one for one in (*model.buffers(), *_plain_tensors(_changeable(model)))}.values()
    before = [Content(tensor) for tensor in held]
    registries: list[Any] = [module._buffers for module in model.modules()]
    buffers = [(one, dict(one)) for one in registries if isinstance(one, dict)]  # of a scripted module it is none
    try:
        yield
    finally:
        for registry, content_of in buffers:
            registry.clear()
            registry.update(content_of)
        for content in before:
            content.put_back()


@contextmanager
def without_zeros(model: nn.Module) -> Iterator[None]:
    """Give parameters that are zero everywhere other numbers for a while: nothing is seen of what they multiply."""
    plain = (one for one in model.parameters() if type(one) is nn.Parameter and not (one.is_meta or is_sparse(one)))
    before = [(one, one.data) for one in plain if one.is_floating_point() and not one.any()]
    try:
        for one, data in before:
            generator = torch.Generator(data.device).manual_seed(0)
            one.data = torch.rand(data.shape, generator=generator, dtype=data.dtype, device=data.device) - 0.5
        yield
    finally:
        for one, data in before:
            one.data = data


def without_fast_paths() -> AbstractContextManager[object]:
    """Let attention be computed as it is spelled out, in this thread.

    In evaluation without gradients, kernels of torch that take whole layers of ``nn.TransformerEncoder`` leave zeros
    where an example is padded. Graphs compute these positions too, as models do with gradients and once compiled.
    """
    return BaseTorchFunctionMode()  # torch takes no fast path where a mode may watch


_BACKWARD = ("_backward_hooks", "_backward_pre_hooks")

# What every module has, and what of it is a registry.
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_REGISTRIES = tuple(name for name, held in vars(nn.Module()).items() if isinstance(held, dict))
# What holds nothing, and is met often.
_PLAIN = (int, float, str, bool, type(None), Tensor)


def _plain_tensors(found: list[Any]) -> list[Tensor]:
    """Tensors in the attributes of modules, and in their containers, that are not parameters."""
    values = (value for held in found for value in (held.values() if isinstance(held, dict) else held))
    return [value for value in values if isinstance(value, Tensor) and not isinstance(value, nn.Parameter)]


def _changeable(model: nn.Module) -> list[Any]:
    """The attributes of modules, and all containers and objects of Python classes that can be reached from them."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [model]
    while waiting:
        value = waiting.pop()
        if isinstance(value, nn.Module):
            held = vars(value)
            if id(held) not in found:
                found[id(held)] = held
                found.update((id(one), one) for name in _REGISTRIES if isinstance(one := held.get(name), dict))
                waiting.extend(one for name, one in held.items() if name not in _OF_EVERY_MODULE)
                waiting.extend(value.children())
            continue
        if isinstance(value, _PLAIN):
            continue
        if _is_plain_object(value):
            value = vars(value)
        if id(value) in found or not isinstance(value, dict | list | set | deque | tuple):
            continue
        found[id(value)] = value
        waiting.extend(value.values() if isinstance(value, dict) else value)
    return [held for held in found.values() if not isinstance(held, tuple)]


def _is_plain_object(value: Any) -> bool:
    ours = type(value).__module__.split(".")[0] in ("torch", "fx_oto")
    opaque = ours or isinstance(value, Tensor | type | ModuleType | FunctionType | BaseException)
    return not opaque and type(getattr(value, "__dict__", None)) is dict


@contextmanager
def kept(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore everything of a module afterwards, bit for bit, whatever was done to it, also after an error.

    That is: parameters, buffers and gradients, their devices and types, ``requires_grad``, attributes of modules such
    as ``training``, and the random number generators of torch, Python and NumPy. This holds one copy of the tensors.

    Yields:
        A function that restores the tensors and the random numbers at once; it can be called any number of times.
        Attributes of modules are restored at the end only.
    """
    tensors = [Kept(tensor) for tensor in (*module.parameters(), *module.buffers())]
    dice = Dice(of=module)

    @torch.no_grad()
    def put_back() -> None:
        for tensor in tensors:
            tensor.put_back()
        dice.put_back()

    with unchanged(module):
        try:
            yield put_back
        finally:
            put_back()


class Dice:
    """The states of the generators of torch, of Python and of NumPy, as they are now.

    Args:
        torchs: include torch's generator, from which other threads may draw as well.
        of: include the generators of the devices that this module is on.
    """

    def __init__(self, torchs: bool = True, of: nn.Module | None = None) -> None:
        self._torchs = torchs
        held = () if of is None else (*of.parameters(), *of.buffers())
        devices = {tensor.device for tensor in held if tensor.device.type not in ("cpu", "meta")}
        self._devices = [device for device in devices if hasattr(torch.get_device_module(device), "get_rng_state")]
        self._states, self._on_devices = self._now(), self._now_on_devices()

    def _now_on_devices(self) -> dict[torch.device, Tensor]:
        return {device: torch.get_device_module(device).get_rng_state(*_which(device)) for device in self._devices}

    def _now(self) -> tuple[Tensor, Any, Any]:
        numpy: Any = sys.modules.get("numpy")
        drawn = numpy.random.get_state() if numpy else ()
        return torch.random.get_rng_state() if self._torchs else torch.empty(0), random.getstate(), drawn

    def rolled(self) -> bool:
        """Return whether numbers have been drawn since then."""
        mine, now = self._states, self._now()
        if (self._torchs and not torch.equal(mine[0], now[0])) or mine[1] != now[1]:
            return True
        if any(not torch.equal(state, self._on_devices[device]) for device, state in self._now_on_devices().items()):
            return True
        return any(_differ(*pair) for pair in zip(mine[2], now[2], strict=True))

    def put_back(self) -> None:
        """Restore the states, as if no number had been drawn."""
        state, python, drawn = self._states
        if self._torchs:
            torch.random.set_rng_state(state)
        for device, there in self._on_devices.items():
            torch.get_device_module(device).set_rng_state(there, *_which(device))
        random.setstate(python)
        if drawn:
            sys.modules["numpy"].random.set_state(drawn)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """How a device is given to what reads its generator: there is one of a Mac, and it is not named."""
    return () if device.type == "mps" else (device,)


def _differ(one: Any, other: Any) -> bool:
    same = one == other
    return not (same if isinstance(same, bool) else same.all())
