"""The whole job on devices that are not there: nothing is left on the CPU, and little is read from the device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support import other_device

BEGIN, SECOND, END = 4, 12, 20  # of the window, and of its second period
TOGETHER = [("DHSPG", "SGD"), ("DHSPG", "AdamW"), ("HESSO", "SGD")]


def reads(*places_and_optimizer):
    """How often each step reads from the device; the script has compared all numbers with those of the CPU."""
    command = [sys.executable, other_device.__file__, *places_and_optimizer]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kind", "base"), TOGETHER)
def test_a_job_on_a_device_reads_little_from_it(kind, base):
    found = reads("far:0", "far:0", kind, base)
    dual = {6, 9, SECOND - 1, 14, 17, END - 1} if kind == "DHSPG" else set()  # strides of three steps
    for step, count in enumerate(found):
        if step in (BEGIN, SECOND):  # two flags for all ZIGs, and their scores
            assert 0 < count <= 4
        elif step == END - 1:  # what was reached, from every variable
            assert 0 < count <= 12
        else:
            assert count == (2 if step in dual else 0), step


@pytest.mark.parametrize(("kind", "base"), TOGETHER)
@pytest.mark.parametrize("places", [("far:0", "cpu"), ("cpu", "far:0")], ids=" and ".join)
def test_a_job_on_two_devices(places, kind, base):
    assert len(reads(*places, kind, base)) == other_device.STEPS
