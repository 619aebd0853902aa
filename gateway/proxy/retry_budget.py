"""How many tries beyond the first are allowed, so that a broken fleet is not hammered."""

from __future__ import annotations


class RetryBudget:
    """A bucket that each request fills a little and each retry takes one from.

    ``share`` of the traffic may be retries, and ``capacity`` of them at once. Tries after a
    replica could not even be reached are not asked for here: they cost nothing there.
    """

    def __init__(self, share: float = 0.2, capacity: float = 100.0) -> None:
        self._share, self._capacity = share, capacity
        self._level = capacity

    def note_request(self) -> None:
        """A request came in."""
        self._level = min(self._capacity, self._level + self._share)

    def take(self) -> bool:
        """Whether one more try is allowed."""
        if self._level < 1:
            return False
        self._level -= 1
        return True
