"""Train a PyTorch model once and compress it, by torch.fx compiler passes.

    gm        = fx_oto.prepare(model, example_inputs)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.7, total_steps=steps)
    train(model, optimizer)
    small     = fx_oto.compress(gm)

- To compress: ``prepare`` (or ``trace``, and then the passes of a pipeline one by one), an optimizer, ``DHSPG`` or
  ``HESSO``, and ``compress``.
- To see what can go, why the rest cannot, and what was done: ``partition``, its ``explain`` and ``draw``, ``report``.
- To measure: ``cost`` (parameters and multiply-adds), ``latency``, and ``sensitivity``, which tries prunings out.
- To draw: ``draw_graph``, ``plot_widths``, ``plot_tradeoff``.
- Passes of your own: ``default_pipeline``, ``Pipeline``, ``Pass``, ``Analysis``, the decorators ``transformation`` and
  ``analysis``, ``register_pass`` and ``registered_passes``; ``testing.check_pass`` tests them.
- Ops and modules of your own: ``register_rule`` and ``register_leaf`` with one of ``kinds``, ``registered_rules``,
  ``unregister_rule``, ``temporary_rules``.

What these return shows itself: print it, or let a notebook show it. Every error descends from ``FxOtoError``.

Everything public is reachable from here. Names are loaded when they are first used, so that ``passes``, which
stands on the core of this package, can be imported before or after it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx_oto import testing
    from fx_oto.api import compress, default_pipeline, prepare
    from fx_oto.capture import trace
    from fx_oto.costs import Cost, cost
    from fx_oto.errors import (
        FxOtoError,
        FxOtoWarning,
        InputError,
        MissingPackageError,
        MissingResultError,
        NothingToCompressError,
        PassError,
        RuleError,
        SettingsError,
        SlicingError,
        TraceError,
        TrainingError,
        VerificationError,
    )
    from fx_oto.framework.authoring import analysis, register_pass, registered_passes, transformation
    from fx_oto.framework.context import Capture, Context, ExampleInputs, InputSize
    from fx_oto.framework.pipeline import Pipeline
    from fx_oto.framework.records import PassRecord, Snapshot
    from fx_oto.framework.reports import Report, report
    from fx_oto.framework.stages import Analysis, Pass
    from fx_oto.groups.drawings import draw_graph
    from fx_oto.groups.explanations import AxisExplanation, Cause, Explanation
    from fx_oto.groups.prices import Price
    from fx_oto.groups.sensitivities import Sensitivity, Trial
    from fx_oto.groups.widths import plot_widths
    from fx_oto.groups.zigs import Family, FrozenAxis, Partition, Slot, partition
    from fx_oto.optim.dhspg import DHSPG
    from fx_oto.optim.hesso import HESSO
    from fx_oto.optim.saliency import ZIGStatistics
    from fx_oto.optim.sparsifier import GroupSparseOptimizer
    from fx_oto.pictures.charts import plot_tradeoff
    from fx_oto.pictures.picture import Picture
    from fx_oto.provenance.dependencies import Dependencies, Reason
    from fx_oto.rules import kinds, register_leaf, register_rule, registered_rules, temporary_rules, unregister_rule
    from fx_oto.timing import LatencyComparison, ModelLatency, latency
    from fx_oto.trajectory import Trajectory
    from fx_oto.whatif import sensitivity
    from passes.dependency_analysis import DependencyAnalysis
    from passes.mask_insertion import MaskInsertion
    from passes.physical_slicing import PhysicalSlicing, SlicingPlan
    from passes.verification import Verification, VerificationReport
    from passes.zig_partition import ZIGPartition

__version__ = "0.1.0"

_HOMES = (
    "fx_oto.api",
    "fx_oto.framework.authoring",
    "fx_oto.framework.context",
    "fx_oto.costs",
    "fx_oto.provenance.dependencies",
    "fx_oto.groups.drawings",
    "fx_oto.errors",
    "fx_oto.groups.explanations",
    "fx_oto.optim.dhspg",
    "fx_oto.optim.hesso",
    "fx_oto.optim.saliency",
    "fx_oto.optim.sparsifier",
    "fx_oto.pictures.charts",
    "fx_oto.pictures.picture",
    "fx_oto.framework.pipeline",
    "fx_oto.groups.prices",
    "fx_oto.framework.records",
    "fx_oto.framework.reports",
    "fx_oto.rules",
    "fx_oto.framework.stages",
    "fx_oto.testing",
    "fx_oto.groups.sensitivities",
    "fx_oto.timing",
    "fx_oto.capture",
    "fx_oto.trajectory",
    "fx_oto.whatif",
    "fx_oto.groups.widths",
    "fx_oto.groups.zigs",
    "passes.dependency_analysis",
    "passes.mask_insertion",
    "passes.physical_slicing",
    "passes.verification",
    "passes.zig_partition",
)

__all__ = [
    "DHSPG",
    "HESSO",
    "Analysis",
    "AxisExplanation",
    "Capture",
    "Cause",
    "Context",
    "Cost",
    "Dependencies",
    "DependencyAnalysis",
    "ExampleInputs",
    "Explanation",
    "Family",
    "FrozenAxis",
    "FxOtoError",
    "FxOtoWarning",
    "GroupSparseOptimizer",
    "InputError",
    "InputSize",
    "LatencyComparison",
    "MaskInsertion",
    "MissingPackageError",
    "MissingResultError",
    "ModelLatency",
    "NothingToCompressError",
    "Partition",
    "Pass",
    "PassError",
    "PassRecord",
    "PhysicalSlicing",
    "Picture",
    "Pipeline",
    "Price",
    "Reason",
    "Report",
    "RuleError",
    "Sensitivity",
    "SettingsError",
    "SlicingError",
    "SlicingPlan",
    "Slot",
    "Snapshot",
    "TraceError",
    "TrainingError",
    "Trajectory",
    "Trial",
    "Verification",
    "VerificationError",
    "VerificationReport",
    "ZIGPartition",
    "ZIGStatistics",
    "analysis",
    "compress",
    "cost",
    "default_pipeline",
    "draw_graph",
    "kinds",
    "latency",
    "partition",
    "plot_tradeoff",
    "plot_widths",
    "prepare",
    "register_leaf",
    "register_pass",
    "register_rule",
    "registered_passes",
    "registered_rules",
    "report",
    "sensitivity",
    "temporary_rules",
    "testing",
    "trace",
    "transformation",
    "unregister_rule",
]


def _check_passes() -> None:
    """The sibling package has a name that others may have, too.

    Raises:
        ImportError: another one comes first.
    """
    mine, spec = Path(__file__).resolve().parents[1] / "passes" / "__init__.py", find_spec("passes")
    found = spec and spec.origin
    if not found or Path(found).resolve() != mine:
        raise ImportError(
            f"fx_oto needs its sibling package passes, in {mine.parent}; what Python finds by that name is {found}. "
            "Give that another name, or put its folder behind fx_oto's in sys.path"
        )


_check_passes()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fx_oto' has no attribute {name!r}")
    for home in map(import_module, _HOMES):
        globals().update({public: getattr(home, public) for public in home.__all__ if public in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
