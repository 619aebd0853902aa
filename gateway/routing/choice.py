"""What a policy says: one of the replicas it was shown, why, and what each would have cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..types import Candidate, ReplicaView, RouteRequest


@dataclass(frozen=True, slots=True)
class Choice:
    """``view`` for ``reason``; ``candidates`` only if an explanation was asked for."""

    view: ReplicaView
    reason: str
    candidates: tuple[Candidate, ...] = ()


class Policy(Protocol):
    """Chooses among replicas that may take the request; there is at least one."""

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """One of ``views``; chance only from ``generator``."""
        ...


def num_requests(view: ReplicaView) -> int:
    """Requests that a replica has, or that are on their way to it."""
    report = view.report
    return report.num_running + report.num_waiting + view.load.num_requests


def by_requests(request: RouteRequest, views: Sequence[ReplicaView]) -> tuple[Candidate, ...]:
    """For policies that know nothing but how many requests a replica has: those as the cost."""
    matched = request.num_matched_tokens
    return tuple(
        Candidate(
            replica_id=view.replica_id,
            cost=float(num_requests(view)),
            num_matched_tokens=matched.get(view.replica_id, 0),
        )
        for view in views
    )
