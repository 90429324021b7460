"""The modules that a graph calls, as JSON and back: their class, plain attributes, tensors and children.

No constructor runs when they are made again: an empty object of the class is given what the file says.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from fx_oto.capture.names import is_plain
from fx_oto.capture.rebuilt import Rebuilt
from fx_oto.capture.statements import StatementCall
from fx_oto.capture.whole import GradientHook, MethodCall
from fx_oto.core.errors import FileError
from fx_oto.core.handed import is_torchs_own, new_parametrized
from fx_oto.deploy.records import made_record, written_record
from fx_oto.deploy.tensors import Collected
from fx_oto.deploy.values import Reader, UnwritableError, a_dict, a_list, a_text, an_integer, written
from fx_oto.deploy.whitelist import BUILT, class_named, name_of_class
from fx_oto.nn.outputs import named_tuple

__all__ = ["made_modules", "written_modules"]

_OF_EVERY_MODULE = vars(nn.Module())
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
# Of nn.LSTM and its like: they are found again by their names.
_OF_RECURRENT = {"_flat_weights", "_flat_weight_refs"}
_PICKLE = "torch.save(small, file) can hold it"
_REFUSED: dict[type, str] = {
    MethodCall: "it calls a method of your code as a whole, which no file names",
    StatementCall: "it runs a statement of your code as a whole, which no file names",
    GradientHook: "it lets a function see the gradient, which no file names",
    GraphModule: "it is a graph of its own inside of the graph",
}


def written_modules(gm: GraphModule, tensors: Collected) -> list[dict[str, Any]]:
    """The modules of a GraphModule as JSON, each after its children, itself at the end.

    Args:
        gm: the GraphModule.
        tensors: gathers what they hold.

    Raises:
        FileError: one cannot be written; names it.
    """
    numbers: dict[nn.Module, int] = {}
    entries: list[dict[str, Any]] = []

    def visit(module: nn.Module, path: str) -> int:
        if module not in numbers:
            children = [
                [name, None if child is None else visit(child, f"{path}.{name}".lstrip("."))]
                for name, child in module._modules.items()
            ]
            entries.append(_written(module, path, tensors, is_root=module is gm) | {"children": children})
            numbers[module] = len(numbers)
        return numbers[module]

    visit(gm, "")
    return entries


def _written(module: nn.Module, path: str, tensors: Collected, is_root: bool) -> dict[str, Any]:
    kind = type(module)
    names = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
    kind = kind.__bases__[0] if names else kind
    found: dict[str, Any] = {"path": path, "training": module.training, "parametrized": names}
    if is_root:
        found |= {"class": "", "attributes": []}
    else:
        found |= _written_class(module, kind, path)
    held = [(f"{path}.{name}".lstrip("."), name) for name in (*module._parameters, *module._buffers)]
    numbers = {name: tensors.number(full, (module._parameters | module._buffers)[name]) for full, name in held}
    hidden = module._non_persistent_buffers_set
    found["parameters"] = [[name, numbers[name]] for name in module._parameters]
    found["buffers"] = [[name, numbers[name], name not in hidden] for name in module._buffers]
    return found


def _written_class(module: nn.Module, kind: type[nn.Module], path: str) -> dict[str, Any]:
    for refused, why in _REFUSED.items():
        if issubclass(kind, refused):
            raise FileError(f"the module {path!r} cannot be written: {why}; {_PICKLE}")
    if isinstance(module, Rebuilt):
        return {"class": "built", "attributes": [["make", _written_built(module, path)]]}
    name = name_of_class(kind)
    if name is not None:
        _check_hooks(module, path)
        return {"class": name, "attributes": list(_attributes(module, path, strict=True))}
    if kind.__module__.startswith("torch.jit"):
        raise FileError(f"the module {path!r} cannot be written: it is TorchScript; {_PICKLE}")
    foreign = f"{kind.__module__}.{kind.__qualname__}"
    return {"foreign": foreign, "attributes": list(_attributes(module, path, strict=False))}


def _written_built(module: Rebuilt, path: str) -> str | dict[str, Any]:
    make, *fixed = module._recipe
    name = next((name for name, built in BUILT.items() if built is make), None)
    if name is not None and not fixed:
        return name
    record = written_record(make, tuple(fixed)) or {}
    if "fields" not in record or (fixed and make is not named_tuple):
        what = next((one for one in (*fixed, make) if isinstance(one, type | FunctionType | BuiltinFunctionType)), make)
        made = "makes an object of the class" if isinstance(what, type) or what is make else "holds the function"
        raise FileError(
            f"the module {path!r} cannot be written: it {made} {what.__name__}, which no file "
            f"names. Let the model return a tensor, tuple, dict or dataclass; {_PICKLE}"
        )
    return record


def _check_hooks(module: nn.Module, path: str) -> None:
    for name, standard in _OF_EVERY_MODULE.items():
        found = vars(module).get(name)
        if name in _REGISTRIES or name == "training" or not found or found == standard:
            continue
        hooks = found.values() if isinstance(found, dict) else ()
        if not all(map(is_torchs_own, hooks)) or not hooks:
            raise FileError(
                f"the module {path!r} ({type(module).__name__}) cannot be written: it has hooks ({name.strip('_')}). "
                "Remove them, and put parametrizations in the place of torch.nn.utils.weight_norm and spectral_norm, "
                f"those of torch.nn.utils.parametrizations; {_PICKLE}"
            )


def _attributes(module: nn.Module, path: str, strict: bool) -> Any:
    left_out = _OF_RECURRENT if isinstance(module, nn.RNNBase) else set()
    for name, value in vars(module).items():
        if name in _OF_EVERY_MODULE or name in left_out:
            continue
        try:
            _check_attribute(type(module), name)
            yield [name, written(value)]
        except FileError as error:
            if strict:
                raise FileError(
                    f"the attribute {name!r} of the module {path!r} ({type(module).__name__}) cannot be written: "
                    f"{error}. Delete it; {_PICKLE}"
                ) from error


def _check_attribute(kind: type, name: str) -> None:
    fixed = callable(getattr(kind, name, None)) or name in _OF_EVERY_MODULE
    if not is_plain(name) or name.startswith("__") or fixed:
        raise UnwritableError(f"{name!r} is no name of an attribute")


@dataclass(frozen=True)
class _Maker:
    """Makes modules of what a file says of them."""

    tensors: Sequence[Tensor]
    reader: Reader
    model: nn.Module | None

    def made(self, entry: dict[str, Any], before: Sequence[nn.Module]) -> nn.Module:
        if entry.get("class") == "built":
            return self._built(entry["attributes"][0][1]).train(self._flag(entry.get("training")))
        users = None if "foreign" not in entry else self._users(entry)
        kind = _without_parametrization(users) if users else self._kind(a_text(entry.get("class")))
        names = tuple(map(a_text, a_list(entry.get("parametrized"))))
        module = new_parametrized(kind, names) if names else _empty(kind)
        if users is not None:
            module.__dict__.update(_copied(users))
        for name, value in (a_list(pair, 2) for pair in a_list(entry.get("attributes"))):
            _check_attribute(kind, a_text(name))
            module.__dict__[name] = self.reader.read(value)
        module.training = self._flag(entry.get("training"))
        self._fill(module, entry, before)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()
        return module

    def _built(self, made: Any) -> Rebuilt:
        if isinstance(made, dict):
            return Rebuilt(*made_record(made, self.reader, self.model))
        return Rebuilt(BUILT[a_text(made)], ())

    def _kind(self, name: str) -> type[nn.Module]:
        kind = class_named(name) if name else nn.Module
        if kind is None:
            raise FileError(f"files may not name the class {name!r:.60}: it is none of torch's or fx_oto's modules")
        return kind

    def _users(self, entry: dict[str, Any]) -> nn.Module:
        name, path = a_text(entry["foreign"]), a_text(entry.get("path"))
        if self.model is None:
            raise FileError(
                f"the module {path!r} is of the class {name}, which is neither torch's nor fx_oto's: give an instance "
                "of the model's own class, fx_oto.load(path, model), from which it is taken"
            )
        try:
            found = self.model.get_submodule(path)
        except AttributeError as error:
            raise FileError(f"the model has no module {path!r}, which was of the class {name}") from error
        kind = _without_parametrization(found)
        if f"{kind.__module__}.{kind.__qualname__}" != name:
            raise FileError(f"the module {path!r} was of the class {name}; the model's is {kind.__qualname__}")
        return found

    def _fill(self, module: nn.Module, entry: dict[str, Any], before: Sequence[nn.Module]) -> None:
        """Give a module its tensors and children."""
        for name, number in (a_list(pair, 2) for pair in a_list(entry.get("parameters"))):
            tensor = self._tensor(number)
            if tensor is not None and not isinstance(tensor, nn.Parameter):
                raise FileError(f"{name!r:.60} is no parameter")
            module._parameters[_free(module, name)] = tensor
        for name, number, is_persistent in (a_list(row, 3) for row in a_list(entry.get("buffers"))):
            module._buffers[_free(module, name)] = self._tensor(number)
            if not self._flag(is_persistent):
                module._non_persistent_buffers_set.add(name)
        for name, number in (a_list(pair, 2) for pair in a_list(entry.get("children"))):
            if number is not None and an_integer(number) >= len(before):
                raise FileError(f"{name!r:.60} is a module that is not there")
            module._modules[_free(module, name)] = None if number is None else before[number]

    def _tensor(self, number: Any) -> Any:
        if number is not None and an_integer(number) >= len(self.tensors):
            raise FileError("a module holds a tensor that is not there")
        return None if number is None else self.tensors[number]

    def _flag(self, value: Any) -> bool:
        if type(value) is not bool:
            raise FileError(f"expected true or false, found {value!r:.60}")
        return value


def _free(module: nn.Module, given: Any) -> str:
    """A name under which a module can hold something; classes of the user's may have a default of that name."""
    taken, name = (module._parameters, module._buffers, module._modules, vars(module)), a_text(given)
    fixed = hasattr(type(module), name) and name_of_class(_without_parametrization(module)) is not None
    if not name or "." in name or fixed or any(name in one for one in taken):
        raise FileError(f"{type(module).__name__} cannot hold anything as {name!r:.60}")
    return name


def _empty(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _without_parametrization(module: nn.Module) -> type[nn.Module]:
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _copied(users: nn.Module) -> dict[str, Any]:
    """What a module of the user's holds besides tensors and children."""
    state = {key: value for key, value in vars(users).items() if key not in _REGISTRIES}
    return {key: copy.copy(value) if isinstance(value, dict | list | set) else value for key, value in state.items()}


def made_modules(entries: Any, tensors: Sequence[Tensor], reader: Reader, model: nn.Module | None) -> nn.Module:
    """The module that holds all others.

    Args:
        entries: what a file says of each.
        tensors: what they hold, by number.
        reader: makes values.
        model: of the user's own class, from which modules of other classes than torch's and fx_oto's are taken.

    Raises:
        FileError: one cannot be made; names it.
    """
    maker, made = _Maker(tensors, reader, model), list[nn.Module]()
    for entry in a_list(entries):
        made.append(maker.made(a_dict(entry), made))
    if not made:
        raise FileError("there are no modules")
    return made[-1]
