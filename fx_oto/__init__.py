"""Train a PyTorch model once and compress it, by torch.fx compiler passes.

    gm        = fx_oto.prepare(model, example_inputs)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.7, total_steps=steps)
    train(model, optimizer)
    small     = fx_oto.compress(gm)

- To compress: ``prepare`` (or ``trace``, and then the passes of a pipeline one by one), an optimizer, ``DHSPG`` or
  ``HESSO``, or ``prune`` at once, and ``compress``. ``write_back`` returns the compact model as your own class, and
  ``WriteBack`` tells how.
- To see what can go, why the rest cannot, and what was done: ``partition``, its ``explain`` and ``draw``, ``report``.
- To measure: ``cost`` (parameters and multiply-adds), ``latency``, and ``sensitivity``, which tries prunings out.
- For Hugging Face's ``save_pretrained``: ``config_limits`` tells what the compact model's ``config`` can say.
- To keep: ``save`` writes a compact model into one file, ``load`` makes it again without the code it came from.
- To draw: ``draw_graph``, ``plot_widths``, ``plot_tradeoff``.
- Passes of your own: ``default_pipeline``, ``Pipeline``, ``Pass``, ``Analysis``, the decorators
  ``transformation_pass`` and ``analysis_pass``, ``register_pass`` and ``registered_passes``; ``testing.check_pass``
  tests them.
- Ops and modules of your own: ``register_rule`` and ``register_leaf`` with one of ``kinds``, ``registered_rules``,
  ``unregister_rule``, ``temporary_rules``.

What these return shows itself: print it, or let a notebook show it. Every error descends from ``FxOtoError``.

Everything public is reachable from here. Names are loaded when they are first used, so that what needs no torch, such
as ``python -m fx_oto --help``, does not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx_oto import testing
    from fx_oto.analysis.dependencies import Dependencies, Reason
    from fx_oto.api import compress, default_pipeline, prepare
    from fx_oto.capture import trace
    from fx_oto.core.context import Capture, Context, ExampleInputs, InputSize
    from fx_oto.core.errors import (
        FileError,
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
    from fx_oto.core.picture import Picture
    from fx_oto.core.records import PassRecord, Snapshot
    from fx_oto.deploy.config_limits import ConfigLimits, config_limits
    from fx_oto.deploy.loading import load
    from fx_oto.deploy.saving import save
    from fx_oto.deploy.write_back import WriteBack, write_back
    from fx_oto.framework.authoring import analysis_pass, register_pass, registered_passes, transformation_pass
    from fx_oto.framework.pipeline import Pipeline
    from fx_oto.framework.stages import Analysis, Pass
    from fx_oto.framework.trajectory import Trajectory
    from fx_oto.ops.custom import (
        kinds,
        register_leaf,
        register_rule,
        registered_rules,
        temporary_rules,
        unregister_rule,
    )
    from fx_oto.optim.dhspg import DHSPG
    from fx_oto.optim.hesso import HESSO
    from fx_oto.optim.one_shot import prune
    from fx_oto.optim.saliency import ZIGStatistics
    from fx_oto.optim.sparsifier import GroupSparseOptimizer
    from fx_oto.optim.whatif import sensitivity
    from fx_oto.passes.dependency_analysis import DependencyAnalysis
    from fx_oto.passes.drop_branches import DropBranches, DroppedBranches
    from fx_oto.passes.fold_batchnorm import FoldBatchNorm
    from fx_oto.passes.mask_insertion import MaskInsertion
    from fx_oto.passes.physical_slicing import PhysicalSlicing, SlicingPlan
    from fx_oto.passes.verification import Verification, VerificationReport
    from fx_oto.passes.zig_partition import ZIGPartition
    from fx_oto.reports.costs import Cost, cost
    from fx_oto.reports.report import Report, report
    from fx_oto.reports.sensitivity import Sensitivity, Trial
    from fx_oto.reports.timing import LatencyComparison, ModelLatency, latency
    from fx_oto.viz.charts import plot_tradeoff
    from fx_oto.viz.drawings import draw_graph
    from fx_oto.viz.widths import plot_widths
    from fx_oto.zigs.explanation import AxisExplanation, Cause, Explanation
    from fx_oto.zigs.families import Family, FrozenAxis, Slot
    from fx_oto.zigs.forecast import Forecast
    from fx_oto.zigs.partition import Partition, partition
    from fx_oto.zigs.prices import Price

__version__ = "0.1.0"

_HOMES = (
    "fx_oto.analysis.dependencies",
    "fx_oto.api",
    "fx_oto.capture",
    "fx_oto.core.context",
    "fx_oto.core.errors",
    "fx_oto.core.picture",
    "fx_oto.core.records",
    "fx_oto.deploy.config_limits",
    "fx_oto.deploy.loading",
    "fx_oto.deploy.saving",
    "fx_oto.deploy.write_back",
    "fx_oto.framework.authoring",
    "fx_oto.framework.pipeline",
    "fx_oto.framework.stages",
    "fx_oto.framework.trajectory",
    "fx_oto.ops.custom",
    "fx_oto.optim.dhspg",
    "fx_oto.optim.hesso",
    "fx_oto.optim.one_shot",
    "fx_oto.optim.saliency",
    "fx_oto.optim.sparsifier",
    "fx_oto.optim.whatif",
    "fx_oto.passes.dependency_analysis",
    "fx_oto.passes.drop_branches",
    "fx_oto.passes.fold_batchnorm",
    "fx_oto.passes.mask_insertion",
    "fx_oto.passes.physical_slicing",
    "fx_oto.passes.verification",
    "fx_oto.passes.zig_partition",
    "fx_oto.reports.costs",
    "fx_oto.reports.report",
    "fx_oto.reports.sensitivity",
    "fx_oto.reports.timing",
    "fx_oto.testing",
    "fx_oto.viz.charts",
    "fx_oto.viz.drawings",
    "fx_oto.viz.widths",
    "fx_oto.zigs.explanation",
    "fx_oto.zigs.families",
    "fx_oto.zigs.forecast",
    "fx_oto.zigs.partition",
    "fx_oto.zigs.prices",
)

__all__ = [
    "DHSPG",
    "HESSO",
    "Analysis",
    "AxisExplanation",
    "Capture",
    "Cause",
    "ConfigLimits",
    "Context",
    "Cost",
    "Dependencies",
    "DependencyAnalysis",
    "DropBranches",
    "DroppedBranches",
    "ExampleInputs",
    "Explanation",
    "Family",
    "FileError",
    "FoldBatchNorm",
    "Forecast",
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
    "WriteBack",
    "ZIGPartition",
    "ZIGStatistics",
    "analysis_pass",
    "compress",
    "config_limits",
    "cost",
    "default_pipeline",
    "draw_graph",
    "kinds",
    "latency",
    "load",
    "partition",
    "plot_tradeoff",
    "plot_widths",
    "prepare",
    "prune",
    "register_leaf",
    "register_pass",
    "register_rule",
    "registered_passes",
    "registered_rules",
    "report",
    "save",
    "sensitivity",
    "temporary_rules",
    "testing",
    "trace",
    "transformation_pass",
    "unregister_rule",
    "write_back",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fx_oto' has no attribute {name!r}")
    for home in map(import_module, _HOMES):
        globals().update({public: getattr(home, public) for public in home.__all__ if public in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
