"""The peak memory of a piece of work."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Thread

__all__ = ["PeakMemory"]

_STATISTICS = Path("/proc/self/statm")
_SECONDS_BETWEEN_SAMPLES = 0.01


class PeakMemory:
    """Context manager that watches by how much the process's resident memory rises above that at the start.

    It is sampled every 10 ms by a thread, so a shorter peak can be missed; memory of accelerators is not counted.
    """

    def __init__(self) -> None:
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._start = self._highest = _resident()

    def __enter__(self) -> PeakMemory:
        if self._start is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._start is not None:
            self._done.set()
            self._thread.join()

    @property
    def bytes(self) -> int | None:
        """The highest rise so far; None where the system does not tell, which is anywhere but on Linux."""
        return None if self._start is None or self._highest is None else self._highest - self._start

    def _watch(self) -> None:
        while True:
            last = self._done.wait(_SECONDS_BETWEEN_SAMPLES)
            self._highest = max(self._highest or 0, _resident() or 0)
            if last:
                return


def _resident() -> int | None:
    try:
        return int(_STATISTICS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
