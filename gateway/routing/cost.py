"""The cost rule: a request goes where it takes the fewest seconds, its own and everyone else's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from ..types import Candidate, ReplicaView, RouteRequest
from .choice import Choice, num_requests

MIN_WARMTH = 0.05


class Cost(NamedTuple):
    """One replica's terms in seconds; ``total`` orders replicas."""

    total: float
    queue: float
    prefill: float
    decode: float
    adapter: float
    num_matched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CostPolicy:
    """Least of ``((Q + (1 + recompute_penalty) U) / P + decode_seconds D + w A) / warmth``.

    ``Q`` are uncached prompt tokens queued at the replica or on their way to it, ``U`` this
    request's tokens that are not cached there, ``P`` its prompt tokens a second, ``D`` its
    requests and ``A`` the seconds until the adapter is on its device, weighted by ``w =
    adapter_weight``. ``recompute_penalty`` is the delay that recomputing a prefix puts on
    everyone behind it. A hot prefix spreads by itself: once ``Q`` where it lies outweighs
    computing it again, another replica is cheaper, and from then on two hold it.

    ``default_*`` stand in for what a replica has not measured yet; for the prompt rate that is
    the median of those that have. Costs within ``near_seconds`` of the least
    are a tie: of two of them, drawn at random, the one with fewer requests takes it
    (Mitzenmacher, The Power of Two Choices, 2001), so that gateways with one view don't herd.
    """

    recompute_penalty: float = 3.0
    decode_seconds: float = 0.02
    adapter_weight: float = 2.0
    default_prefill_rate: float = 5_000.0
    default_host_seconds: float = 0.005
    default_cold_seconds: float = 0.5
    absent_factor: float = 1.25
    near_seconds: float = 0.002

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """The cheapest, or one of those that are about as cheap."""
        costs = self.costs(request, views)
        least = min(cost.total for cost in costs)
        bound = least + self.near_seconds
        near = [index for index, cost in enumerate(costs) if cost.total <= bound]
        index = near[0] if len(near) == 1 else _less_busy(views, near, generator)
        candidates = tuple(map(_candidate, views, costs)) if explain else ()
        return Choice(views[index], _reason(costs, costs[index]), candidates)

    def costs(self, request: RouteRequest, views: Sequence[ReplicaView]) -> list[Cost]:
        """In the order of ``views``."""
        typical = self._typical_rate(views)
        matched, num_tokens = request.num_matched_tokens, request.num_prompt_tokens
        name = None if request.target.digest is None else request.target.wire_name
        penalty, decode_seconds = 1.0 + self.recompute_penalty, self.decode_seconds
        costs = []
        for view in views:
            report, load = view.report, view.load
            rate = report.prefill_tokens_per_second or typical
            num_matched = min(matched.get(report.replica_id, 0), num_tokens)
            queue = (report.num_queued_prefill_tokens + load.num_prefill_tokens) / rate
            prefill = penalty * (num_tokens - num_matched) / rate
            num_busy = report.num_running + report.num_waiting + load.num_requests
            decode = decode_seconds * num_busy
            adapter = 0.0 if name is None else self._adapter_seconds(view, name)
            total = queue + prefill + decode + adapter
            if view.warmth < 1.0:
                total /= max(view.warmth, MIN_WARMTH)
            costs.append(Cost(total, queue, prefill, decode, adapter, num_matched))
        return costs

    def _typical_rate(self, views: Sequence[ReplicaView]) -> float:
        rates = [view.report.prefill_tokens_per_second for view in views]
        if all(rates):
            return self.default_prefill_rate
        known = [rate for rate in rates if rate]
        return median(known) if known else self.default_prefill_rate

    def _adapter_seconds(self, view: ReplicaView, name: str) -> float:
        """Weighted seconds until the adapter is on the device."""
        place, report = view.places.get(name), view.report
        tier = None if place is None else place.tier
        if tier == "device":
            return 0.0
        if tier == "host":
            return self.adapter_weight * (report.adapter_host_seconds or self.default_host_seconds)
        cold = report.adapter_cold_seconds or self.default_cold_seconds
        return self.adapter_weight * cold * (self.absent_factor if place is None else 1.0)


def _less_busy(views: Sequence[ReplicaView], near: Sequence[int], generator: random.Random) -> int:
    one, other = generator.sample(near, 2)
    return one if num_requests(views[one]) <= num_requests(views[other]) else other


def _candidate(view: ReplicaView, cost: Cost) -> Candidate:
    return Candidate(
        replica_id=view.replica_id,
        cost=cost.total,
        queue_seconds=cost.queue,
        prefill_seconds=cost.prefill,
        decode_seconds=cost.decode,
        adapter_seconds=cost.adapter,
        num_matched_tokens=cost.num_matched,
    )


def _reason(costs: Sequence[Cost], chosen: Cost) -> str:
    """What sets the chosen one apart: a longer prefix, a nearer adapter, or only its load."""
    most = max(cost.num_matched for cost in costs)
    if chosen.num_matched == most and any(cost.num_matched < most for cost in costs):
        return "prefix"
    nearest = min(cost.adapter for cost in costs)
    if chosen.adapter == nearest and any(cost.adapter > nearest for cost in costs):
        return "adapter"
    return "load"
