"""A bound on a call that tells a slow answer from a slow event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType

# A lagging loop sees its timers before what has come in meanwhile: as many turns are left to it,
# with uvloop as well, to find an answer that is there.
_NUM_TURNS = 3


class Deadline:
    """``async with``: raises TimeoutError after ``seconds``, when no answer has come by then.

    ``has_lagged`` then says that the loop itself was late by as much again, or more.
    """

    def __init__(self, seconds: float) -> None:
        self.has_lagged = False
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Deadline:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._when = self._loop.time() + self._seconds
        self._handle: asyncio.Handle = self._loop.call_at(self._when, self._expire)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _expire(self, num_turns: int = _NUM_TURNS) -> None:
        if num_turns == _NUM_TURNS:
            self.has_lagged = self._loop.time() - self._when > self._seconds
        if num_turns:
            self._handle = self._loop.call_soon(self._expire, num_turns - 1)
        else:
            self._timeout.reschedule(self._loop.time())
