"""Other gateways' rules, written anew from their documents, as policies of our router's shape.

SGLang's cache-aware rule (sglang-router; vllm-router's is the same): more than 64 requests and 1.5
times between the busiest and the idlest replica: the idlest; otherwise the replica whose past
requests share the longest prefix if that is over 30% of the prompt; otherwise the one with the
smallest record. https://docs.sglang.io/advanced_features/router.html

llm-d's scheduler: the largest of 3 x share of the prompt cached + 2 x (1 - queue, scaled between
the shortest and the longest) + 2 x (1 - KV utilisation), ties at random.
https://llm-d.ai/docs/architecture/core/router/epp/scheduling
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from branchline.gateway.routing.choice import Choice, num_requests
from branchline.gateway.types import ReplicaView, RouteRequest


@dataclass
class SglangCacheAware:
    """Counts requests; its record of who was sent what is the simulation's (``PastIndex``)."""

    cache_threshold: float = 0.3
    balance_abs_threshold: int = 64
    balance_rel_threshold: float = 1.5
    sent_tokens: Counter[str] = field(default_factory=Counter)

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """By the longest prefix unless the loads are far apart."""
        view = self._pick(request, views)
        matched = request.num_matched_tokens.get(view.replica_id, 0)
        self.sent_tokens[view.replica_id] += request.num_prompt_tokens - matched
        return Choice(view, "rival")

    def _pick(self, request: RouteRequest, views: Sequence[ReplicaView]) -> ReplicaView:
        loads = [num_requests(view) for view in views]
        most, least = max(loads), min(loads)
        is_apart = most - least > self.balance_abs_threshold
        if is_apart and most > self.balance_rel_threshold * least:
            return views[loads.index(least)]
        matched = request.num_matched_tokens
        longest = max(views, key=lambda view: matched.get(view.replica_id, 0))
        share = matched.get(longest.replica_id, 0) / request.num_prompt_tokens
        if share > self.cache_threshold:
            return longest
        return min(views, key=lambda view: self.sent_tokens[view.replica_id])


@dataclass(frozen=True)
class LlmdScores:
    """3/2/2: prefix, queue, KV utilisation."""

    prefix_weight: float = 3.0
    queue_weight: float = 2.0
    kv_weight: float = 2.0

    def choose(
        self,
        request: RouteRequest,
        views: Sequence[ReplicaView],
        generator: random.Random,
        explain: bool,
    ) -> Choice:
        """The highest score."""
        # What is on its way waits too: scraped queues alone are too old and herd.
        queues = [view.report.num_waiting + view.load.num_requests for view in views]
        low, high = min(queues), max(queues)
        scores = []
        for view, queue in zip(views, queues, strict=True):
            matched = request.num_matched_tokens.get(view.replica_id, 0)
            free = view.report.num_free_blocks / max(view.report.num_blocks, 1)
            idle = (high - queue) / (high - low) if high > low else 1.0
            scores.append(
                self.prefix_weight * matched / request.num_prompt_tokens
                + self.queue_weight * idle
                + self.kv_weight * free
            )
        best = max(scores)
        near = [view for view, score in zip(views, scores, strict=True) if score == best]
        return Choice(generator.choice(near), "rival")
