"""The passes of fx_oto, one file each."""

from fx_oto.passes.dependency_analysis import DependencyAnalysis
from fx_oto.passes.drop_branches import DropBranches, DroppedBranches
from fx_oto.passes.fold_batchnorm import FoldBatchNorm
from fx_oto.passes.mask_insertion import MaskInsertion
from fx_oto.passes.physical_slicing import PhysicalSlicing
from fx_oto.passes.verification import Verification
from fx_oto.passes.zig_partition import ZIGPartition

__all__ = ["DependencyAnalysis", "DropBranches", "DroppedBranches", "FoldBatchNorm", "MaskInsertion", "PhysicalSlicing"]
__all__ += ["Verification", "ZIGPartition"]
