"""One upload to several replicas at once: as fast as the slowest, and never held whole."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import GatewayError
from ..fleet.versions import BlobAnswer
from ..types import ReplicaView
from .asking import NO_REPLICA, Patience, Standing
from .replica_client import ReplicaClient, ReplicaFailed, ReplicaRefused

MAX_QUEUED_CHUNKS = 8
WATCH_SECONDS = 0.5
STALL_SECONDS = 30.0
"""A replica that takes or says nothing for so long is left behind."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An archive, and the replicas that hold all of it."""

    blob: BlobAnswer
    holders: tuple[ReplicaView, ...]


class _Branch:
    """The way to one replica."""

    def __init__(
        self, client: ReplicaClient, replica: ReplicaView, content_type: str, standing: Standing
    ) -> None:
        self.replica = replica
        self._patience = Patience(lambda: standing(replica))
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_QUEUED_CHUNKS)
        call = client.post_blob(replica.report.url, self._chunks(), content_type)
        self.task = asyncio.create_task(call)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while (chunk := await self._queue.get()) is not None:
            yield chunk

    async def give(self, chunk: bytes | None, stall_seconds: float) -> None:
        """Hand on a piece, None at the end; one that takes none is given up."""
        if self.task.done():
            return
        giving = asyncio.create_task(self._queue.put(chunk))
        try:
            await self._wait({giving, self.task}, stall_seconds)
        finally:
            if not giving.done():
                giving.cancel()
                self.task.cancel()

    async def finish(self, stall_seconds: float) -> None:
        """Wait for the replica's answer."""
        await self._wait({self.task}, stall_seconds)

    async def _wait(self, tasks: set[asyncio.Task[Any]], stall_seconds: float) -> None:
        """Until one of ``tasks`` is done, the replica is lost, or nothing came for too long."""
        deadline = time.monotonic() + stall_seconds
        while (left := deadline - time.monotonic()) > 0 and not self._patience.is_over():
            done, _ = await asyncio.wait(
                tasks, timeout=min(WATCH_SECONDS, left), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return

    def refusal(self) -> ReplicaRefused | None:
        """Why the replica does not want it, if it has said so."""
        if not self.task.done() or self.task.cancelled():
            return None
        error = self.task.exception()
        return error if isinstance(error, ReplicaRefused) else None

    async def close(self) -> None:
        """End it, wherever it is."""
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, ReplicaFailed):
            await self.task


async def fan_out(
    client: ReplicaClient,
    replicas: Sequence[ReplicaView],
    chunks: AsyncIterator[bytes],
    content_type: str,
    standing: Standing,
    stall_seconds: float = STALL_SECONDS,
) -> Uploaded:
    """Send ``chunks`` to all of ``replicas``; those that fail on the way are left behind.

    Raises GatewayError: a replica's refusal as it is, 503 where none holds it in the end. Whatever
    ``chunks`` raises ends all of it.
    """
    branches = [_Branch(client, replica, content_type, standing) for replica in replicas]
    try:
        async for chunk in chunks:
            if chunk:
                await _give_all(branches, chunk, stall_seconds)
            if all(branch.task.done() for branch in branches):
                break
        await _give_all(branches, None, stall_seconds)
        await asyncio.gather(*(branch.finish(stall_seconds) for branch in branches))
        return _result(branches)
    finally:
        for branch in branches:
            await branch.close()


async def _give_all(branches: Sequence[_Branch], chunk: bytes | None, stall_seconds: float) -> None:
    await asyncio.gather(*(branch.give(chunk, stall_seconds) for branch in branches))
    for branch in branches:
        if (refusal := branch.refusal()) is not None:
            raise refusal.as_answer()


def _result(branches: Sequence[_Branch]) -> Uploaded:
    held: dict[str, list[ReplicaView]] = {}
    answers: dict[str, BlobAnswer] = {}
    for branch in branches:
        if (refusal := branch.refusal()) is not None:
            raise refusal.as_answer()
        task = branch.task
        if not task.done() or task.cancelled() or task.exception() is not None:
            continue
        answer = task.result()
        answers[answer.sha256] = answer
        held.setdefault(answer.sha256, []).append(branch.replica)
    if not held:
        raise GatewayError(503, "No replica has taken the upload to its end.", code=NO_REPLICA)
    sha256 = max(held, key=lambda key: len(held[key]))
    return Uploaded(answers[sha256], tuple(held[sha256]))
