"""What is left of a branch once all ZIGs of its inner width are gone: constants, and what need not be computed."""

from fx_oto.ops.branches.depth import BranchDepth
from fx_oto.ops.branches.finding import find_branches
from fx_oto.ops.branches.gone import Gone
from fx_oto.ops.branches.known import Known
from fx_oto.ops.branches.results import Branches, Sink
from fx_oto.ops.branches.writing import drop

__all__ = ["BranchDepth", "Branches", "Gone", "Known", "Sink", "drop", "find_branches"]
