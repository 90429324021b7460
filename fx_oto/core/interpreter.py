"""Interpreting a graph on the arguments that its GraphModule would take."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Interpreter

__all__ = ["PlainInterpreter", "run_graph"]


class PlainInterpreter(Interpreter):
    """Takes one value for each placeholder, starred ones included; started by ``run_graph``."""

    def run(self, *args: Any, initial_env: Any = None, enable_io_processing: bool = False) -> Any:
        """The base class's, without what it logs of errors, for which it looks at values that are no longer true."""
        self.env, self.args_iter = {}, iter(args)
        for node in self.graph.nodes:
            self.env[node] = self.run_node(node)
            if node.op == "output":
                return self.env[node]
            for read in self.user_to_last_uses.get(node, ()) if self.garbage_collect_values else ():
                del self.env[read]
        return None

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The next value."""
        return next(self.args_iter)


def run_graph(interpreter: PlainInterpreter, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Interpret a graph on the arguments that its GraphModule would take."""
    graph = interpreter.graph
    if isinstance(graph._codegen, torch.fx.graph._PyTreeCodeGen):
        flat = graph._codegen.process_inputs(*args, *_in_order(graph, kwargs))
    else:
        flat = _positional(graph, args, kwargs)
    return interpreter.run(*flat, enable_io_processing=False)


def _in_order(graph: Graph, kwargs: dict[str, Any]) -> list[Any]:
    """Keyword arguments in the order of an exported graph's signature; flattened, they follow the positional ones."""
    spec = graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    named = [child for child in spec.children() if child.type is dict][-1:] if kwargs else []
    names = list(named[0].context) if named else list(kwargs)
    if set(names) != set(kwargs):
        raise TypeError(f"the graph takes the keyword arguments {names}, found {list(kwargs)}")
    return [kwargs[name] for name in names]


def _positional(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """A value for each placeholder, in order, as Python binds arguments; a missing one takes its default."""
    placeholders = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
    plain = [name for name in placeholders if not name.startswith("*")]
    starred = {name.count("*"): name for name in placeholders if name.startswith("*")}
    values: dict[str, Any] = dict(zip(plain, args, strict=False))
    values.update((name, kwargs[name]) for name in plain if name in kwargs)
    rest = {name: value for name, value in kwargs.items() if name not in plain}
    if (rest and 2 not in starred) or (len(args) > len(plain) and 1 not in starred):
        raise TypeError(f"the graph takes {plain}, found {len(args)} positional arguments and {sorted(kwargs)}")
    values.update({name: args[len(plain) :] if stars == 1 else rest for stars, name in starred.items()})
    for name in plain:
        if name not in values and not placeholders[name].args:
            raise TypeError(f"no value for the input {name!r}")
        values.setdefault(name, *placeholders[name].args)
    return [values[name] for name in placeholders]
