"""One raw ASGI request, whose client can leave in the middle of the answer."""

from __future__ import annotations

import asyncio
from typing import Any

Messages = list[dict[str, Any]]


class AsgiRequest:
    """Sends ``body`` in one piece; ``leave`` is what a closed connection looks like.

    The client stops reading after ``max_messages``.
    """

    def __init__(self, app: Any, path: str, body: bytes, max_messages: int | None = None) -> None:
        self.sent: Messages = []
        self._max_messages = max_messages
        self._body: bytes | None = body
        self._left = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "scheme": "http",
            "server": ("test", 80),
            "client": ("test", 1),
            "root_path": "",
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if len(self.sent) == self._max_messages:
            await asyncio.Event().wait()

    @property
    def num_chunks(self) -> int:
        """Pieces of the answer's body so far."""
        return sum(message["type"] == "http.response.body" for message in self.sent)

    def leave(self) -> None:
        """Close the connection."""
        self._left.set()


async def until(condition: Any, seconds: float = 5) -> None:
    """Let the event loop run until ``condition()`` holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)
