"""Looks at replicas themselves: static members, and everyone while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from typing import TypeVar

import aiohttp
import msgspec

from ..fleet.headers import FLEET_SECRET
from ..fleet.records import AdapterPlaces, ReplicaReport
from .sightings import Heard, PlacesVersion, Sightings, stale_places

MAX_ANSWER_BYTES = 16 << 20
MAX_AT_ONCE = 64

D = TypeVar("D", ReplicaReport, AdapterPlaces)


class DirectPoller:
    """Asks each replica over HTTP; ``timeout`` seconds bound one answer."""

    def __init__(self, session: aiohttp.ClientSession, secret: str, timeout: float = 0.4) -> None:
        self._session = session
        self._headers = {FLEET_SECRET: secret}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def poll(self, urls: Collection[str], known: Mapping[str, PlacesVersion]) -> Sightings:
        """One look at these; who does not answer is not in it. Never raises for a replica."""
        answers = await asyncio.gather(*(self._report(url) for url in urls))
        now = time.monotonic()
        heard = {
            report.replica_id: Heard(report, now - made_at)
            for report, made_at in filter(None, answers)
        }
        stale = stale_places(heard, known)
        places = await asyncio.gather(*(self._places(heard[one].report.url) for one in stale))
        found = zip(stale, places, strict=True)
        return Sightings(replicas=heard, places={one: got for one, got in found if got is not None})

    async def _report(self, url: str) -> tuple[ReplicaReport, float] | None:
        report = await self._get(f"{url}/fleet/state", ReplicaReport)
        if report is None:
            return None
        # Its own word for its address may mean nothing on this side of a network.
        return msgspec.structs.replace(report, url=url), time.monotonic()

    async def _places(self, url: str) -> AdapterPlaces | None:
        return await self._get(f"{url}/fleet/adapters", AdapterPlaces)

    async def _get(self, url: str, kind: type[D]) -> D | None:
        try:
            async with (
                self._turns,
                self._session.get(
                    url, headers=self._headers, timeout=self._timeout, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    return None
                text = await _bounded(response)
                return msgspec.json.decode(text, type=kind)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The body; ValueError if it is larger than any honest one."""
    text = bytearray()
    async for piece in response.content.iter_any():
        text += piece
        if len(text) > MAX_ANSWER_BYTES:
            raise ValueError("too large")
    return bytes(text)
