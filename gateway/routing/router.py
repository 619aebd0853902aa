"""Chooses a replica for each request by the policy that was configured."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..types import Decision, FleetSnapshot, RouteRequest
from .choice import Choice, Policy
from .consistent_hash import ConsistentHash
from .cost import CostPolicy
from .eligible import eligible
from .plain import LeastLoaded, RoundRobin

POLICIES: Mapping[str, Callable[[], Policy]] = MappingProxyType(
    {
        "cost": CostPolicy,
        "round-robin": RoundRobin,
        "least-loaded": LeastLoaded,
        "consistent-hash": ConsistentHash,
    }
)


def policy_named(name: str) -> Policy:
    """A fresh policy; ValueError names what there is."""
    if name not in POLICIES:
        raise ValueError(f"policy: {name!r} is none of {', '.join(POLICIES)}")
    return POLICIES[name]()


class Router:
    """Never waits; with equal seeds and requests it decides equally."""

    def __init__(self, policy: Policy | None = None, seed: int | None = None) -> None:
        self._policy = policy or CostPolicy()
        self._random = random.Random(seed)

    def choose(
        self, request: RouteRequest, snapshot: FleetSnapshot, explain: bool = False
    ) -> Decision | None:
        """Where the request goes; None if no replica that is up can serve it.

        ``explain`` fills in ``candidates``, which most requests need not pay for.
        """
        views = eligible(request, snapshot)
        if not views:
            return None
        choice = self._policy.choose(request, views, self._random, explain)
        return _decision(request, choice, is_only=len(views) == 1)


def _decision(request: RouteRequest, choice: Choice, is_only: bool) -> Decision:
    report = choice.view.report
    num_prompt_tokens = request.num_prompt_tokens
    matched = min(request.num_matched_tokens.get(report.replica_id, 0), num_prompt_tokens)
    return Decision(
        replica_id=report.replica_id,
        url=report.url,
        reason="only" if is_only else choice.reason,
        num_matched_tokens=matched,
        num_uncached_tokens=num_prompt_tokens - matched,
        candidates=choice.candidates,
    )
