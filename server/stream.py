"""Answers that leave as server-sent events, and answers that stop when their reader leaves."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..gateway.fleet.http_server import ABORT
from .errors import ApiError, to_api_error
from .fleet.keep_alive import KEEP_ALIVE_SECONDS, kept_alive
from .fleet.resume_state import StreamState
from .wire import DONE_EVENT

T = TypeVar("T")

# 499: nginx's word for a client that closed the connection; nobody reads it but the log.
CLIENT_LEFT_STATUS = 499


class ClientLeft(Exception):  # noqa: N818 - not an error of anyone's
    """The client closed the connection before its answer was there."""


class Framing(Protocol):
    """What is an endpoint's own about the end of its streams."""

    done: bytes

    def failure(self, error: ApiError) -> bytes:
        """The event that says why a stream ends early."""


class EventStream(Response):
    """Sends events until they end, fail or the client leaves; then ``events`` is closed.

    The first event is awaited before the status line goes out, so that what fails until
    then is an ordinary error answer. A later failure is an event with ``error``. With ``state``
    the stream is a gateway's: that describes a failure too, no second passes in silence, and it
    ends with ``[DONE]`` whatever its endpoint's do. A client that takes nothing for
    ``client_timeout`` seconds has its connection cut.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes],
        framing: Framing,
        state: StreamState | None = None,
        client_timeout: float = math.inf,
    ) -> None:
        super().__init__(media_type=self.media_type)
        self._first = first
        self._events = events
        self._framing = framing
        self._state = state
        self._client_timeout = client_timeout
        self._sends_since: float | None = None
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        sender = asyncio.ensure_future(self._send(self._timed(send)))
        watcher = asyncio.ensure_future(_until_disconnect(receive))
        try:
            await self._first_of(sender, watcher)
            if not (sender.done() or watcher.done()):
                scope.get("extensions", {}).get(ABORT, bool)()
            if sender.done():
                sender.result()
        finally:
            await _cancel(sender, watcher)

    def _timed(self, send: Send) -> Send:
        """``send``, with a note of since when a client does not take what is sent."""

        async def timed(message: Message) -> None:
            self._sends_since = time.monotonic()
            await send(message)
            self._sends_since = None

        return timed

    async def _first_of(self, sender: asyncio.Future[None], watcher: asyncio.Future[None]) -> None:
        """Until one is done, or the client takes nothing any more."""
        longest = self._client_timeout
        pause = None if math.isinf(longest) else longest / 4
        while True:
            done, _ = await asyncio.wait(
                {sender, watcher}, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
            since = self._sends_since
            if done or (since is not None and time.monotonic() - since > longest):
                return

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events):
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            if self._state is None:
                await self._send_events(send)
            else:
                async with kept_alive(send, KEEP_ALIVE_SECONDS) as send_alive:
                    await self._send_events(send_alive)

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except Exception as error:
            event = self._failure(to_api_error(error))
            await send({"type": "http.response.body", "body": event, "more_body": True})
        done = self._framing.done if self._state is None else DONE_EVENT
        await send({"type": "http.response.body", "body": done, "more_body": False})

    def _failure(self, error: ApiError) -> bytes:
        event = self._framing.failure(error)
        return event if self._state is None else self._state.with_failure(event, error)


async def start_stream(
    request: Request,
    events: AsyncGenerator[bytes],
    framing: Framing,
    state: StreamState | None = None,
    client_timeout: float = math.inf,
) -> EventStream:
    """A stream whose first event is there, or that has none; raises what comes before it."""
    try:
        first = await while_connected(request, anext(events, b""))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events, framing, state, client_timeout)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled, with ClientLeft, when the client leaves."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_until_disconnect(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            raise ClientLeft
        return worker.result()
    finally:
        await _cancel(worker, watcher)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
