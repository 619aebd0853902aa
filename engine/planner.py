"""What one step computes: decodes first, then prompts in fair order, under one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from ..lora.traits import AdapterTraits
from .adapter_use import AdapterUse
from .admission import Admission, StepDraft
from .cache_use import CacheUse
from .fair_queue import FairQueue
from .finish import can_run_ahead
from .limits import SchedulerLimits
from .plan import ScheduledChunk
from .request import Request, RequestStatus
from .seats import Seats

PREFILL_COST, DECODE_COST, BYTES_PER_COST = 1.0, 2.0, 1 << 20
MAX_CANDIDATES, MAX_MATCHED, MAX_REFUSED = 512, 256, 32
"""Requests that a step looks at, looks up in the prefix cache, and finds no blocks for."""


@dataclass(slots=True, kw_only=True)
class StepPlanner:
    """Fills steps with chunks, which are launched in the order in which they were planned.

    ``_row_of`` is, by request, the row of the last step's sample that its next token comes from.
    """

    limits: SchedulerLimits
    adapters: Mapping[str, AdapterTraits]
    queue: FairQueue
    seats: Seats
    admission: Admission
    cache_use: CacheUse
    adapter_use: AdapterUse
    clock: Callable[[], float]
    _row_of: dict[str, int] = field(default_factory=dict)

    def draft(self) -> StepDraft:
        """The next step, in batch order; blocks and slots for its chunks are held."""
        step = StepDraft(self.limits.max_num_batched_tokens)
        self._plan_decodes(step)
        if not step.preempted:
            self._plan_prefills(step)
        if step.chunks:
            step.chunks.sort(key=_batch_order)
            samples = (chunk.request.request_id for chunk in step.chunks if chunk.samples)
            self._row_of = {request_id: row for row, request_id in enumerate(samples)}
        return step

    def _plan_decodes(self, step: StepDraft) -> None:
        for request in list(self.seats.running):
            if not step.budget:
                return
            if request.status is not RequestStatus.RUNNING or request in self.queue:
                continue
            if request.is_held:
                continue
            if not can_run_ahead(request, self.limits.max_model_len):
                continue
            if self.admission.make_room(request, step):
                self._add_chunk(step, request, 1, DECODE_COST)

    def _add_chunk(self, step: StepDraft, request: Request, num_tokens: int, cost: float) -> None:
        start = request.num_computed_tokens
        follows = self._row_of[request.request_id] if start >= len(request.token_ids) else None
        samples = request.samples and start + num_tokens == request.num_tokens
        step.chunks.append(ScheduledChunk(request, start, num_tokens, samples, follows))
        step.budget -= num_tokens
        step.charged[request] = cost
        self.queue.charge(request, cost)

    def _plan_prefills(self, step: StepDraft) -> None:
        """Spend the rest of the budget in fair order, on prefills under way and waiting ones."""
        for request in islice(self.queue.candidates(), MAX_CANDIDATES):
            if not step.budget or step.is_full:
                break
            if step.num_refused >= MAX_REFUSED or step.num_matched >= MAX_MATCHED:
                break
            if request.is_held:
                continue
            if request.status is RequestStatus.RUNNING or self._start(request, step):
                self._plan_prefill(request, step)
            elif self.queue.overdue(request) and not self.admission.is_loading(request):
                break  # nobody overtakes it any more
        planned = {chunk.request for chunk in step.chunks}
        for request in self.seats.running:  # when no one else can start, those go on that have
            if request.is_held or request in planned:
                continue
            if step.budget and request in self.queue:
                self._plan_prefill(request, step)
        for chunk in step.chunks:
            if chunk.end == chunk.request.num_tokens and chunk.request in self.queue:
                self.queue.remove(chunk.request)

    def _plan_prefill(self, request: Request, step: StepDraft) -> None:
        num_tokens = min(request.num_uncomputed_tokens, step.budget)
        self._add_chunk(step, request, num_tokens, num_tokens * PREFILL_COST)

    def _start(self, request: Request, step: StepDraft) -> bool:
        if not self.admission.admit(request, step):
            return False
        if request.adapter is not None and self.adapter_use.take_debt(request.adapter):
            # Not before it has its adapter: the charge would move the request back, and another
            # adapter would be brought in its place.
            cost = self.adapters[request.adapter].num_bytes / BYTES_PER_COST
            self.queue.charge(request, cost)
        if request.queue_seconds is None:
            request.start(self.clock())
            self.cache_use.count(request)
        return True


def _batch_order(chunk: ScheduledChunk) -> tuple[bool, int]:
    """Single tokens first, as attention wants them; rows of one adapter side by side."""
    slot = chunk.request.slot
    return (chunk.num_scheduled_tokens > 1, -1 if slot is None else slot.slot)
