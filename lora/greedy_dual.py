"""Who goes first when room is needed: recency, weighed with what coming back would cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class GreedyDual:
    """The GreedyDual-Size rule (Cao and Irani, USENIX ITS 1997).

    A use gives a key the credit ``clock + cost / size``; the one with the least credit goes first,
    and the clock moves on to it. With equal costs by size that is least recently used.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._num_uses = 0
        self._used: dict[str, tuple[float, int]] = {}

    def use(self, key: str) -> None:
        """A key is used, or has just come."""
        self._num_uses += 1
        self._used[key] = (self._clock, self._num_uses)

    def order(self, keys: Iterable[str], cost: Callable[[str], float]) -> list[str]:
        """The keys, the first to go first; ``cost`` is that of restoring a key, by its size."""
        return sorted(keys, key=lambda key: self._rank(key, cost))

    def _rank(self, key: str, cost: Callable[[str], float]) -> tuple[float, int]:
        clock, number = self._used.get(key, (0.0, 0))
        return clock + cost(key), number

    def gone(self, key: str, cost: float) -> None:
        """A key has had to go; the others have grown older by what it had left."""
        clock, _ = self._used.pop(key, (0.0, 0))
        self._clock = max(self._clock, clock + cost)

    def forget(self, key: str) -> None:
        """A key has gone for another reason than want of room."""
        self._used.pop(key, None)
