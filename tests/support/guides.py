"""The guides of this project: the code that they show, what they say it prints, and where they link to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fx_oto

ROOT = Path(fx_oto.__file__).parents[1]
_FOLDERS = ("fx_oto", "tests", "benchmarks")
GUIDES = sorted([*ROOT.glob("*.md"), *(file for folder in _FOLDERS for file in (ROOT / folder).rglob("*.md"))])

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<excuse>[^\n]+?) -->\n)?^```python[^\n]*\n(?P<code>.*?)^```\n"
    r"(?:\n*(?:^```(?:diff|text)?\n(?P<output>.*?)^```$|(?P<quote>(?:^> [^\n]*\n)+)))?",
    re.MULTILINE | re.DOTALL,
)
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A ``python`` block of a guide.

    Attributes:
        code: below as many empty lines as there are lines above it in the file, so that errors name the right one.
        excuse: why it is not run, as the comment above it says; empty for none.
        output: what the block or quotation that follows at once says that it prints; None if there is none, or if it
            leaves something out, which it says with an ellipsis.
        quoted: the output is a quotation, whose lines are broken anywhere.
    """

    code: str
    excuse: str
    output: str | None
    quoted: bool


def python_blocks(path: Path) -> Iterator[Block]:
    """The ``python`` blocks of a guide, in order; they run in one namespace, as one program."""
    text = path.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        code = "\n" * text.count("\n", 0, found.start("code")) + found["code"]
        quoted = found["quote"] is not None
        output = re.sub(r"^> ", "", found["quote"], flags=re.MULTILINE) if quoted else found["output"]
        yield Block(code, found["excuse"] or "", None if output is None or "…" in output else output, quoted)


def links(path: Path) -> list[str]:
    """What a guide links to inside the project, anchors included."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    return [target for target in _LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]


def anchors(path: Path) -> set[str]:
    """The anchors of a guide's headings, as GitHub makes them."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
