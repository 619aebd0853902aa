"""Policies that look neither at prefixes nor at adapters, to compare with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..types import ReplicaView, RouteRequest
from .choice import Choice, by_requests, num_requests


class RoundRobin:
    """One replica after the other, in the order of their ids."""

    def __init__(self) -> None:
        self._last = ""

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """The one behind the last."""
        ordered = sorted(views, key=lambda view: view.replica_id)
        behind = (view for view in ordered if view.replica_id > self._last)
        view = next(behind, ordered[0])
        self._last = view.replica_id
        return Choice(view, "turn", by_requests(request, views) if explain else ())


class LeastLoaded:
    """The one with the fewest requests, one of them at random if there are several."""

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """Counts requests only, as most balancers do; a cold replica looks as busy as all."""
        counts = [num_requests(view) for view in views]
        least = min(counts)
        near = [view for view, count in zip(views, counts, strict=True) if count == least]
        candidates = by_requests(request, views) if explain else ()
        return Choice(generator.choice(near), "load", candidates)
