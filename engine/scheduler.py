"""What each step computes: admission, chunked prefill, preemption and finishing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import islice

from ..lora.slots import AdapterSlots
from ..lora.traits import AdapterTraits
from .adapter_use import AdapterUse
from .admission import LOOKAHEAD, Admission, StepDraft
from .cache_use import CacheUse
from .errors import RequestError
from .fair_queue import FairQueue
from .finish import can_run_ahead, finish_reason
from .intake import Intake
from .limits import SchedulerLimits
from .plan import SampledToken, ScheduledChunk, StepPlan
from .prefix_cache import PrefixCache
from .prompt_load import PromptLoad
from .request import Request, RequestStatus
from .retry_after import RetryAfter
from .seats import Seats
from .types import FinishReason, GenerationRequest, TokenOutput

PREFILL_COST, DECODE_COST, BYTES_PER_COST = 1.0, 2.0, 1 << 20
MAX_CANDIDATES, MAX_MATCHED, MAX_REFUSED = 512, 256, 32
"""Requests that a step looks at, looks up in the prefix cache, and finds no blocks for."""


class Scheduler:
    """Owns every live request; one token budget a step, no prefill or decode phases.

    Steps may be planned one ahead: ``schedule`` can be called once more before ``apply``.
    ``needs_drain`` says that the last ``schedule`` left something undone which can only be done
    when no step is under way.
    """

    def __init__(
        self,
        cache: PrefixCache,
        slots: AdapterSlots,
        limits: SchedulerLimits,
        adapters: Mapping[str, AdapterTraits],
        eos_token_ids: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cache = cache
        self.intake = Intake(cache, adapters, limits.max_model_len, limits.isolate_tenants)
        self.use = CacheUse()
        self._limits = limits
        self._adapters = adapters
        self._eos_token_ids = frozenset(eos_token_ids)
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._num_arrivals = 0
        self._queue = FairQueue(limits.policy, limits.max_overtake_cost)
        self._seats = Seats(
            cache,
            self._queue,
            adapters,
            min(limits.max_num_seqs, limits.max_num_batched_tokens),
            limits.max_step_rank,
        )
        self.load = PromptLoad(self._seats, self._queue, self.use)
        self._admission = Admission(cache, slots, self._queue, self._seats)
        self._retry_after = RetryAfter(clock)
        self._slots = slots
        self.adapter_use = AdapterUse()
        self._row_of: dict[str, int] = {}
        self.needs_drain = False
        self.num_preemptions = 0
        self.num_overloaded = 0
        self.num_computed_prompt_tokens = 0

    # -- requests in and out ---------------------------------------------------------------------

    def add(self, generation: GenerationRequest) -> list[TokenOutput]:
        """Queue a request; returns those refused because the queue is full, itself or another.

        Raises RequestError for one that could never run.
        """
        if generation.request_id in self._requests:
            raise RequestError("request_id", f"{generation.request_id!r} is in use")
        self.intake.check(generation)
        refused: list[TokenOutput] = []
        limit = self._limits.max_queued_requests
        if limit is not None and self.num_waiting >= limit + self._seats.num_free:
            other = self._queue.shed(generation.tenant, generation.weight)
            self.num_overloaded += 1
            if other is None:
                return [self._overloaded(generation.request_id)]
            self._finish(other, "error")
            refused = [self._overloaded(other.request_id)]
        request = self.intake.open(generation, self._num_arrivals, self._clock())
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        self._queue.push(request)
        self.adapter_use.came(request.adapter)
        return refused

    def _overloaded(self, request_id: str) -> TokenOutput:
        return TokenOutput(
            request_id=request_id,
            token_ids=[],
            finish_reason="error",
            error=f"the queue is full: {self._limits.max_queued_requests} requests may wait",
            error_kind="overloaded",
            retry_after=self._retry_after.seconds(self.num_waiting),
        )

    def abort(self, request_id: str) -> None:
        """End a request and free what it holds; an unknown or ended one is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, "abort")

    def fail_adapter(self, adapter: str, error: str) -> list[TokenOutput]:
        """End the requests that wait for an adapter which can't be had."""
        waiting = [
            request
            for request in self._requests.values()
            if request.adapter == adapter and request.status is RequestStatus.WAITING
        ]
        return [self._finish(request, "error", error) for request in waiting]

    def wanted_adapters(self) -> list[str]:
        """Adapters of the next waiting requests, in scheduling order."""
        upcoming = self._queue.upcoming(LOOKAHEAD)
        return list(dict.fromkeys(r.adapter for r in upcoming if r.adapter is not None))

    # -- one step ----------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Choose this step's work; blocks and slots for it are held when it returns."""
        self.cache.advance()
        self._admission.advance()
        step = StepDraft(self._limits.max_num_batched_tokens)
        self._plan_decodes(step)
        if not step.preempted:
            self._plan_prefills(step)
        self.num_preemptions += len(step.preempted)
        self.needs_drain = step.needs_drain
        return self._launch(step.chunks) if step.chunks else StepPlan(())

    def _launch(self, chunks: list[ScheduledChunk]) -> StepPlan:
        number = self._seats.fence.launch()
        chunks.sort(key=_batch_order)
        self._row_of.clear()
        for chunk in chunks:
            request = chunk.request
            request.num_computed_tokens = chunk.end
            request.last_step = number
            num_prompt = len(request.prompt_token_ids) - chunk.start
            self.num_computed_prompt_tokens += max(0, min(num_prompt, chunk.num_scheduled_tokens))
            if chunk.samples:
                request.num_pending_tokens += 1
                self._row_of[request.request_id] = len(self._row_of)
        return StepPlan(tuple(chunks), self.cache.pool.blocks_to_clear(), number)

    def _plan_decodes(self, step: StepDraft) -> None:
        for request in list(self._seats.running):
            if not step.budget:
                return
            if request.status is not RequestStatus.RUNNING or request in self._queue:
                continue
            if not can_run_ahead(request, self._limits.max_model_len):
                continue
            if self._admission.make_room(request, step):
                self._add_chunk(step, request, 1, DECODE_COST)

    def _add_chunk(self, step: StepDraft, request: Request, num_tokens: int, cost: float) -> None:
        start = request.num_computed_tokens
        follows = self._row_of[request.request_id] if start >= len(request.token_ids) else None
        samples = start + num_tokens == request.num_tokens
        step.chunks.append(ScheduledChunk(request, start, num_tokens, samples, follows))
        step.budget -= num_tokens
        step.charged[request] = cost
        self._queue.charge(request, cost)

    def _plan_prefills(self, step: StepDraft) -> None:
        """Spend the rest of the budget in fair order, on prefills under way and waiting ones."""
        for request in islice(self._queue.candidates(), MAX_CANDIDATES):
            if not step.budget or step.is_full:
                break
            if step.num_refused >= MAX_REFUSED or step.num_matched >= MAX_MATCHED:
                break
            if request.status is RequestStatus.RUNNING or self._start(request, step):
                self._plan_prefill(request, step)
            elif self._queue.overdue(request) and not self._admission.is_loading(request):
                break  # nobody overtakes it any more
        planned = {chunk.request for chunk in step.chunks}
        for request in self._seats.running:  # when no one else can start, those go on that have
            if step.budget and request in self._queue and request not in planned:
                self._plan_prefill(request, step)
        for chunk in step.chunks:
            if chunk.samples and chunk.request in self._queue:
                self._queue.remove(chunk.request)

    def _plan_prefill(self, request: Request, step: StepDraft) -> None:
        num_tokens = min(request.num_uncomputed_tokens, step.budget)
        self._add_chunk(step, request, num_tokens, num_tokens * PREFILL_COST)

    def _start(self, request: Request, step: StepDraft) -> bool:
        if not self._admission.admit(request, step):
            return False
        if request.adapter is not None and self.adapter_use.take_debt(request.adapter):
            # Not before it has its adapter: the charge would move the request back, and another
            # adapter would be brought in its place.
            cost = self._adapters[request.adapter].num_bytes / BYTES_PER_COST
            self._queue.charge(request, cost)
        if request.queue_seconds is None:
            request.start(self._clock())
            self.use.count(request)
        return True

    # -- after a step ------------------------------------------------------------------------------

    def apply(self, plan: StepPlan, sampled: list[SampledToken]) -> list[TokenOutput]:
        """Take in a finished step; ``sampled`` has one entry a sampling chunk."""
        self._seats.fence.finish(plan.number)
        tokens = iter(sampled)
        outputs = []
        for chunk in plan.chunks:
            token = next(tokens) if chunk.samples else None
            request = chunk.request
            if request.status is not RequestStatus.RUNNING:
                continue
            if token is not None and token.error is not None:
                outputs.append(self._finish(request, "error", token.error))
                continue
            self._commit(request, chunk.end)
            if token is not None:
                outputs.append(self._advance(request, token))
        return outputs

    def _commit(self, request: Request, num_computed_tokens: int) -> None:
        if num_computed_tokens // self.cache.block_size <= request.blocks.num_shared:
            return
        request.key.extend_to(request.token_ids)
        spare = self.cache.commit(request.blocks, request.key, num_computed_tokens)
        if spare is not None:
            self._seats.fence.release(spare, request.last_step)
        if num_computed_tokens < len(request.token_ids):
            self._seats.prefills.moved(request)
        else:
            self._seats.prefills.ended(request)

    def _advance(self, request: Request, token: SampledToken) -> TokenOutput:
        request.num_pending_tokens -= 1
        request.token_ids.append(token.token_id)
        request.output_token_ids.append(token.token_id)
        max_model_len = self._limits.max_model_len
        reason, stop_token_id = finish_reason(request, self._eos_token_ids, max_model_len)
        if reason is not None:
            self._finish(request, reason)
            self._retry_after.finished()
        is_first = len(request.output_token_ids) == request.num_given_tokens + 1
        return TokenOutput(
            request_id=request.request_id,
            token_ids=[token.token_id],
            logprobs=None if token.logprobs is None else [token.logprobs],
            finish_reason=reason,
            stop_token_id=stop_token_id,
            num_cached_tokens=(request.num_cached_tokens or 0) if is_first else 0,
            queue_seconds=request.queue_seconds if is_first else None,
        )

    def fail(self, plan: StepPlan, error: str) -> list[TokenOutput]:
        """End the requests of a step that failed; nothing that it wrote is kept."""
        self._seats.fence.finish(plan.number)
        return [
            self._finish(chunk.request, "error", error)
            for chunk in plan.chunks
            if chunk.request.status is RequestStatus.RUNNING
        ]

    def _finish(
        self, request: Request, reason: FinishReason, error: str | None = None
    ) -> TokenOutput:
        if request in self._queue:
            self._queue.remove(request)
        if request.status is RequestStatus.RUNNING:
            self._seats.leave(request)
        self._admission.ended(request)
        self.adapter_use.ended(request.adapter)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]
        return TokenOutput(
            request_id=request.request_id, token_ids=[], finish_reason=reason, error=error
        )

    # -- what others ask ---------------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        """Whether any request is live."""
        return bool(self._requests)

    @property
    def num_waiting(self) -> int:
        """Requests that have no seat."""
        return len(self._requests) - len(self._seats.running)

    @property
    def running(self) -> list[Request]:
        """Requests that have a seat, in the order in which they got it."""
        return self._seats.running

    def num_requests_of(self, adapter: str) -> int:
        """Live requests of an adapter, running and waiting."""
        return self.adapter_use.num_requests(adapter)

    @property
    def num_waiting_for_adapter(self) -> int:
        """Requests that wait, and whose adapter is not on the device."""
        waiting = self.adapter_use.waiting(self._seats.num_by_adapter)
        return sum(n for adapter, n in waiting.items() if self._slots.state(adapter) != "ready")

    def adapters_in_use(self) -> tuple[list[str], list[str]]:
        """Adapters of running requests, and of waiting ones."""
        running = self._seats.num_by_adapter
        return sorted(running), sorted(self.adapter_use.waiting(running))

    def check(self) -> None:
        """Blocks, slots and queues agree with one another."""
        self._seats.check()
        self._admission.check()
        self._queue.check()
        self.cache.check()
        live = self._requests.values()
        assert all(r.status is RequestStatus.RUNNING or r in self._queue for r in live)
        waiting = [request for request in live if request.status is RequestStatus.WAITING]
        assert len(waiting) == self.num_waiting
        assert self._queue.num_waiting_tokens == sum(len(r.token_ids) for r in waiting)
        assert not any(request.blocks.block_ids or request.slot for request in waiting)
        held = sum(len(r.blocks.block_ids) - r.blocks.num_shared for r in self.running)
        if not self._seats.fence.num_deferred:
            assert held == self.cache.blocks.num_private, "private blocks are lost"
        for request in self.running:
            assert request.num_computed_tokens <= request.num_tokens
            assert request.num_computed_tokens <= request.blocks.num_slots


def _batch_order(chunk: ScheduledChunk) -> tuple[bool, int]:
    """Single tokens first, as attention wants them; rows of one adapter side by side."""
    slot = chunk.request.slot
    return (chunk.num_scheduled_tokens > 1, -1 if slot is None else slot.slot)
