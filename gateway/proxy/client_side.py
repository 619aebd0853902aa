"""The client's side of an exchange: its answer goes out here, and its leaving is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from ..error_shapes import error_value, id_headers, with_own_id
from ..errors import GatewayError
from .guard import ClientGone, Guard
from .header_rules import RawHeaders, encode_headers
from .job import Trail

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = (b"content-type", b"application/json")


class ClientSide:
    """Answers one request; ``headers`` are ours and go with every answer, whatever it is.

    A client that takes nothing for ``timeout`` seconds is given up with ClientGone.
    """

    def __init__(self, send: Send, guard: Guard, trail: Trail, timeout: float) -> None:
        self.headers = id_headers(trail.path, trail.request_id)
        self.has_started = False
        self._send, self._guard, self._trail, self._timeout = send, guard, trail, timeout

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send the head; raises ClientGone."""
        self.has_started = True
        self._trail.status = status
        if self._trail.explain:
            route = self._trail.route_header().encode("latin-1", "replace")
            self.headers.append((b"x-branchline-route", route))
        head = {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, *self.headers],
        }
        # It waits too: for what a pipelining client has not taken of its last answer.
        await self._guard.send(self._send(head), self._timeout)
        self._trail.note_answered()

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body; raises ClientGone."""
        self._guard.is_answered = not more
        message = {"type": "http.response.body", "body": data, "more_body": more}
        await self._guard.send(self._send(message), self._timeout)

    async def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """Send an answer that is complete."""
        if status >= 400:
            body = with_own_id(self._trail.path, body, self._trail.request_id)
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [*headers, length])
        await self.write(body, more=False)

    async def error(self, error: GatewayError) -> None:
        """Send an error, if nothing is sent yet."""
        if not self.has_started:
            value = error_value(self._trail.path, error, self._trail.request_id)
            body = msgspec.json.encode(value)
            await self.whole(error.status, [_JSON, *encode_headers(error.headers)], body)


@asynccontextmanager
async def watched(receive: Receive, guard: Guard) -> AsyncIterator[None]:
    """Interrupt what is done within when the client leaves: raises ClientGone."""
    watching = asyncio.create_task(_watch(receive, guard))
    try:
        yield
    except asyncio.CancelledError:
        if guard.takes_back():
            raise ClientGone("the client left") from None
        raise
    finally:
        watching.cancel()


async def _watch(receive: Receive, guard: Guard) -> None:
    with suppress(asyncio.CancelledError):
        while (await receive())["type"] != "http.disconnect":
            pass
        guard.client_left()
