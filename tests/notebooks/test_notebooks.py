"""Every notebook runs, and what is committed is what a run of it shows."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
exceptions = pytest.importorskip("nbclient.exceptions")

from support.notebooks import NOTEBOOKS, ROOT, code_cells, printed, read, run  # noqa: E402

SHARED = Path(os.environ.get("FX_OTO_SHARED", ROOT.parent / "shared")) / "data" / "fashion_mnist"
CNN = next(path for path in NOTEBOOKS if path.stem == "compress_a_cnn")
# What a path on a machine looks like; a web address has a letter or a slash before its slashes.
MACHINE = re.compile(
    r"(?<![\w/.])/(?:home|root|tmp|work|usr|opt|var|Users|private|mnt)/|[A-Z]:\\\\|site-packages|ipykernel_"
)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_a_run_prints_what_is_committed(path):
    """All cells run; those that print the same each time, which are marked so, print what they printed."""
    if path == CNN and not SHARED.is_dir():
        pytest.skip("no Fashion-MNIST folder is at hand")
    compared = 0
    for before, after in zip(*map(code_cells, (read(path), run(path, FASHION_MNIST=str(SHARED)))), strict=True):
        assert len(before.outputs) == len(after.outputs), before.source
        if "reproducible" in before.metadata.get("tags", ()):
            assert printed(after) == printed(before), before.source
            compared += 1
    assert compared >= 2


def test_digits_stand_in_for_fashion_mnist(tmp_path):
    cells = code_cells(run(CNN, FASHION_MNIST=str(tmp_path / "nowhere")))
    assert printed(cells[0]).startswith("digits: 1,437 images")
    accuracies = [
        float(text) for cell in cells for text in re.findall(r"(?m)^(?:group-sp|comp)\S+ +([\d.]+)%", printed(cell))
    ]
    assert len(accuracies) == 2
    assert min(accuracies) > 70


@each
def test_what_is_committed_is_one_whole_run(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 2


@each
def test_what_is_committed_is_small_and_shows_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 600_000
    shown = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not MACHINE.search(shown), MACHINE.search(shown)
    assert str(Path.home()) + os.sep not in shown


def test_the_cnn_was_run_on_fashion_mnist():
    assert printed(code_cells(read(CNN))[0]).startswith("fashion-mnist: 6,000 images to train on, 10,000 to test on")


def test_a_cell_that_raises_is_seen(tmp_path):
    broken = tmp_path / "broken.ipynb"
    notebook = read(CNN)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:1]
    notebook.cells[0].source = "raise KeyError('seen')"
    nbformat.write(notebook, broken)
    with pytest.raises(exceptions.CellExecutionError, match=r"(?s)KeyError.*'seen'"):
        run(broken)


def test_the_readme_links_every_notebook():
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.ipynb)\)", text)) == {path.name for path in NOTEBOOKS}
