"""The one mutable record of a request in the engine; only the scheduler writes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from ..lora.slots import SlotLease
from .prefix_cache import BlockLease
from .prefix_key import PrefixKey
from .prompt_output import PromptOutput
from .types import FinishReason, GenerationRequest, Pooling, SamplingParams


class RequestStatus(enum.Enum):
    """Where a request stands."""

    WAITING = "waiting"
    RUNNING = "running"
    HELD = "held"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """``num_computed_tokens`` chases ``num_tokens``: prefill, decode and recompute alike.

    A token counts as computed once a step that computes it is launched. ``num_pending_tokens``
    (0 or 1) is the token that a launched step samples and nobody has seen yet. ``last_step`` is
    the last launched step that reads this request's blocks and slot.

    The first ``num_given_tokens`` of ``output_token_ids`` came with the request.
    ``adapter_start`` is the first position that the adapter computes: 0, but for activated LoRA.
    ``prompt_output`` gathers what is wanted of the prompt besides tokens. Nothing is sampled for
    one with ``pooling``, or of no output tokens: it ends with its prompt.
    ``is_held``: nothing more is planned for it, and with its last step it is HELD.
    ``ticket`` is the fair queue's own.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    blocks: BlockLease
    key: PrefixKey
    arrival: int
    queued_at: float
    adapter: str | None = None
    adapter_start: int = 0
    choice_index: int = 0
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    status: RequestStatus = RequestStatus.WAITING
    token_ids: list[int] = field(default_factory=list)
    output_token_ids: list[int] = field(default_factory=list)
    num_given_tokens: int = 0
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_cached_tokens: int | None = None
    num_preemptions: int = 0
    last_step: int = 0
    is_held: bool = False
    slot: SlotLease | None = None
    finish_reason: FinishReason | None = None
    queue_seconds: float | None = None
    ticket: object | None = None
    pooling: Pooling | None = None
    prompt_output: PromptOutput | None = None

    @classmethod
    def from_generation(
        cls,
        generation: GenerationRequest,
        key: PrefixKey,
        blocks: BlockLease,
        arrival: int,
        queued_at: float,
    ) -> Request:
        """A waiting request; ``arrival`` orders requests by age, ``queued_at`` is in seconds."""
        return cls(
            request_id=generation.request_id,
            prompt_token_ids=generation.prompt_token_ids,
            params=generation.params,
            blocks=blocks,
            key=key,
            arrival=arrival,
            queued_at=queued_at,
            adapter=generation.adapter,
            choice_index=generation.choice_index,
            priority=generation.priority,
            tenant=generation.tenant,
            weight=generation.weight,
            token_ids=[*generation.prompt_token_ids, *generation.output_token_ids],
            output_token_ids=list(generation.output_token_ids),
            num_given_tokens=len(generation.output_token_ids),
            pooling=generation.pooling,
            prompt_output=PromptOutput.of(generation),
        )

    def start(self, now: float) -> None:
        """Note its first start: how long it has waited, and how much of its prompt was cached."""
        self.queue_seconds = now - self.queued_at
        self.num_cached_tokens = min(self.num_computed_tokens, len(self.prompt_token_ids))

    @property
    def samples(self) -> bool:
        """Whether it gives tokens."""
        return self.pooling is None and self.params.max_tokens != 0

    @property
    def max_reused_tokens(self) -> int:
        """Tokens at the start whose cached KV can stand for a computation of them."""
        most = len(self.token_ids) - 1
        wanted = None if self.prompt_output is None else self.prompt_output.max_reused_tokens
        return most if wanted is None else min(most, wanted)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, the pending one included."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose KV no launched step computes; at least 1 for one that gives tokens."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Output tokens, the pending one included."""
        return len(self.output_token_ids) + self.num_pending_tokens
