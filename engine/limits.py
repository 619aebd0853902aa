"""The scheduler's bounds, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from .config import SchedulingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds of one step, one request, one tenant and the queue; see EngineConfig."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_rank: int | None = None
    max_queued_requests: int | None = None
    policy: SchedulingPolicy = "fair"
    max_overtake_cost: int = 65536
    isolate_tenants: bool = True
