"""The guides are run: their code works as it stands, in order, and prints what they say; their links lead somewhere."""

import contextlib
import io
import re
import sys
import types

import pytest
import torch
from support.guides import GUIDES, ROOT, anchors, links, python_blocks
from support.vision import torchvision_models
from torch import nn

import fx_oto
from fx_oto.framework import authoring

PROGRAMS = [path for path in GUIDES if any(not block.excuse for block in python_blocks(path))]


class Net(nn.Module):
    """A model such as a reader may have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def what_a_reader_has():
    """What the README takes for granted."""
    batches = [(torch.randn(4, 3, 32, 32), torch.randint(4, (4,))) for _ in range(15)]
    return {"model": Net(), "loader": batches, "epochs": 2}


@pytest.fixture
def _alone(monkeypatch, tmp_path):
    """What a guide registers is forgotten, and what it writes goes elsewhere."""
    monkeypatch.setattr(authoring, "_registered", {})
    monkeypatch.chdir(tmp_path)
    with fx_oto.temporary_rules():
        yield


def skip_without_what_it_imports(path):
    """Some guides are about models of a library that need not be here."""
    code = "\n".join(block.code for block in python_blocks(path) if not block.excuse)
    if re.search(r"^(?:import|from) .*\b(?:torchvision|transformers)\b", code, re.MULTILINE):
        torchvision_models()  # transformers imports torchvision
    if re.search(r"^(?:import|from) .*\btransformers\b", code, re.MULTILINE):
        pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("path", PROGRAMS, ids=[str(path.relative_to(ROOT)) for path in PROGRAMS])
def test_a_guide_runs_and_prints_what_it_says(path, monkeypatch):
    skip_without_what_it_imports(path)
    guide = types.ModuleType("guide")
    monkeypatch.setitem(sys.modules, "guide", guide)
    if path == ROOT / "README.md":
        vars(guide).update(what_a_reader_has())
    for block in python_blocks(path):
        if block.excuse:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, str(path), "exec", dont_inherit=True), vars(guide))
        if block.output is not None:
            tidy = words if block.quoted else lines
            assert tidy(printed.getvalue()) == tidy(block.output)


def lines(text):
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def words(text):
    return text.split()


def test_what_is_not_run_says_why():
    excused = [block.excuse for path in GUIDES for block in python_blocks(path) if block.excuse]
    assert all(re.match(r"needs \w+", excuse) for excuse in excused)
    every = sum(path.read_text(encoding="utf-8").count("\n```python") for path in GUIDES)
    assert every == sum(1 for path in GUIDES for _ in python_blocks(path)) > len(excused)


@pytest.mark.parametrize("path", GUIDES, ids=[str(path.relative_to(ROOT)) for path in GUIDES])
def test_links_lead_somewhere(path):
    for link in links(path):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_guides_that_are_promised_are_here():
    names = {str(path.relative_to(ROOT)) for path in PROGRAMS}
    assert {"README.md", "fx_oto/README.md", "fx_oto/passes/README.md", "fx_oto/ops/README.md"} <= names
    for path in set(PROGRAMS) - {ROOT / "README.md"}:  # which is about the reader's own model
        blocks = list(python_blocks(path))
        assert any(block.output is not None or "assert" in block.code for block in blocks if not block.excuse), path


def test_every_page_is_in_the_index():
    folder = ROOT / "fx_oto/guides"
    pages = {page.name for page in folder.iterdir()} - {"README.md"}
    assert len(pages) >= 8
    assert pages == set(links(folder / "README.md")) - {"../README.md"}
    assert {folder / page for page in pages} <= set(PROGRAMS)


_GUIDE = """# Title

```python
print(1)
```

```
1
```

<!-- not run: needs a server -->
```python
serve()
```

```python
print(2)
```

> two
> lines

```python
print(3)
```
```
3
…
```

text

```
no output
```
[a](b.md#c) ![d](e.png) [f](https://g.h)
"""


def test_blocks_are_read_as_they_stand(tmp_path):
    guide = tmp_path / "guide.md"
    guide.write_text(_GUIDE)
    first, second, third, fourth = python_blocks(guide)
    assert first.code.splitlines()[3:] == ["print(1)"]
    assert (first.output, first.excuse, first.quoted) == ("1\n", "", False)
    assert (second.output, second.excuse) == (None, "needs a server")
    assert (third.output, third.quoted) == ("two\nlines\n", True)
    assert fourth.output is None
    assert links(guide) == ["b.md#c", "e.png"]
    assert anchors(guide) == {"title"}
