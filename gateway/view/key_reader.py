"""Keeps a KeyIndex up to date: from streams in Redis, else from the replicas themselves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec
from redis.exceptions import RedisError

from ..fleet.connection import Client, RedisDown, RedisLink
from ..fleet.headers import FLEET_SECRET
from ..fleet.key_answer import KeyAnswer, decode_answer
from ..fleet.records import KeyEvents, ReplicaReport
from ..fleet.redis_names import RedisNames
from .key_index import KeyIndex

MAX_ENTRIES = 128
"""Of each stream at a time."""
MAX_FETCHES = 8
GRACE_SECONDS = 1.0
"""How long a batch may be on its way through Redis."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 8.0
FETCH_SECONDS = 3.0
LEAST_SECONDS = 0.2
"""From one answer to the next question."""
MAX_ANSWER_BYTES = 32 << 20
BEGIN = "0-0"

logger = logging.getLogger(__name__)


class KeyFetch(Protocol):
    """Asks a replica for what follows a batch; ``epoch`` None: for all."""

    async def __call__(self, url: str, epoch: str | None, after: int) -> KeyAnswer:
        """Raises OSError or ValueError where that fails, aiohttp's errors included."""


@dataclass(frozen=True, slots=True)
class HttpKeyFetch:
    """``GET /fleet/keys``; ``secret`` is the fleet's."""

    session: aiohttp.ClientSession
    secret: str

    async def __call__(self, url: str, epoch: str | None, after: int) -> KeyAnswer:
        """See ``KeyFetch``."""
        asked = {} if epoch is None else {"epoch": epoch, "after": str(after)}
        async with self.session.get(
            f"{url}/fleet/keys",
            params=asked,
            headers={FLEET_SECRET: self.secret},
            timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS),
            allow_redirects=False,
        ) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            async for part in response.content.iter_chunked(1 << 16):
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
        return decode_answer(bytes(body))


@dataclass(slots=True)
class _Source:
    """How far one replica's keys are read. Times are the clock's."""

    report: ReplicaReport
    cursor: str = BEGIN
    behind_since: float | None = None
    has_gap: bool = False
    fetch: asyncio.Task[None] | None = None
    not_before: float = 0.0
    retry_seconds: float = FIRST_RETRY_SECONDS


class KeyReader:
    """Reads all replicas' keys; what can't be had now is tried again, less and less often.

    Batches come from Redis while it is up. A replica is asked itself for all its keys at first,
    when batches are missing, and for those that follow while there is no Redis.
    """

    def __init__(
        self,
        index: KeyIndex,
        names: RedisNames,
        fetch: KeyFetch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = index
        self.num_fetches = 0
        self._names = names
        self._fetch = fetch
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._decoder = msgspec.msgpack.Decoder(KeyEvents)

    async def poll(self, reports: Iterable[ReplicaReport], link: RedisLink | None) -> None:
        """One look; ``reports`` are of all replicas that there are. Raises nothing for the fleet's
        troubles, and waits for no replica.
        """
        self._take_reports(reports)
        read = await self._read_streams(link) if link is not None else False
        now = self._clock()
        for source in self._sources.values():
            if source.fetch is None and self._must_fetch(source, now, through_redis=read):
                self._start_fetch(source)

    async def close(self) -> None:
        """End what is on its way."""
        tasks = [source.fetch for source in self._sources.values() if source.fetch is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_reports(self, reports: Iterable[ReplicaReport]) -> None:
        now = {report.replica_id: report for report in reports}
        # A request that was routed just before a replica went may expect keys there after.
        for replica_id in (self._sources.keys() | self.index.replica_ids) - now.keys():
            source = self._sources.pop(replica_id, None)
            if source is not None and source.fetch is not None:
                source.fetch.cancel()
            self.index.drop(replica_id)
        for replica_id, report in now.items():
            source = self._sources.setdefault(replica_id, _Source(report))
            if report.epoch != source.report.epoch:
                source.not_before = 0.0
                source.behind_since, source.has_gap = None, False
            source.report = report

    async def _read_streams(self, link: RedisLink) -> bool:
        """Whether Redis answered."""
        asked = {
            self._names.keys(replica_id): source
            for replica_id, source in self._sources.items()
            if source.fetch is None and not source.has_gap and self._is_known(source)
        }
        if not asked:
            return link.is_up
        cursors: dict[Any, Any] = {name: source.cursor for name, source in asked.items()}

        async def read(client: Client) -> Any:
            return await client.xread(cursors, count=MAX_ENTRIES)

        try:
            streams = await link.run(read)
        except (RedisDown, RedisError):
            return False
        for name, entries in streams:
            source = asked.get(name.decode())
            if source is not None and source.fetch is None:
                self._take_entries(source, entries)
        return True

    def _is_known(self, source: _Source) -> bool:
        position = self.index.position(source.report.replica_id)
        return position is not None and position[0] == source.report.epoch

    def _take_entries(self, source: _Source, entries: Sequence[tuple[bytes, Any]]) -> None:
        """Apply what follows; at a gap the cursor stays, for after the fetch."""
        report = source.report
        for entry_id, fields in entries:
            events = self._decode(fields)
            if (
                events is not None
                and events.epoch == report.epoch
                and not self.index.apply(report.replica_id, events)
            ):
                source.has_gap = True
                return
            source.cursor = entry_id.decode()

    def _decode(self, fields: Mapping[bytes, bytes]) -> KeyEvents | None:
        """None for what nobody of ours wrote."""
        try:
            return self._decoder.decode(fields[b"e"])
        except (KeyError, msgspec.MsgspecError):
            return None

    def _must_fetch(self, source: _Source, now: float, *, through_redis: bool) -> bool:
        position = self.index.position(source.report.replica_id)
        if position is None or position[0] != source.report.epoch or source.has_gap:
            return now >= source.not_before
        if position[1] >= source.report.key_sequence:
            source.behind_since = None
            return False
        if source.behind_since is None:
            source.behind_since = now
        patience = GRACE_SECONDS if through_redis else 0.0
        return now >= max(source.not_before, source.behind_since + patience)

    def _start_fetch(self, source: _Source) -> None:
        if sum(other.fetch is not None for other in self._sources.values()) >= MAX_FETCHES:
            return
        self.num_fetches += 1
        source.fetch = asyncio.create_task(self._bring_up(source), name="prefix keys")

    async def _bring_up(self, source: _Source) -> None:
        """Have one replica's keys as they are now."""
        report = source.report
        position = self.index.position(report.replica_id)
        epoch, after = position or (None, 0)
        try:
            answer = await self._fetch(report.url, epoch, after)
            await self._take_answer(report.replica_id, answer)
        except (OSError, TimeoutError, ValueError, aiohttp.ClientError) as error:
            logger.warning("prefix keys of %s: %s", report.replica_id, _shown(error))
            source.not_before = self._clock() + source.retry_seconds
            source.retry_seconds = min(2 * source.retry_seconds, LAST_RETRY_SECONDS)
        else:
            source.retry_seconds = FIRST_RETRY_SECONDS
            source.not_before = self._clock() + LEAST_SECONDS
            source.behind_since, source.has_gap = None, False
        finally:
            source.fetch = None

    async def _take_answer(self, replica_id: str, answer: KeyAnswer) -> None:
        if answer.snapshot is not None:
            for _ in self.index.load_steps(replica_id, answer.snapshot):
                await asyncio.sleep(0)
        for events in answer.events:
            if not self.index.apply(replica_id, events):
                raise ValueError(f"batch {events.sequence} follows none that is known")


def _shown(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
