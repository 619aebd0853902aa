"""Whom to ask to hold a version, and how long to wait for one that has fallen silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from ..types import ReplicaView

Candidates = Callable[[], Sequence[ReplicaView]]
"""Who may be asked now, the best first: the fleet changes while it is asked."""

OUT_SECONDS = 5.0
"""A call under way outlives its replica's absence by so much: a busy machine's is a short one."""


class Tries:
    """Asks each candidate once, until ``again``; ``asked`` are ids that need not be."""

    def __init__(self, candidates: Candidates, asked: Iterable[str] = ()) -> None:
        self._candidates = candidates
        self._asked = set(asked)
        self._failed: set[str] = set()

    def next(self, count: int) -> list[ReplicaView]:
        """Up to ``count`` who are there now and were not asked yet; from now on they were."""
        fresh = [one for one in self._candidates() if one.replica_id not in self._asked][:count]
        self._asked.update(one.replica_id for one in fresh)
        return fresh

    def failed(self, replica: ReplicaView) -> None:
        """It did not do it."""
        self._failed.add(replica.replica_id)

    def again(self) -> None:
        """Those that failed may be asked once more."""
        self._asked -= self._failed
        self._failed.clear()


class Patience:
    """Tells when a replica has been out for longer than ``seconds`` on end."""

    def __init__(self, is_up: Callable[[], bool], seconds: float = OUT_SECONDS) -> None:
        self._is_up = is_up
        self._seconds = seconds
        self._last_up = time.monotonic()

    def is_over(self) -> bool:
        """Look; True once nobody should wait any longer."""
        now = time.monotonic()
        if self._is_up():
            self._last_up = now
        return now - self._last_up > self._seconds
