"""Looks at the fleet through Redis: one call, and one more when adapters moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, TypeVar

import msgspec

from ..fleet.connection import RedisLink
from ..fleet.records import AdapterPlaces, GatewayReport, ReplicaReport
from ..fleet.redis_names import RedisNames
from ..fleet.script import Script
from .sightings import Heard, PlacesVersion, Sightings, stale_places

MAX_MEMBERS = 1024
"""Replicas or gateways that are looked at; a fleet of more is a mistake."""

R = TypeVar("R", ReplicaReport, GatewayReport)

_POLL = Script(resources.files(__package__).joinpath("poll.lua").read_text())


class RedisPoller:
    """Tells how this gateway stands and learns how all others do."""

    def __init__(self, link: RedisLink, names: RedisNames, forget_seconds: float = 60.0) -> None:
        self.link = link
        self._names = names
        self._forget_milliseconds = int(forget_seconds * 1000)

    async def poll(self, own: GatewayReport, known: Mapping[str, PlacesVersion]) -> Sightings:
        """One look; raises RedisDown."""
        names = self._names
        keys = (names.replicas, names.beats, names.gateways, names.gateway_beats)
        args = (own.gateway_id, msgspec.json.encode(own), self._forget_milliseconds)
        answer = await self.link.run(lambda client: _POLL.run(client, keys, args))
        now = float(answer[0])
        replicas = _heard(answer[1], answer[2], now, ReplicaReport)
        return Sightings(
            replicas=replicas,
            gateways=_heard(answer[3], answer[4], now, GatewayReport),
            places=await self._places(stale_places(replicas, known)),
        )

    async def _places(self, replica_ids: Sequence[str]) -> dict[str, AdapterPlaces]:
        if not replica_ids:
            return {}
        keys = [self._names.adapters(replica_id) for replica_id in replica_ids]
        # MGET by its plain name: in Cluster all these keys are of one slot.
        texts = await self.link.run(lambda client: _mget(client, keys))
        decoded = (_decode(text, AdapterPlaces) for text in texts)
        return {
            replica_id: places
            for replica_id, places in zip(replica_ids, decoded, strict=True)
            if places is not None
        }


async def _mget(client: Any, keys: Sequence[str]) -> list[bytes | None]:
    values: list[bytes | None] = await client.execute_command("MGET", *keys)
    return values


def _heard(
    reports: Sequence[bytes], beats: Sequence[bytes], now: float, kind: type[R]
) -> dict[str, Heard[R]]:
    """Reports that can be read, from a hash and a sorted set as flat lists; ages in seconds."""
    ages = {
        member: (now - float(beat)) / 1000
        for member, beat in zip(beats[::2], beats[1::2], strict=True)
    }
    heard: dict[str, Heard[R]] = {}
    for member, text in list(zip(reports[::2], reports[1::2], strict=True))[:MAX_MEMBERS]:
        report = _decode(text, kind)
        if report is not None and member in ages and _id(report) == member.decode(errors="replace"):
            heard[_id(report)] = Heard(report, ages[member])
    return heard


def _id(report: ReplicaReport | GatewayReport) -> str:
    return report.replica_id if isinstance(report, ReplicaReport) else report.gateway_id


D = TypeVar("D", ReplicaReport, GatewayReport, AdapterPlaces)


def _decode(text: bytes | None, kind: type[D]) -> D | None:
    """None for what is absent, or was written by something that is no replica of ours."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
