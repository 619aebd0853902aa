"""A process with all that it started, measured as one."""

from __future__ import annotations

import psutil


class ProcessTree:
    """A gateway's workers are its children: they count as much as the process itself."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """What all of them that run have taken so far."""
        times = [process.cpu_times() for process in self._all()]
        return sum(taken.user + taken.system for taken in times)

    def rss(self) -> int:
        """Bytes that all of them hold; what several share counts for each."""
        return sum(process.memory_info().rss for process in self._all())

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]
