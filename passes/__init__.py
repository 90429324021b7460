"""The passes of fx_oto, one file each."""

from passes.dependency_analysis import DependencyAnalysis
from passes.mask_insertion import MaskInsertion
from passes.physical_slicing import PhysicalSlicing
from passes.verification import Verification
from passes.zig_partition import ZIGPartition

__all__ = ["DependencyAnalysis", "MaskInsertion", "PhysicalSlicing", "Verification", "ZIGPartition"]
