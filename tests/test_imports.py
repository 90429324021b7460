"""Either package can be imported first, and everything public is reachable from ``fx_oto``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fx_oto
import passes


@pytest.mark.parametrize("first", ["fx_oto", "passes", "passes.zig_partition", "fx_oto.api", "fx_oto.optim.dhspg"])
def test_a_fresh_interpreter_can_start_anywhere(first):
    code = f"import {first}, fx_oto, passes; assert fx_oto.PhysicalSlicing is passes.PhysicalSlicing"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_a_package_of_the_users_that_hides_passes_is_named(tmp_path):
    for hiding in ("passes/__init__.py", "passes.py", "passes/nothing.txt"):
        folder = tmp_path / hiding.replace("/", "_")
        (folder / hiding).parent.mkdir(parents=True)
        (folder / hiding).touch()
        run = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); import fx_oto"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if hiding.endswith(".txt"):  # a folder that is no package gives way to one that is
            assert run.returncode == 0, run.stderr
        else:
            assert f"finds by that name is {folder / hiding}. Give that another name, or put" in run.stderr


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'fx_oto' has no attribute 'prune'"):
        fx_oto.prune  # noqa: B018


def test_no_architecture_is_known_by_name():
    known = re.compile(
        r"resnet|densenet|convnext|vgg|unet|carn\b|mobilenet|shufflenet|efficientnet|regnet|inception", re.I
    )
    for package in (fx_oto, passes):
        for file in Path(package.__file__).parent.rglob("*.py"):
            assert not known.search(file.read_text()), file
