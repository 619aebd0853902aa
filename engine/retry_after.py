"""How long a client that was turned away should wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

MIN_SECONDS, MAX_SECONDS = 1.0, 60.0


class RetryAfter:
    """Guesses from how fast requests have been finishing of late."""

    def __init__(self, clock: Callable[[], float], window: int = 64) -> None:
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=window)

    def finished(self) -> None:
        """A request has ended."""
        self._finished.append(self._clock())

    def seconds(self, num_waiting: int) -> float:
        """Until about half of those waiting are through, between 1 and 60 seconds."""
        if len(self._finished) < 2:
            return MIN_SECONDS
        elapsed = self._clock() - self._finished[0]
        seconds_each = elapsed / len(self._finished)
        return min(max(seconds_each * num_waiting / 2, MIN_SECONDS), MAX_SECONDS)
