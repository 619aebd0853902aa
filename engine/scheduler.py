"""What each step computes: admission, chunked prefill, preemption and finishing."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from ..lora.slots import AdapterSlots
from .blocks import BlockLease, BlockPool
from .errors import RequestError
from .plan import SampledToken, ScheduledChunk, StepPlan
from .policy import choose_victim, scheduling_order
from .request import Request, RequestStatus
from .types import FinishReason, GenerationRequest, TokenOutput


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one step and of one request; counts of tokens and requests."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Scheduler:
    """Owns every live request; one token budget a step, no prefill or decode phases."""

    def __init__(
        self,
        pool: BlockPool,
        slots: AdapterSlots,
        limits: SchedulerLimits,
        eos_token_ids: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._limits = limits
        self._eos_token_ids = frozenset(eos_token_ids)
        self._clock = clock
        self._max_running = min(limits.max_num_seqs, limits.max_num_batched_tokens)
        self._requests: dict[str, Request] = {}
        self._num_arrivals = 0
        self._blocks_to_zero: list[int] = []
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0

    def add(self, generation: GenerationRequest) -> None:
        """Queue a request; raises RequestError for one that could never run."""
        self._validate(generation)
        request = Request.from_generation(
            generation, BlockLease(self._pool), self._num_arrivals, self._clock()
        )
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        insort(self.waiting, request, key=scheduling_order)

    def _validate(self, generation: GenerationRequest) -> None:
        num_tokens = len(generation.prompt_token_ids)
        if generation.request_id in self._requests:
            raise RequestError("request_id", f"{generation.request_id!r} is in use")
        if not num_tokens:
            raise RequestError("prompt", "must have at least one token")
        if num_tokens >= self._limits.max_model_len:
            raise RequestError(
                "prompt",
                f"has {num_tokens} tokens; with one to generate, the most is "
                f"{self._limits.max_model_len - 1}",
            )
        if generation.adapter is not None and generation.adapter not in self._slots:
            raise RequestError("adapter", f"{generation.adapter!r} is not loaded")

    def abort(self, request_id: str) -> None:
        """End a request and free what it holds; an unknown or ended one is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, "abort")

    def schedule(self) -> StepPlan:
        """Choose this step's work; blocks and slots for it are held when it returns."""
        chunks: list[ScheduledChunk] = []
        budget = self._limits.max_num_batched_tokens
        num_preemptions = self.num_preemptions
        for request in sorted(self.running, key=_decodes_first):
            if request.status is RequestStatus.RUNNING and budget:
                num_tokens = min(request.num_uncomputed_tokens, budget)
                if self._make_room(request, request.num_computed_tokens + num_tokens, chunks):
                    chunks.append(_chunk(request, num_tokens))
                    budget -= num_tokens
                    if self.num_preemptions > num_preemptions:  # a victim's share is free again
                        budget = self._limits.max_num_batched_tokens - _num_tokens(chunks)
        if num_preemptions == self.num_preemptions:
            self._admit(chunks, budget)
        chunks.sort(key=_batch_order)
        return StepPlan(tuple(chunks), tuple(self._blocks_to_zero))

    def _make_room(self, request: Request, num_tokens: int, chunks: list[ScheduledChunk]) -> bool:
        """Grow the request's lease, preempting the last in rank while blocks are short."""
        while not request.blocks.grow(num_tokens):
            victim = choose_victim(self.running)
            chunks[:] = [chunk for chunk in chunks if chunk.request is not victim]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.num_preemptions += 1
        request.num_preemptions += 1
        self._release(request)
        self.running.remove(request)
        request.num_computed_tokens = 0
        request.status = RequestStatus.WAITING
        insort(self.waiting, request, key=scheduling_order)

    def _admit(self, chunks: list[ScheduledChunk], budget: int) -> None:
        """Start waiting requests in scheduling order; one that waits for its adapter is passed."""
        admitted: list[Request] = []
        for request in self.waiting:
            if not budget or len(self.running) >= self._max_running:
                break
            if request.blocks.num_missing(request.num_tokens) > self._pool.num_free:
                break
            if not self._lease_slot(request):
                continue
            request.blocks.grow(request.num_tokens)
            request.status = RequestStatus.RUNNING
            if request.queue_seconds is None:
                request.queue_seconds = self._clock() - request.queued_at
            self.running.append(request)
            admitted.append(request)
            num_tokens = min(request.num_uncomputed_tokens, budget)
            chunks.append(_chunk(request, num_tokens))
            budget -= num_tokens
        if admitted:
            self.waiting = [r for r in self.waiting if r.status is RequestStatus.WAITING]

    def _lease_slot(self, request: Request) -> bool:
        if request.adapter is None:
            return True
        request.slot = self._slots.acquire(request.adapter)
        return request.slot is not None

    def apply(self, plan: StepPlan, sampled: list[SampledToken]) -> list[TokenOutput]:
        """Take in a finished step; ``sampled`` has one entry a sampling chunk."""
        del self._blocks_to_zero[: len(plan.zero_block_ids)]
        tokens = iter(sampled)
        outputs = []
        for chunk in plan.chunks:
            token = next(tokens) if chunk.samples else None
            request = chunk.request
            if request.status is not RequestStatus.RUNNING:
                continue
            request.num_computed_tokens += chunk.num_scheduled_tokens
            if token is not None:
                outputs.append(self._advance(request, token))
        return outputs

    def _advance(self, request: Request, token: SampledToken) -> TokenOutput:
        if token.error is not None:
            return self._finish(request, "error", token.error)
        request.token_ids.append(token.token_id)
        request.output_token_ids.append(token.token_id)
        reason, stop_token_id = self._finish_reason(request, token.token_id)
        if reason is not None:
            self._finish(request, reason)
        return TokenOutput(
            request_id=request.request_id,
            token_ids=[token.token_id],
            logprobs=None if token.logprobs is None else [token.logprobs],
            finish_reason=reason,
            stop_token_id=stop_token_id,
            queue_seconds=request.queue_seconds if len(request.output_token_ids) == 1 else None,
        )

    def _finish_reason(
        self, request: Request, token_id: int
    ) -> tuple[FinishReason | None, int | None]:
        params = request.params
        num_output = len(request.output_token_ids)
        if num_output >= params.min_tokens:
            if token_id in self._eos_token_ids and not params.ignore_eos:
                return "stop", None
            if token_id in params.stop_token_ids:
                return "stop", token_id
        if params.max_tokens is not None and num_output >= params.max_tokens:
            return "length", None
        if request.num_tokens >= self._limits.max_model_len:
            return "length", None
        return None, None

    def fail(self, plan: StepPlan, error: str) -> list[TokenOutput]:
        """End the requests of a step that failed; what it was to clear is cleared later."""
        return [
            self._finish(chunk.request, "error", error)
            for chunk in plan.chunks
            if chunk.request.status is RequestStatus.RUNNING
        ]

    def _finish(
        self, request: Request, reason: FinishReason, error: str | None = None
    ) -> TokenOutput:
        self._release(request)
        queue = self.running if request.status is RequestStatus.RUNNING else self.waiting
        queue.remove(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]
        return TokenOutput(
            request_id=request.request_id, token_ids=[], finish_reason=reason, error=error
        )

    def _release(self, request: Request) -> None:
        """Give blocks and slot back; blocks are cleared before another request holds them.

        A masked key is still multiplied, and inf - inf or 0 * NaN would reach the next
        holder. Finite logits don't prove a finite cache: an infinite key may weigh nothing.
        """
        self._blocks_to_zero.extend(request.blocks.release())
        if request.slot is not None:
            request.slot.release()
            request.slot = None

    @property
    def has_requests(self) -> bool:
        """Whether any request is live."""
        return bool(self._requests)

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self._pool.num_free

    @property
    def num_usable_blocks(self) -> int:
        """KV blocks that requests can hold in all."""
        return self._pool.num_usable

    def check(self) -> None:
        """Blocks, slots and queues agree with one another."""
        self._pool.check()
        self._slots.check()
        queued = [*self.waiting, *self.running]
        assert len(queued) == len(self._requests), "a request is in no queue or in two"
        held = sum(len(request.blocks.block_ids) for request in queued)
        assert held + self._pool.num_free == self._pool.num_usable, "blocks are lost"
        assert not any(request.blocks.block_ids or request.slot for request in self.waiting)
        for request in self.running:
            assert request.num_computed_tokens <= request.num_tokens
            assert request.num_computed_tokens <= request.blocks.num_slots


def _decodes_first(request: Request) -> tuple[bool, int, int]:
    return (request.num_uncomputed_tokens > 1, *scheduling_order(request))


def _batch_order(chunk: ScheduledChunk) -> tuple[bool, int]:
    """Single tokens first, as attention wants them; rows of one adapter side by side."""
    slot = chunk.request.slot
    return (chunk.num_scheduled_tokens > 1, -1 if slot is None else slot.slot)


def _chunk(request: Request, num_tokens: int) -> ScheduledChunk:
    start = request.num_computed_tokens
    return ScheduledChunk(request, start, num_tokens, start + num_tokens == request.num_tokens)


def _num_tokens(chunks: list[ScheduledChunk]) -> int:
    return sum(chunk.num_scheduled_tokens for chunk in chunks)
