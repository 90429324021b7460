"""The cost of a model: parameters and multiply-adds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fx_oto.analysis.fakes import asks_values
from fx_oto.analysis.recording import fake_run
from fx_oto.analysis.tape import FUSED
from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError
from fx_oto.core.preserve import unwritten
from fx_oto.core.tables import MACS, Tabular, macs_text, table
from fx_oto.core.unused import parameters_of_graph

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost(Tabular):
    """Parameters, and multiply-adds (one multiply-add = one MAC) of one forward pass on the example inputs.

    ``str()`` is one line; a notebook, ``to_markdown()`` and ``to_json()`` have the same numbers. Texts and tables give
    MACs per sample, here and in all other results; attributes and JSON those of the whole batch.

    Attributes:
        params: elements of all parameters, each counted once; of a GraphModule, of those that it computes with.
        macs: multiply-adds of the whole batch, in convolutions, matrix products, attention and recurrences; half of
            the FLOPs that ``torch.utils.flop_counter`` counts.
        samples: in the batch: the length of the first dimension of the first input.

    Example:
        >>> from fx_oto import Cost
        >>> print(Cost(params=25_557_032, macs=8_178_368_512, samples=2))
        25,557,032 parameters, 4,089.18M MACs/sample
    """

    params: int
    macs: int
    samples: int = field(default=1, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.params:,} parameters, {macs_text(self.macs, self.samples)} {MACS}"

    def to_dict(self) -> dict[str, int]:
        """The numbers by name."""
        return asdict(self)

    def _tables(self, style: str) -> tuple[str]:
        headers = ("parameters", MACS)
        return (table([(f"{self.params:,}", macs_text(self.macs, self.samples))], headers, style, headers),)


def cost(model: nn.Module, example_inputs: Any) -> Cost:
    """Count parameters and MACs of convolutions, matrix products, attention and recurrences, in eval mode without data.

    Only a model whose code asks for values, as one with opaque parts may, is run on the inputs themselves.

    Args:
        model: any module.
        example_inputs: as for ``fx_oto.trace``; ``macs`` is of this batch.

    Raises:
        InputError: the model does not run on the example inputs.

    Example:
        >>> import torch, fx_oto
        >>> fx_oto.cost(torch.nn.Linear(4, 8), torch.randn(1, 4))
        Cost(params=40, macs=32)
    """
    inputs, counter = ExampleInputs.of(example_inputs), FlopCounterMode(display=False, custom_mapping=FUSED)
    try:
        fake_run(model, inputs, counter)
    except InputError as error:
        if not asks_values(error.__cause__):
            raise
        counter = FlopCounterMode(display=False, custom_mapping=FUSED)
        inputs = inputs.copied()
        with unwritten(model), counter:  # its code asks for values
            model(*inputs.args, **inputs.kwargs)
    return Cost(
        sum(p.numel() for p in parameters_of_graph(model).values()), counter.get_total_flops() // 2, inputs.samples
    )
