"""The one mutable record of a request in the engine; only the scheduler writes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..lora.slots import SlotLease
from .blocks import BlockLease
from .types import FinishReason, GenerationRequest, SamplingParams


class RequestStatus(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """``num_computed_tokens`` chases ``num_tokens``: prefill, decode and recompute alike."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    blocks: BlockLease
    arrival: int
    queued_at: float
    adapter: str | None = None
    choice_index: int = 0
    priority: int = 0
    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(default_factory=list)
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    slot: SlotLease | None = None
    finish_reason: FinishReason | None = None
    queue_seconds: float | None = None

    @classmethod
    def from_generation(
        cls, generation: GenerationRequest, blocks: BlockLease, arrival: int, queued_at: float
    ) -> Request:
        """A waiting request; ``arrival`` orders requests by age, ``queued_at`` is in seconds."""
        return cls(
            request_id=generation.request_id,
            prompt_token_ids=generation.prompt_token_ids,
            params=generation.params,
            blocks=blocks,
            arrival=arrival,
            queued_at=queued_at,
            adapter=generation.adapter,
            choice_index=generation.choice_index,
            priority=generation.priority,
            token_ids=list(generation.prompt_token_ids),
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens known so far."""
        return len(self.token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV is not in the cache yet; at least 1 for a live request."""
        return len(self.token_ids) - self.num_computed_tokens
