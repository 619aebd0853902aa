"""Leases of which a launched step still reads go back when that step has finished."""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Lease(Protocol):
    """What a request holds, of blocks or of an adapter slot."""

    def release(self) -> None:
        """Give it back."""


class StepFence:
    """Numbers the steps; they are launched, and finish, one after the other."""

    def __init__(self) -> None:
        self._launched = 0
        self._finished = 0
        self._deferred: deque[tuple[int, Lease]] = deque()

    @property
    def is_idle(self) -> bool:
        """Whether every launched step has finished."""
        return self._finished == self._launched

    @property
    def num_deferred(self) -> int:
        """Leases that wait for a step."""
        return len(self._deferred)

    @property
    def next_step(self) -> int:
        """The number that the next launch will have."""
        return self._launched + 1

    def is_through(self, step: int) -> bool:
        """Whether that step has finished."""
        return step <= self._finished

    def launch(self) -> int:
        """Number a step that is about to be launched."""
        self._launched += 1
        return self._launched

    def finish(self, step: int) -> None:
        """Note that a step is through, and give back what waited for it."""
        assert step == self._finished + 1, "steps finish in order"
        self._finished = step
        while self._deferred and self._deferred[0][0] <= step:
            self._deferred.popleft()[1].release()

    def release(self, lease: Lease, last_step: int) -> None:
        """Give a lease back once ``last_step`` has finished, at once if it has."""
        if last_step <= self._finished:
            lease.release()
        else:
            self._deferred.append((self._launched, lease))
