"""Which replicas an adapter version belongs on: pure functions of who is there and what is asked.

Rendezvous hashing (Thaler and Ravishankar 1998): each replica has a weight for each version, the
heaviest hold it. A replica that goes or comes moves only what it held or will hold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

MIN_COPIES = 2
UTILIZATION = 0.5
"""How much of a replica one adapter may take before it gets another copy."""
SHRINK_SECONDS = 120.0
SHRINK_MARGIN = 0.6
"""A copy goes when the rest would be this much in use, and not sooner than after SHRINK_SECONDS."""


def ranked(key: str, candidates: Iterable[str]) -> list[str]:
    """All candidates, the heaviest for ``key`` first."""
    return sorted(candidates, key=lambda candidate: (_weight(key, candidate), candidate))


def _weight(key: str, candidate: str) -> bytes:
    text = f"{len(key)} {key} {candidate}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Copies:
    """How many replicas shall hold a version, and since when (seconds) that is so."""

    count: int
    since: float


def next_copies(
    before: Copies | None, demand: float, capacity: float, num_replicas: int, now: float
) -> Copies:
    """Grow at once with demand, shrink by one at a time and slowly.

    ``demand`` and ``capacity``, what one replica can do, are tokens a second; a capacity of 0 is
    not known, and then nothing grows.
    """
    least = min(MIN_COPIES, num_replicas)
    room = capacity * UTILIZATION
    needed = max(least, min(num_replicas, math.ceil(demand / room) if room > 0 else least))
    if before is None or needed > before.count:
        return Copies(needed, now)
    if before.count > num_replicas:
        return Copies(num_replicas, before.since)
    is_idle = demand <= room * SHRINK_MARGIN * (before.count - 1)
    if needed < before.count and is_idle and now - before.since >= SHRINK_SECONDS:
        return Copies(before.count - 1, now)
    return before


@dataclass(frozen=True, slots=True)
class Placement:
    """One version: the replicas it belongs on, those of them without it, others that have it."""

    version_id: str
    homes: tuple[str, ...]
    missing: tuple[str, ...]
    surplus: tuple[str, ...]


class Ranking:
    """``ranked`` of every version, remembered for as long as the candidates are the same."""

    def __init__(self) -> None:
        self._candidates: tuple[str, ...] = ()
        self._ranked: dict[str, list[str]] = {}

    def of(self, version_id: str, candidates: Collection[str]) -> list[str]:
        """The candidates, the heaviest first; not to be changed."""
        if self._candidates != (given := tuple(candidates)):
            self._candidates, self._ranked = given, {}
        found = self._ranked.get(version_id)
        if found is None:
            found = self._ranked[version_id] = ranked(version_id, given)
        return found

    def keep(self, version_ids: Collection[str]) -> None:
        """Forget all but these."""
        if len(self._ranked) > len(version_ids):
            self._ranked = {v: r for v, r in self._ranked.items() if v in version_ids}


def plan(
    counts: Mapping[str, int],
    members: Sequence[str],
    holders: Mapping[str, Collection[str]],
    ranking: Ranking,
) -> list[Placement]:
    """Where versions belong; ``counts`` are copies and ``holders`` replicas, both by version id."""
    placements = []
    for version_id, count in counts.items():
        homes = ranking.of(version_id, members)[:count]
        held = holders.get(version_id, ())
        placements.append(
            Placement(
                version_id=version_id,
                homes=tuple(homes),
                missing=tuple(home for home in homes if home not in held),
                surplus=tuple(sorted(holder for holder in held if holder not in homes)),
            )
        )
    return placements


class Membership:
    """Which replicas count: those that are up, and those that were until ``grace`` seconds ago.

    A short absence moves nothing. Who says that it is leaving is out at once.
    """

    def __init__(self, grace: float = 10.0) -> None:
        self._grace = grace
        self._up_at: dict[str, float] = {}

    def update(self, up: Iterable[str], leaving: Iterable[str], now: float) -> list[str]:
        """The members at ``now``."""
        self._up_at.update(dict.fromkeys(up, now))
        for replica_id in leaving:
            self._up_at.pop(replica_id, None)
        self._up_at = {r: at for r, at in self._up_at.items() if now - at <= self._grace}
        return sorted(self._up_at)
