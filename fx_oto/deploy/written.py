"""What writing a compact graph back into the user's own module did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fx_oto.core.errors import MissingResultError, SlicingError
from fx_oto.core.tables import Tabular, counted, table

__all__ = ["ReplacedLayer", "SetAttribute", "WriteBack", "WrittenGraph"]

_KEY = "_fx_oto_write_back"


@dataclass(frozen=True)
class SetAttribute:
    """A number that a module holds, and that is another one now.

    Attributes:
        module: the module's path.
        name: of the attribute.
        before: what it was.
        after: what it is.
    """

    module: str
    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ReplacedLayer:
    """A layer of torch's that is of another class now.

    Attributes:
        module: its path.
        before: the class that it was of.
        after: the class that it is of.
    """

    module: str
    before: str
    after: str


@dataclass(frozen=True)
class WrittenGraph:
    """A module that computes what the compact graph says, in the place of its own ``forward``.

    Attributes:
        module: the module's path; empty for the whole model.
        kind: its class.
        node: the first node whose code does not fit any more.
        line: of the user's code.
        reason: why, in words.
        is_norm: whether that is only because its statistics count channels that are gone.
    """

    module: str
    kind: str
    node: str
    line: str
    reason: str
    is_norm: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class WriteBack(Tabular):
    """What was changed in a copy of the user's model besides its tensors and torch's layers.

    Attributes:
        attributes: numbers that modules hold.
        layers: norms over cut channels, and attention over fewer heads, which no class of torch's computes.
        norms: paths of norms whose weight and epsilon carry the share of the channels that is left.
        graphs: modules that compute what the compact graph says, as their own code does not fit.
        error: the largest difference from the compact graph, relative to the largest value.
        modes: in which it was compared.
        config: settings of the model's ``config`` that were set, by name. Its class builds this model from them.
        config_refusal: why the ``config`` says the widths of the full model still; empty if it does not, or if the
            model has none.
        call: what builds this model, where ``write_back`` was given a ``build``.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
        >>> _ = fx_oto.partition(gm).zero_(0.5)
        >>> print(fx_oto.WriteBack.of(fx_oto.compress(gm, into=net)))
        0 attributes were set, 0 norms scaled, and 0 modules are graphs
    """

    attributes: tuple[SetAttribute, ...]
    layers: tuple[ReplacedLayer, ...]
    norms: tuple[str, ...]
    graphs: tuple[WrittenGraph, ...]
    error: float
    modes: tuple[str, ...]
    config: tuple[SetAttribute, ...] = ()
    config_refusal: str = ""
    call: str = ""

    @classmethod
    def of(cls, model: nn.Module) -> WriteBack:
        """What was done to a model that ``write_back`` returned.

        Args:
            model: that model.

        Raises:
            MissingResultError: it is no such model.
        """
        found = vars(model).get(_KEY)
        if not isinstance(found, WriteBack):
            raise MissingResultError(
                "this model was not written back: fx_oto.write_back(small, model) and fx_oto.compress(gm, into=model) "
                "return one that was"
            )
        return found

    def check_config(self) -> None:
        """Refuse a model whose ``config`` cannot say its widths, so that ``from_pretrained`` could not build it.

        Raises:
            SlicingError: says what the ``config`` cannot say, and what to ask for.

        Example:
            >>> import torch, fx_oto
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> gm = fx_oto.prepare(net, torch.randn(2, 4))
            >>> _ = fx_oto.partition(gm).zero_(0.5)
            >>> fx_oto.WriteBack.of(fx_oto.compress(gm, into=net)).check_config()  # it has no config
        """
        if self.config_refusal:
            raise SlicingError(
                "the model's config still says the full widths, for it cannot say the new ones: "
                f"{self.config_refusal}. Before a training, fx_oto.config_limits(gm, model) tells what it can say: "
                "give its uniform and unprunable to DHSPG. What is pruned already, fx_oto.save keeps"
            )

    def attach(self, model: nn.Module) -> nn.Module:
        """Keep this with the ``model``."""
        model.__dict__[_KEY] = self
        return model

    @property
    def _summary(self) -> str:
        attributes = counted(len(self.attributes), "attribute was", "attributes were")
        norms = counted(len(self.norms), "norm", "norms")
        graphs = counted(len(self.graphs), "module is a graph", "modules are graphs")
        return f"{attributes} set, {norms} scaled, and {graphs}"

    def to_dict(self) -> dict[str, Any]:
        """``attributes``, ``layers`` and ``graphs``, with what each holds; and all else by its name."""
        return {
            "attributes": [vars(one) for one in self.attributes],
            "layers": [vars(one) for one in self.layers],
            "norms": list(self.norms),
            "graphs": [vars(one) for one in self.graphs],
            "error": self.error,
            "modes": list(self.modes),
            "config": [{"name": one.name, "before": one.before, "after": one.after} for one in self.config],
            "config_refusal": self.config_refusal,
            "call": self.call,
        }

    def _tables(self, style: str) -> tuple[str, ...]:
        tables = []
        if self.attributes:
            held = [(one.module, one.name, one.before, one.after) for one in self.attributes]
            tables.append(table(held, ("module", "attribute", "before", "after"), style, ("before", "after")))
        if self.config:
            rows = [(one.name, one.before, one.after) for one in self.config]
            tables.append(table(rows, ("config", "before", "after"), style, ("before", "after")))
        if self.call:
            tables.append(table([(self.call,)], ("is built by",), style))
        if self.config_refusal:
            tables.append(table([(self.config_refusal,)], ("the config says the full widths still, because",), style))
        if self.layers:
            layers = [(one.module, one.before, one.after) for one in self.layers]
            tables.append(table(layers, ("layer", "class", "is now"), style))
        if self.norms:
            tables.append(table([(path,) for path in self.norms], ("norms with a scaled weight",), style))
        if self.graphs:
            graphs = [(one.module or "the model", one.kind, one.line, one.reason) for one in self.graphs]
            tables.append(table(graphs, ("module", "class", "line", "as a graph, because"), style))
        return tuple(tables)
