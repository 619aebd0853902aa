"""Whose turn it is: a few at once for each who asks, and a bounded line behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..errors import overloaded


@dataclass(slots=True)
class _Line:
    free: asyncio.Semaphore
    length: int = 0


class Turns:
    """``num_at_once`` at a time for each key; ``max_length`` with those that wait, 0: any number.

    What all keys share behind this is so taken up in turns, however many one of them brings.
    """

    def __init__(self, num_at_once: int, max_length: int = 0) -> None:
        self._num_at_once = num_at_once
        self._max_length = max_length
        self._lines: dict[Hashable, _Line] = {}

    @asynccontextmanager
    async def take(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn and have it; raises ApiError 429 where the key's line is full."""
        line = self._lines.setdefault(key, _Line(asyncio.Semaphore(self._num_at_once)))
        if line.length >= self._max_length > 0:
            raise overloaded(
                f"{line.length} grammars of this tenant already wait to be checked; "
                "try again later.",
                None,
            )
        line.length += 1
        try:
            async with line.free:
                yield
        finally:
            line.length -= 1
            if not line.length:
                del self._lines[key]
