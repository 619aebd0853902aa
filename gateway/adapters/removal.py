"""Versions that replicas are to forget now, and how far they have got with it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..fleet.versions import VersionRemoval
from .bringing import Bringer
from .replica_client import ReplicaFailed, ReplicaRefused

MIN_AGE_SECONDS = 2.0
"""A version that was put so lately may be just about to get another name."""
RETRY_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal has come to; ``requests`` still hold it, bytes are free again."""

    name: str
    done: bool
    requests: int
    device_bytes: int
    host_bytes: int


async def remove(bringer: Bringer, name: str, version_ids: Sequence[str], wait: float) -> Removal:
    """Have all replicas forget versions that no name needs; waits ``wait`` seconds for it.

    What can't be done now, placement does later.
    """
    deadline = time.monotonic() + wait
    removals: list[VersionRemoval] = []
    left = list(version_ids)
    while left:
        seconds = max(0.0, deadline - time.monotonic())
        calls = [
            bringer.forget(version_id, bringer.up(), wait=seconds, min_age=MIN_AGE_SECONDS)
            for version_id in left
        ]
        results = await asyncio.gather(*calls)
        removals += [r for all_of in results for r in all_of if isinstance(r, VersionRemoval)]
        left = [v for v, all_of in zip(left, results, strict=True) if any(map(_is_left, all_of))]
        if not left or time.monotonic() + RETRY_SECONDS > deadline:
            break
        await asyncio.sleep(RETRY_SECONDS)
    return Removal(
        name=name,
        done=not left and all(removal.done for removal in removals),
        requests=sum(removal.requests for removal in removals if not removal.done),
        device_bytes=sum(removal.freed_device_bytes for removal in removals),
        host_bytes=sum(removal.freed_host_bytes for removal in removals),
    )


def _is_left(result: object) -> bool:
    """Whether a replica may still have it."""
    if isinstance(result, ReplicaRefused):
        return result.status != 404
    return isinstance(result, ReplicaFailed)
