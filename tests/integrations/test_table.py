"""The table of what is tested with which trainer names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")


def test_the_tests_that_the_table_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", TABLE.read_text()))
    tests = "\n".join(file.read_text() for file in TABLE.parent.parent.rglob("test_*.py"))
    assert len(named) >= 8
    assert not {name for name in named if f"def {name}(" not in tests}


def test_no_cell_is_empty():
    rows = [line.strip("| \n").split("|") for line in TABLE.read_text().splitlines() if line.startswith("|")]
    _, _, *body = [[cell.strip() for cell in row] for row in rows]
    assert len(body) >= 5
    for trainer, *cells in body:
        assert len(cells) == 4, trainer
        assert all(re.search(r"`test_\w+`|^not tested$", cell) for cell in cells), trainer
