"""The latency of models: warmed up, taking turns, with the spread beside the median."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fx_oto.core.context import ExampleInputs
from fx_oto.core.errors import InputError, SettingsError
from fx_oto.core.fx_utils import check_has_numbers, tensor_leaves
from fx_oto.core.preserve import unwritten
from fx_oto.core.progress import progress
from fx_oto.core.tables import Tabular, table

__all__ = ["LatencyComparison", "ModelLatency", "in_turns", "latency"]

_HEADERS = ("model", "median", "middle half", "to the first")


@dataclass(frozen=True)
class ModelLatency:
    """The measured latency of one model.

    Attributes:
        name: the model's name.
        seconds: of each round, in order, without those of the warm-up.
        ratio: its median over that of the first model.

    Example:
        >>> from fx_oto import ModelLatency
        >>> ModelLatency("full", (0.020, 0.022, 0.021), 1.0).quartiles
        (0.0205, 0.0215)
    """

    name: str
    seconds: tuple[float, ...]
    ratio: float

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Seconds, between which the middle half of the rounds lies; the only round's, if there was one."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class LatencyComparison(Tabular):
    """Latencies of models on the same inputs; ``str()`` prints a table, a notebook shows it as HTML.

    Attributes:
        models: one for each model, in the order given.

    Example:
        >>> from fx_oto import LatencyComparison, ModelLatency
        >>> full = ModelLatency("full", (0.020, 0.022, 0.021), 1.0)
        >>> print(LatencyComparison((full, ModelLatency("compact", (0.007, 0.006, 0.008), 0.007 / 0.021))))
        model    median    middle half     to the first
        -------  --------  --------------  --------------
        full     21 ms     20.5 – 21.5 ms  100.0%
        compact  7 ms      6.5 – 7.5 ms    33.3%
    """

    models: tuple[ModelLatency, ...]

    def __iter__(self) -> Iterator[ModelLatency]:
        return iter(self.models)

    def __getitem__(self, name: str) -> ModelLatency:
        """The model of this name."""
        found = {model.name: model for model in self.models}
        if name not in found:
            raise SettingsError(f"no model is called {name!r}; this comparison has {', '.join(map(repr, found))}")
        return found[name]

    def to_dict(self) -> dict[str, Any]:
        """``models``: of each name, median, quartiles and seconds of every round, all in seconds, and ratio."""
        return {
            "models": [
                {
                    "name": model.name,
                    "median": model.median,
                    "quartiles": model.quartiles,
                    "ratio": model.ratio,
                    "seconds": model.seconds,
                }
                for model in self.models
            ]
        }

    def _tables(self, style: str) -> tuple[str]:
        rows = [
            (
                model.name,
                f"{1e3 * model.median:.3g} ms",
                " – ".join(f"{1e3 * quartile:.3g}" for quartile in model.quartiles) + " ms",
                f"{model.ratio:.1%}",
            )
            for model in self.models
        ]
        return (table(rows, _HEADERS, style, _HEADERS[1:] if style == "html" else ()),)


def latency(
    models: Mapping[str, nn.Module] | Sequence[nn.Module] | nn.Module,
    example_inputs: Any,
    *,
    rounds: int = 20,
    warmup: int = 3,
    progress: bool | None = None,
) -> LatencyComparison:
    """Measure a forward pass of each model, in eval mode, without gradients, each on its own device.

    The models take turns, so that what else the machine does meets them alike; each is waited for. Warm-up rounds
    are not counted. Compare on the machine, with the number of threads and at the batch size that will be used.

    Args:
        models: modules by name; or some, or one, that are called by their position and class.
        example_inputs: as for ``fx_oto.trace``; moved to the device of each model beforehand.
        rounds: how often each model is measured.
        warmup: how often each is run before.
        progress: whether to show a bar; None: where stderr is a terminal, and in notebooks.

    Returns:
        Medians, quartiles, and ratios to the first model. The models and the inputs are as they were.

    Raises:
        InputError: the example inputs, or the models, are of no kind that is known, or on the meta device.
        SettingsError: ``rounds`` is below 1 or ``warmup`` below 0.

    Example:
        >>> import torch, fx_oto
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
        >>> gm = fx_oto.prepare(net, torch.randn(16, 64))
        >>> _ = fx_oto.partition(gm).zero_(0.9)
        >>> models = {"full": net, "compact": fx_oto.compress(gm)}
        >>> found = fx_oto.latency(models, torch.randn(16, 64), rounds=5)
        >>> [(model.name, len(model.seconds)) for model in found]
        [('full', 5), ('compact', 5)]
    """
    named, inputs = _named(models), ExampleInputs.of(example_inputs)
    if rounds < 1 or warmup < 0:
        raise SettingsError(f"rounds must be at least 1 and warmup at least 0; found {rounds} and {warmup}")
    if any(tensor.is_meta for tensor in tensor_leaves((inputs.args, inputs.kwargs))):
        raise InputError(
            "latency needs inputs with numbers, but these are on the meta device: make them on the device of the model"
        )
    with ExitStack() as untouched:
        for name, model in named.items():
            check_has_numbers(model, f"latency, of {name!r},")
            with unwritten(model) as written:  # a first run to warm up: to look for that takes time
                _run(model, inputs)()
                found = written()
            untouched.enter_context(unwritten(model, written=found))
        runs = [_run(model, inputs) for model in named.values()]
        seconds = in_turns(runs, rounds, max(warmup - 1, 0), show=progress)
    first = statistics.median(seconds[0])
    return LatencyComparison(
        tuple(
            ModelLatency(name, tuple(mine), statistics.median(mine) / first)
            for name, mine in zip(named, seconds, strict=True)
        )
    )


def in_turns(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
    show: bool | None = False,
) -> list[list[float]]:
    """Seconds that each of some functions takes: one after the other, in every round.

    Args:
        runs: called without arguments; each returns when its work is done.
        rounds: how often each is measured.
        warmup: how often each is called before.
        clock: gives seconds.
        show: whether to show a bar; see ``fx_oto.core.progress.progress``.

    Returns:
        For each function, the seconds of each round.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in progress(range(rounds + warmup), "measuring latency", unit="round", show=show, leave=False):
        for run, mine in zip(runs, seconds, strict=True):
            start = clock()
            run()
            mine.append(clock() - start)
    return [mine[warmup:] for mine in seconds]


def _named(models: Any) -> dict[str, nn.Module]:
    if isinstance(models, nn.Module):
        models = [models]
    if isinstance(models, Sequence) and not isinstance(models, str):
        models = {f"{i}: {type(model).__name__}": model for i, model in enumerate(models)}
    if not isinstance(models, Mapping) or not models or not all(isinstance(m, nn.Module) for m in models.values()):
        found = {key: type(value).__name__ for key, value in models.items()} if isinstance(models, Mapping) else models
        raise InputError(
            "models must be a torch.nn.Module, a list of them, or a dict of them by name, such as "
            f"{{'full': model, 'compact': small}}; found {found!r:.200}"
        )
    return dict(models)


def _run(model: nn.Module, inputs: ExampleInputs) -> Callable[[], None]:
    """A forward pass that is over when it returns."""
    tensor = next((t for tensors in (model.parameters(), model.buffers()) for t in tensors), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    mine = inputs.mapped(lambda t: t.detach().to(device, copy=True))
    _wait(device)

    def forward() -> None:
        model(*mine.args, **mine.kwargs)
        _wait(device)

    return forward


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
