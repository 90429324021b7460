"""Trainings in several processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

# Now and then one of gloo's threads is still there as Python ends, and takes the process, and so its peers, with it
ENDED_TOO_EARLY = "terminate called without an active exception"
TRIES = 4


def torchrun(processes: int, script: str, *given: Any, cwd: Any = None) -> subprocess.CompletedProcess[str]:
    """What became of a script, which can be run again."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        script,
    ]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    for _ in range(TRIES):
        done = subprocess.run(
            [*command, *map(str, given)], capture_output=True, text=True, env=environment, check=False, cwd=cwd
        )
        if ENDED_TOO_EARLY not in done.stderr:
            break
    return done
