"""How late this process's own loop is: what it missed meanwhile is nobody else's fault."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TICK_SECONDS = 0.05
LATE_SECONDS = 0.25
REMEMBERED_SECONDS = 2.0
"""How long after a late tick timeouts may still come from it."""


class LagMeter:
    """Adds up by how much its ticks come late; ``run`` it, or call ``tick`` in its place."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lag = 0.0
        self._late_at = float("-inf")

    @property
    def was_late(self) -> bool:
        """Whether the loop stood still so lately that timeouts prove nothing."""
        return self._clock() - self._late_at < REMEMBERED_SECONDS

    def take(self) -> float:
        """Seconds of lag since the last call."""
        lag, self._lag = self._lag, 0.0
        return lag

    def tick(self, late_seconds: float) -> None:
        """One tick came so late."""
        if late_seconds > TICK_SECONDS:
            self._lag += late_seconds
        if late_seconds > LATE_SECONDS:
            self._late_at = self._clock()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due_at = self._clock() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            self.tick(self._clock() - due_at)
