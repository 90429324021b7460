"""Running the notebooks: ``python tests/support/notebooks.py [FILES]`` runs them, or all, and writes their outputs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "tests" / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def run(path, **environment):
    """The notebook after a run in a fresh kernel of this very Python; raises where a cell does."""
    notebook = read(path)
    native = KernelSpecManager(kernel_dirs=[])  # not what another environment has left under the name of python3
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=native)
    client = NotebookClient(notebook, km=manager, timeout=600, record_timing=False, coalesce_streams=True)
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    client.execute(cleanup_kc=True, cwd=str(path.parent), env={**os.environ, "PYTHONPATH": paths, **environment})
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    """What a cell printed, and what it returned, as text."""
    return "".join(
        output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
        for output in cell.outputs
    )


if __name__ == "__main__":
    for chosen in [Path(name).resolve() for name in sys.argv[1:]] or NOTEBOOKS:
        nbformat.write(run(chosen), chosen)
        print(chosen.name)  # noqa: T201
