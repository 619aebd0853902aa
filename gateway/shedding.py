"""Who is turned away when all queues fill: the lowest priority first. Pure.

With classes 0 (runs first) to k - 1, class i is turned away from a fill of

    1 - i / (2 (k - 1))

so the last one from half full queues on, and the first one only by a replica's own full queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .types import ReplicaView

LOWEST_THRESHOLD = 0.5
MAX_RETRY_SECONDS = 30


def threshold(priority: int, priorities: Sequence[int]) -> float:
    """The fill from which requests of ``priority`` are turned away; infinite: never.

    ``priorities`` are the configured tenants', sorted and each once, the lowest runs first.
    """
    rank = sum(other < priority for other in priorities)
    if rank == 0:
        return math.inf
    last = max(len(priorities) - 1, rank)
    return 1 - (1 - LOWEST_THRESHOLD) * rank / last


def fill(replicas: Iterable[ReplicaView]) -> float:
    """How full the least full queue is, 0 to 1 and over; 0 where one has no limit or none is up."""
    return min(map(_fill_of, filter(lambda replica: replica.is_up, replicas)), default=0.0)


def retry_seconds(replicas: Iterable[ReplicaView]) -> int:
    """When to come again: once the shortest queue is computed."""
    waits = [_wait_of(replica) for replica in replicas if replica.is_up]
    return max(1, min(math.ceil(min(waits, default=1.0)), MAX_RETRY_SECONDS))


def _fill_of(replica: ReplicaView) -> float:
    report = replica.report
    if not report.max_queued_requests:
        return 0.0
    return report.num_waiting / report.max_queued_requests


def _wait_of(replica: ReplicaView) -> float:
    report = replica.report
    if report.prefill_tokens_per_second <= 0:
        return 1.0
    return report.num_queued_prefill_tokens / report.prefill_tokens_per_second
