"""Any module can be imported first, and everything public is reachable from ``fx_oto``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fx_oto


@pytest.mark.parametrize(
    "first", ["fx_oto", "fx_oto.passes", "fx_oto.passes.zig_partition", "fx_oto.api", "fx_oto.optim.dhspg"]
)
def test_a_fresh_interpreter_can_start_anywhere(first):
    code = f"import {first}, fx_oto.passes; assert fx_oto.PhysicalSlicing is fx_oto.passes.PhysicalSlicing"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'fx_oto' has no attribute 'prunes'"):
        fx_oto.prunes  # noqa: B018


def test_no_architecture_is_known_by_name():
    known = re.compile(
        r"resnet|densenet|convnext|vgg|unet|carn\b|mobilenet|shufflenet|efficientnet|regnet|inception", re.I
    )
    for file in Path(fx_oto.__file__).parent.rglob("*.py"):
        assert not known.search(file.read_text()), file
