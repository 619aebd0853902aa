"""What each step computes: admission, chunked prefill, preemption and finishing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..lora.slots import AdapterSlots
from ..lora.traits import AdapterTraits
from .adapter_use import AdapterUse
from .admission import LOOKAHEAD, Admission
from .cache_use import CacheUse
from .errors import RequestError
from .fair_queue import FairQueue
from .finish import finish_reason
from .held import HeldRequests
from .intake import Intake
from .limits import SchedulerLimits
from .outputs import ended_output, overloaded_output, prompt_output, token_output
from .plan import SampledToken, ScheduledChunk, StepPlan
from .planner import StepPlanner
from .prefix_cache import PrefixCache
from .prompt_load import PromptLoad
from .prompt_output import PromptPart
from .request import Request, RequestStatus
from .retry_after import RetryAfter
from .seats import Seats
from .types import ErrorKind, FinishReason, GenerationRequest, TokenOutput

NO_PARTS: Mapping[str, PromptPart] = MappingProxyType({})


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
        self.held = HeldRequests(self._queue, self._seats, self._admission, self.adapter_use)
        self._planner = StepPlanner(
            limits=limits,
            adapters=adapters,
            queue=self._queue,
            seats=self._seats,
            admission=self._admission,
            cache_use=self.use,
            adapter_use=self.adapter_use,
            clock=clock,
        )
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
                return [self._overloaded(generation.request_id, limit)]
            self._finish(other, "error")
            refused = [self._overloaded(other.request_id, limit)]
        request = self.intake.open(generation, self._num_arrivals, self._clock())
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        self._queue.push(request)
        self.adapter_use.came(request.adapter)
        return refused

    def _overloaded(self, request_id: str, limit: int) -> TokenOutput:
        return overloaded_output(request_id, limit, self._retry_after.seconds(self.num_waiting))

    def abort(self, request_id: str) -> None:
        """End a request and free what it holds; an unknown or ended one is no error."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, "abort")

    def hold(self, request_id: str) -> None:
        """Compute nothing of a request until ``go_on``; an unknown or ended one is no error.

        A step under way still gives its token.
        """
        request = self._requests.get(request_id)
        if request is not None:
            self.held.hold(request)

    def go_on(self, request_id: str) -> None:
        """Undo ``hold``; no error for a request that is unknown, ended or not held."""
        request = self._requests.get(request_id)
        if request is not None:
            self.held.go_on(request)

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
        step = self._planner.draft()
        self.num_preemptions += len(step.preempted)
        self.needs_drain = step.needs_drain
        return self._launch(step.chunks) if step.chunks else StepPlan(())

    def _launch(self, chunks: list[ScheduledChunk]) -> StepPlan:
        number = self._seats.fence.launch()
        for chunk in chunks:
            request = chunk.request
            request.num_computed_tokens = chunk.end
            request.last_step = number
            num_prompt = len(request.prompt_token_ids) - chunk.start
            self.num_computed_prompt_tokens += max(0, min(num_prompt, chunk.num_scheduled_tokens))
            if chunk.samples:
                request.num_pending_tokens += 1
        return StepPlan(tuple(chunks), self.cache.pool.blocks_to_clear(), number)

    # -- after a step ------------------------------------------------------------------------------

    def apply(
        self,
        plan: StepPlan,
        sampled: list[SampledToken],
        prompts: Mapping[str, PromptPart] = NO_PARTS,
    ) -> list[TokenOutput]:
        """Take in a finished step; see ``StepResult``."""
        self._seats.fence.finish(plan.number)
        tokens = iter(sampled)
        outputs = []
        for chunk in plan.chunks:
            token = next(tokens) if chunk.samples else None
            request = chunk.request
            if request.status is not RequestStatus.RUNNING:
                continue
            part = prompts.get(request.request_id)
            error = _error(part, token)
            if error is not None:
                kind = token.error_kind if token is not None else "failed"
                outputs.append(self._finish(request, "error", error, kind))
                continue
            self._commit(request, chunk.end)
            if part is not None and request.prompt_output is not None:
                request.prompt_output.take(part)
            if token is not None:
                outputs.append(self._advance(request, token))
            elif not request.samples and chunk.end == request.num_tokens:
                outputs.append(self._complete(request))
        self.held.settle()
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
        return token_output(request, token, reason, stop_token_id)

    def _complete(self, request: Request) -> TokenOutput:
        """End a request that gives no tokens, with what it has of its prompt."""
        output = prompt_output(request)
        self._finish(request, "length" if request.pooling is None else "stop")
        self._retry_after.finished()
        return output

    def fail(self, plan: StepPlan, error: str) -> list[TokenOutput]:
        """End the requests of a step that failed; nothing that it wrote is kept."""
        self._seats.fence.finish(plan.number)
        outputs = [
            self._finish(chunk.request, "error", error)
            for chunk in plan.chunks
            if chunk.request.status is RequestStatus.RUNNING
        ]
        self.held.settle()
        return outputs

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        error: str | None = None,
        kind: ErrorKind = "failed",
    ) -> TokenOutput:
        if request in self._queue:
            self._queue.remove(request)
        if request.status is RequestStatus.RUNNING:
            self._seats.leave(request)
        self._admission.ended(request)
        self.held.ended(request)
        self.adapter_use.ended(request.adapter)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]
        return ended_output(request, reason, error, kind)

    # -- what others ask ---------------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        """Whether there is any request to compute: one that is live and not held."""
        return len(self._requests) > self.held.num_parked

    @property
    def num_waiting(self) -> int:
        """Requests that have no seat and want one."""
        return len(self._requests) - len(self._seats.running) - self.held.num_parked

    @property
    def running(self) -> list[Request]:
        """Requests that have a seat, in the order in which they got it."""
        return self._seats.running

    def num_requests_of(self, adapter: str) -> int:
        """Live requests of an adapter: running, waiting and held."""
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
        self.held.check()
        self.cache.check()
        live = self._requests.values()
        waits_or_runs = [r for r in live if r.status is not RequestStatus.HELD]
        assert all(r.status is RequestStatus.RUNNING or r in self._queue for r in waits_or_runs)
        assert len(live) - len(waits_or_runs) == self.held.num_parked
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


def _error(part: PromptPart | None, token: SampledToken | None) -> str | None:
    if part is not None and part.error is not None:
        return part.error
    return None if token is None else token.error
