"""fx_oto: train a PyTorch model once and compress it, by torch.fx compiler passes.

    gm        = fx_oto.prepare(model, example_inputs)
    optimizer = fx_oto.DHSPG(gm, torch.optim.SGD, lr=0.1, target_group_sparsity=0.7, total_steps=steps)
    train(model, optimizer)
    small     = fx_oto.compress(gm)

Everything public is reachable from here. Names are loaded when they are first used, so that ``passes``, which
stands on the core of this package, can be imported before or after it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fx_oto.api import compress, default_pipeline, prepare
    from fx_oto.context import Context, ExampleInputs
    from fx_oto.costs import Cost, cost
    from fx_oto.dependencies import Dependencies, Reason
    from fx_oto.dhspg import DHSPG
    from fx_oto.errors import (
        FxOtoError,
        FxOtoWarning,
        InputError,
        MissingResultError,
        NothingToCompressError,
        PassError,
        SettingsError,
        SlicingError,
        TraceError,
        VerificationError,
    )
    from fx_oto.pipeline import Analysis, Pass, PassRecord, Pipeline, register_pass
    from fx_oto.reports import Report, report
    from fx_oto.rules import register_rule
    from fx_oto.tracing import trace
    from fx_oto.zigs import Family, FrozenAxis, Partition, Slot, partition
    from passes.dependency_analysis import DependencyAnalysis
    from passes.mask_insertion import MaskInsertion
    from passes.physical_slicing import PhysicalSlicing, SlicingPlan
    from passes.verification import Verification, VerificationReport
    from passes.zig_partition import ZIGPartition

__version__ = "0.1.0"

_EXPORTS = {
    "fx_oto.api": ("compress", "default_pipeline", "prepare"),
    "fx_oto.context": ("Context", "ExampleInputs"),
    "fx_oto.costs": ("Cost", "cost"),
    "fx_oto.dependencies": ("Dependencies", "Reason"),
    "fx_oto.dhspg": ("DHSPG",),
    "fx_oto.errors": (
        "FxOtoError",
        "FxOtoWarning",
        "InputError",
        "MissingResultError",
        "NothingToCompressError",
        "PassError",
        "SettingsError",
        "SlicingError",
        "TraceError",
        "VerificationError",
    ),
    "fx_oto.pipeline": ("Analysis", "Pass", "PassRecord", "Pipeline", "register_pass"),
    "fx_oto.reports": ("Report", "report"),
    "fx_oto.rules": ("register_rule",),
    "fx_oto.tracing": ("trace",),
    "fx_oto.zigs": ("Family", "FrozenAxis", "Partition", "Slot", "partition"),
    "passes.dependency_analysis": ("DependencyAnalysis",),
    "passes.mask_insertion": ("MaskInsertion",),
    "passes.physical_slicing": ("PhysicalSlicing", "SlicingPlan"),
    "passes.verification": ("Verification", "VerificationReport"),
    "passes.zig_partition": ("ZIGPartition",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [  # noqa: PLE0604
    "__version__",
    *_HOME,
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fx_oto' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
