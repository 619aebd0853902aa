"""A stream that says that it lives while it has nothing to say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Message, Send

from ...gateway.fleet.resume import KEEP_ALIVE

KEEP_ALIVE_SECONDS = 1.0


@asynccontextmanager
async def kept_alive(send: Send, seconds: float = KEEP_ALIVE_SECONDS) -> AsyncIterator[Send]:
    """``send`` for the body of a stream that is never silent for longer than ``seconds``."""
    line = _Line(send, seconds)
    keeper = asyncio.create_task(line.keep())
    try:
        yield line.send
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


class _Line:
    """One message at a time: a slow client gets no comments on top of what it has not read."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._clock = asyncio.get_running_loop().time
        self._last = self._clock()

    async def send(self, message: Message) -> None:
        async with self._lock:
            await self._send(message)
            self._last = self._clock()

    async def keep(self) -> None:
        message = {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True}
        while True:
            await asyncio.sleep(self._last + self._seconds - self._clock())
            async with self._lock:
                if self._clock() - self._last >= self._seconds:
                    await self._send(message)
                    self._last = self._clock()
