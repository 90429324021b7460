"""Each network in a process of its own, with limits: a crash or a hang stops nothing else."""

from __future__ import annotations

import faulthandler
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

__all__ = ["Limits", "run_apart"]

ROOT = Path(__file__).parents[2]
Note = Callable[[str], None]
Work = Callable[[str, Note], dict[str, Any]]


@dataclass(frozen=True)
class Limits:
    """Seconds and GiB for each process, and how many of them at once."""

    seconds: float
    memory: float
    jobs: int = 1


@dataclass
class _Child:
    name: str
    process: BaseProcess
    pipe: Connection
    trace: Path
    deadline: float
    stage: str = "starting"
    result: dict[str, Any] | None = None

    def listen(self) -> bool:
        """Take what the child says; False once it is done."""
        while self.pipe.poll():
            try:
                kind, value = self.pipe.recv()
            except EOFError:
                return False
            if kind == "result":
                self.result = value
                return False
            self.stage = value
        return True

    def finish(self, limits: Limits) -> dict[str, Any]:
        late = time.monotonic() >= self.deadline and self.result is None
        if late:
            self.process.kill()
        self.process.join()
        self.pipe.close()
        place = self._place()
        self.trace.unlink(missing_ok=True)
        if self.result is not None:
            return self.result
        if late or self.process.exitcode == 1:
            return {"status": "timeout", "reason": f"{self.stage} for more than {limits.seconds:.0f} s{place}"}
        return {"status": "failed", "reason": f"the process died ({self.process.exitcode}) while {self.stage}{place}"}

    def _place(self) -> str:
        """The innermost line of this project at which the child was stopped."""
        for file, line, function in re.findall(r'File "(.+)", line (\d+) in (\w+)', self.trace.read_text()):
            if file.startswith(str(ROOT / "fx_oto")):
                return f" [{Path(file).relative_to(ROOT)}:{line} {function}]"
        return ""


def run_apart(names: Iterable[str], work: Work, limits: Limits) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each name with what ``work`` made of it, as they come. What is imported before this is shared."""
    torch.set_num_threads(1)
    waiting, running = list(reversed(list(names))), list[_Child]()
    while waiting or running:
        while waiting and len(running) < limits.jobs:
            running.append(_start(waiting.pop(), work, limits))
        wait([child.pipe for child in running], timeout=max(0.0, min(c.deadline for c in running) - time.monotonic()))
        for child in list(running):
            if not child.listen() or time.monotonic() >= child.deadline:
                running.remove(child)
                yield child.name, child.finish(limits)


def _start(name: str, work: Work, limits: Limits) -> _Child:
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    handle, trace = tempfile.mkstemp(suffix=".trace")
    os.close(handle)
    process = context.Process(target=_inside, args=(name, work, limits, theirs, trace), daemon=True)
    process.start()
    theirs.close()
    return _Child(name, process, ours, Path(trace), time.monotonic() + limits.seconds + 5)


def _inside(name: str, work: Work, limits: Limits, pipe: Connection, trace: str) -> None:
    size = int(limits.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # what libraries print and log
    os.dup2(silence, 2)
    with open(trace, "w") as file:
        faulthandler.enable(file)  # where it crashed
        faulthandler.dump_traceback_later(limits.seconds, exit=True, file=file)
        result = work(name, lambda stage: pipe.send(("stage", stage)))
        faulthandler.cancel_dump_traceback_later()
        pipe.send(("result", result))
