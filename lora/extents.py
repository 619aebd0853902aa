"""Who holds which bytes of an arena: first fit, free neighbours grow together."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

ALIGNMENT = 256


class Extents:
    """The book of one arena of ``num_bytes``; the memory itself is the caller's."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._free = [(0, num_bytes)] if num_bytes else []  # (start, stop), ascending
        self._held: dict[int, int] = {}  # start -> stop

    def copy(self) -> Extents:
        """A book to try things in."""
        other = Extents(0)
        other.num_bytes = self.num_bytes
        other._free, other._held = list(self._free), dict(self._held)
        return other

    @property
    def num_free(self) -> int:
        """Bytes that nobody holds."""
        return sum(stop - start for start, stop in self._free)

    @property
    def largest_free(self) -> int:
        """Bytes of the longest free stretch."""
        return max((stop - start for start, stop in self._free), default=0)

    @property
    def starts(self) -> frozenset[int]:
        """Where what is held begins."""
        return frozenset(self._held)

    def take(self, num_bytes: int, align: int = ALIGNMENT, *, from_end: bool = False) -> int | None:
        """The start, a multiple of ``align``, of bytes now held; None if no stretch has room.

        It is the lowest place there is, or with ``from_end`` the highest: where two kinds of
        different sizes share an arena, each from its own end, neither leaves holes in the other.
        """
        assert num_bytes > 0, "nothing has no place"
        indices = range(len(self._free))
        for index in reversed(indices) if from_end else indices:
            start, stop = self._free[index]
            chosen = (stop - num_bytes) // align * align if from_end else -(-start // align) * align
            end = chosen + num_bytes
            if start <= chosen and end <= stop:
                rest = ((start, chosen), (end, stop))
                self._free[index : index + 1] = [span for span in rest if span[0] < span[1]]
                self._held[chosen] = end
                return chosen
        return None

    def give_back(self, offset: int) -> None:
        """Free the bytes that start at ``offset``."""
        start, stop = offset, self._held.pop(offset)
        first = last = bisect_left(self._free, (start, stop))
        if first and self._free[first - 1][1] == start:
            first -= 1
            start = self._free[first][0]
        if last < len(self._free) and self._free[last][0] == stop:
            stop = self._free[last][1]
            last += 1
        self._free[first:last] = [(start, stop)]

    def check(self) -> None:
        """Every byte is free or held once, and no two free stretches touch."""
        spans = sorted([*self._free, *self._held.items()])
        assert all(start < stop for start, stop in spans)
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans)][: len(spans)]
        assert (spans[-1][1] if spans else 0) == self.num_bytes
        assert all(stop < start for (_, stop), (start, _) in pairwise(self._free))
