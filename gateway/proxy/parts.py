"""What the proxy works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import ProxyLimits
from ..metrics import GatewayMetrics
from ..types import FleetSnapshot, ReplicaView, RouteRequest
from .guard import Watchdog
from .job import Job
from .retry_budget import RetryBudget
from .turns import Turns
from .upstream import Upstream

if TYPE_CHECKING:
    from ..adapters.directory import AdapterDirectory
    from ..routing.router import Router
    from ..view.fleet_view import FleetView
    from ..view.key_index import KeyIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyParts:
    """All of it, of one gateway.

    ``shares_responses``: replicas keep responses in one Redis, so that what one of them says of
    those is what all would say.
    """

    view: FleetView
    router: Router
    index: KeyIndex
    adapters: AdapterDirectory
    upstream: Upstream
    metrics: GatewayMetrics
    watchdog: Watchdog
    budget: RetryBudget
    limits: ProxyLimits
    turns: Turns
    shares_responses: bool = False

    def route_request(self, job: Job, excluded: frozenset[str]) -> RouteRequest:
        """What routing is told of a request now."""
        return RouteRequest(
            target=job.target,
            num_prompt_tokens=job.num_prompt_tokens,
            num_matched_tokens=self._matched_tokens(job),
            affinity=job.affinity,
            excluded=excluded,
        )

    def _matched_tokens(self, job: Job) -> dict[str, int]:
        """Prefix keys that replicas hold, as tokens."""
        keys: Sequence[bytes] = job.prefix_keys
        if not keys:
            return {}
        per_key, most = job.tokens_per_key, job.num_prompt_tokens
        return {
            replica_id: min(int(num_keys * per_key), most)
            for replica_id, num_keys in self.index.matched(keys).items()
        }


def replica_of(snapshot: FleetSnapshot, replica_id: str) -> ReplicaView | None:
    """The replica of that id, if it is known now."""
    return next((r for r in snapshot.replicas if r.replica_id == replica_id), None)
