"""The authors' experiments, one command each: ``python -m benchmarks.paper RECIPE --data DIR``."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).parents[2] / "tests")
if _TESTS not in sys.path:  # its networks are trained here
    sys.path.append(_TESTS)
