"""What replicas say of versions, asked of all at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ..fleet.versions import VersionReport
from ..types import ReplicaView
from .records import AdapterVersion
from .replica_client import ReplicaClient, ReplicaFailed


@dataclass(frozen=True, slots=True)
class Reports:
    """By version id and replica id; ``replicas`` are those that have answered with something."""

    replicas: tuple[ReplicaView, ...]
    of_version: dict[str, dict[str, VersionReport]]

    def of(self, version_id: str) -> dict[str, VersionReport]:
        """One version's, by replica id."""
        return self.of_version.get(version_id, {})


async def reports_of(
    client: ReplicaClient, replicas: Sequence[ReplicaView], version: AdapterVersion | None
) -> Reports:
    """Ask ``replicas`` of one version, or of all; who does not answer is left out."""

    async def ask(replica: ReplicaView) -> list[VersionReport]:
        try:
            if version is None:
                return await client.list_versions(replica.report.url)
            return [await client.get_version(replica.report.url, version.version_id)]
        except ReplicaFailed:
            return []

    found: dict[str, dict[str, VersionReport]] = {}
    answering: list[ReplicaView] = []
    answers = await asyncio.gather(*map(ask, replicas))
    for replica, reports in zip(replicas, answers, strict=True):
        if reports:
            answering.append(replica)
        for report in reports:
            found.setdefault(report.version_id, {})[replica.replica_id] = report
    return Reports(tuple(answering), found)
