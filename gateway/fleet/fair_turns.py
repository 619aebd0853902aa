"""Turns at what is scarce: a few for all, fewer for each, and those who wait go round."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class FairTurns:
    """``num_at_once`` at a time, ``num_of_key`` of one key; a free one goes from key to key."""

    def __init__(self, num_at_once: int, num_of_key: int) -> None:
        self._num_free = num_at_once
        self._num_of_key = num_of_key
        self._held: Counter[Hashable] = Counter()
        self._lines: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and have it."""
        if self._is_free_for(key):
            self._begin(key)
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._end(key)

    def _is_free_for(self, key: Hashable) -> bool:
        return self._num_free > 0 and self._held[key] < self._num_of_key

    def _begin(self, key: Hashable) -> None:
        self._num_free -= 1
        self._held[key] += 1

    def _end(self, key: Hashable) -> None:
        self._num_free += 1
        self._held[key] -= 1
        for other in list(self._lines):
            if self._is_free_for(other):
                self._hand_to(other)
        if not self._held[key]:
            del self._held[key]

    async def _wait(self, key: Hashable) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._lines.setdefault(key, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():  # it was handed over in the same moment
                self._end(key)
            elif line := self._lines.get(key):
                self._lines[key] = left = deque(one for one in line if one is not mine)
                if not left:
                    del self._lines[key]
            raise

    def _hand_to(self, key: Hashable) -> None:
        """To the first of the key's line; the rest of it is behind the other keys then."""
        line = self._lines.pop(key)
        while line:
            first = line.popleft()
            if not first.done():
                self._begin(key)
                first.set_result(None)
                break
        if line:
            self._lines[key] = line
