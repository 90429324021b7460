"""``python -m fx_oto demo``: the whole job on real images."""

from __future__ import annotations

import sys

from fx_oto.demo.job import main

if __name__ == "__main__":
    sys.exit(main())
