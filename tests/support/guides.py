"""The code that guides show, so that tests can run it."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = re.compile(r"^```python[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def python_blocks(path: str | Path) -> list[str]:
    """The ``python`` blocks of a Markdown file, in order; joined, they run as one program."""
    return _BLOCK.findall(Path(path).read_text(encoding="utf-8"))
