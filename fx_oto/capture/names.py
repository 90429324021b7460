"""Names in graphs: of tensors that code makes, and of modules that are no identifiers, as in ``nn.ModuleDict``."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any
from unicodedata import normalize

from torch.fx.graph import CodeGen, PythonCode

__all__ = ["CONSTANT", "AnyNames", "is_plain"]

CONSTANT = "_tensor_constant"  # how names begin of tensors that are not the model's


class AnyNames(CodeGen):
    """torch.fx's code, but ``getattr(self.parts, "in")`` in the place of ``self.parts.in``."""

    def _gen_python_code(self, nodes: Any, *args: Any, **kwargs: Any) -> PythonCode:
        listed = list(nodes)
        odd = [node for node in listed if node.op in ("call_module", "get_attr") and _is_odd(str(node.target))]
        stand_ins = {target: f"__odd_name_{i}__" for i, target in enumerate(dict.fromkeys(n.target for n in odd))}
        before = [(node, node.target) for node in odd]
        try:
            for node, target in before:
                node.target = stand_ins[target]
            code = super()._gen_python_code(nodes, *args, **kwargs)
        finally:
            for node, target in before:
                node.target = target
        for target, name in stand_ins.items():
            code.src = code.src.replace(f"self.{name}", _spelled(str(target)))
        return code


def _is_odd(path: str) -> bool:
    return any(not is_plain(name) for name in path.split(".") if not (name.isascii() and name.isdigit()))


def is_plain(name: str) -> bool:
    """Return whether code can say a name after a dot: Python reads identifiers in their NFKC form."""
    return name.isidentifier() and not iskeyword(name) and normalize("NFKC", name) == name


def _spelled(path: str) -> str:
    found = "self"
    for name in path.split("."):
        found = f"getattr({found}, {name!r})"
    return found
