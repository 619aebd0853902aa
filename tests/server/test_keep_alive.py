"""Comments that keep a silent stream alive."""

from __future__ import annotations

import asyncio
from typing import Any

from asgi_client import until

from branchline.gateway.fleet.resume import KEEP_ALIVE
from branchline.server.fleet.keep_alive import kept_alive

EVENT = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


class Client:
    """Reads all that is sent, but nothing while it is stuck."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.can_read = asyncio.Event()
        self.can_read.set()
        self.num_sending = 0

    async def send(self, message: Any) -> None:
        self.num_sending += 1
        assert self.num_sending == 1, "two messages at once"
        await self.can_read.wait()
        self.read.append(message["body"])
        self.num_sending -= 1


async def test_silence_is_broken_and_ends_with_the_stream() -> None:
    client = Client()
    async with kept_alive(client.send, 0.001) as send:
        await send(EVENT)
        await until(lambda: len(client.read) > 3)
    assert client.read[0] == EVENT["body"]
    assert set(client.read[1:]) == {KEEP_ALIVE}
    num_read = len(client.read)
    await asyncio.sleep(0.01)
    assert len(client.read) == num_read


async def test_a_busy_stream_needs_none() -> None:
    client = Client()
    async with kept_alive(client.send, 60) as send:
        for _ in range(100):
            await send(EVENT)
            await asyncio.sleep(0)
    assert client.read == [EVENT["body"]] * 100


async def test_a_client_that_is_stuck_gets_one_at_most() -> None:
    client = Client()
    async with kept_alive(client.send, 0.001) as send:
        client.can_read.clear()
        await until(lambda: client.num_sending == 1)
        sending = asyncio.create_task(send(EVENT))
        await asyncio.sleep(0.01)
        client.can_read.set()
        await sending
        assert client.read[:2] == [KEEP_ALIVE, EVENT["body"]]


async def test_a_client_that_is_gone_ends_nothing() -> None:
    async def fail(message: Any) -> None:
        raise OSError("gone")

    async with kept_alive(fail, 0.001):
        await asyncio.sleep(0.01)
