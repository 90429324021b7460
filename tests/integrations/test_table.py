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
