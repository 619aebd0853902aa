"""How many requests are between their arrival and their way out at a time; the rest wait in line.

A burst would else be worked on by turns of the event loop, and each of its connections and calls
to Redis would take as long as the whole burst: past every timeout, by nobody's fault but our own.
"""

from __future__ import annotations

import asyncio
from collections import deque

MAX_TURNS = 32
MAX_SECONDS = 0.1
"""Until then a turn is work for this process; what takes longer waits for others."""


class Turn:
    """Leave to prepare and send one request; to be released, once or more often."""

    __slots__ = ("_timer", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns: Turns | None = turns
        self._timer = asyncio.get_running_loop().call_later(MAX_SECONDS, self.release)

    def release(self) -> None:
        """Let the next one in."""
        if self._turns is not None:
            self._timer.cancel()
            turns, self._turns = self._turns, None
            turns.give_back()


class Turns:
    """Hands out turns in the order they are asked for."""

    def __init__(self, max_turns: int = MAX_TURNS) -> None:
        self._num_free = max_turns
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> Turn:
        """A turn, at once where one is free."""
        if self._num_free > 0:
            self._num_free -= 1
            return Turn(self)
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled():
                self.give_back()
            raise
        return Turn(self)

    def give_back(self) -> None:
        """A turn is over: it is the next one's."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._num_free += 1
