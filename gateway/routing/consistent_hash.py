"""Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil

from ..types import ReplicaView, RouteRequest
from .choice import Choice, by_requests, num_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHash:
    """Equal affinities go to one replica unless it has ``slack`` times the average of requests.

    A full one's requests go to the next in their own order of replicas. That order is rendezvous
    hashing's (Thaler and Ravishankar, 1998) instead of a ring's: no state, evenly spread, and
    a replica that goes moves only what it had.
    """

    slack: float = 1.25

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """The first in the affinity's order that is not full; somebody never is."""
        counts = {view.replica_id: num_requests(view) for view in views}
        bound = ceil(self.slack * (sum(counts.values()) + 1) / len(views))
        ordered = sorted(views, key=lambda view: _weight(request.affinity, view), reverse=True)
        view = next(view for view in ordered if counts[view.replica_id] < bound)
        reason = "hash" if view is ordered[0] else "load"
        return Choice(view, reason, by_requests(request, views) if explain else ())


def _weight(affinity: bytes, view: ReplicaView) -> bytes:
    return blake2b(affinity + view.replica_id.encode(), digest_size=8).digest()
