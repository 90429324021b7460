"""``python -m fx_oto``: the command line."""

from __future__ import annotations

import sys

from fx_oto.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
