"""Who gets a seat, a slot and blocks in a step, and who makes way for whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..lora.slots import AdapterSlots
from .adapter_wait import AdapterWait
from .fair_queue import FairQueue
from .plan import ScheduledChunk
from .policy import choose_victim
from .prefix_cache import PrefixCache
from .radix_tree import Node
from .request import Request, RequestStatus
from .seats import Seats

LOOKAHEAD = 16
"""The next waiting requests whose cached prefixes are kept, and whose adapters are fetched."""


@dataclass(slots=True)
class StepDraft:
    """The step being planned; ``is_full`` says that no further request will get a seat.

    ``keep`` are nodes that the next waiting requests will use, once somebody has asked. ``charged``
    are the costs of the chunks. ``num_matched`` counts requests that were looked up in the prefix
    cache, ``num_refused`` those for which there were no blocks. ``needs_drain`` says that something
    was left undone because a step is under way.
    """

    budget: int
    chunks: list[ScheduledChunk] = field(default_factory=list)
    keep: set[Node] | None = None
    is_full: bool = False
    num_refused: int = 0
    num_matched: int = 0
    admitted: set[Request] = field(default_factory=set)
    preempted: list[Request] = field(default_factory=list)
    charged: dict[Request, float] = field(default_factory=dict)
    needs_drain: bool = False


class Admission:
    """Moves requests between the queue and the seats."""

    def __init__(
        self, cache: PrefixCache, slots: AdapterSlots, queue: FairQueue, seats: Seats
    ) -> None:
        self._cache = cache
        self._slots = slots
        self._queue = queue
        self._seats = seats
        self._adapter_wait = AdapterWait(queue, slots)

    def advance(self) -> None:
        """Before each step: those whose adapter has come are candidates again."""
        self._adapter_wait.advance()

    def ended(self, request: Request) -> None:
        """A waiting request has ended."""
        self._adapter_wait.ended(request)

    def check(self) -> None:
        """Nobody waits for an adapter who does not wait."""
        self._adapter_wait.check()

    def is_loading(self, request: Request) -> bool:
        """Whether all that a request waits for is its adapter's way to the device."""
        return request.adapter is not None and self._slots.is_coming(request.adapter)

    def admit(self, request: Request, step: StepDraft) -> bool:
        """Give a waiting request a seat, its slot and its blocks: all of them or none."""
        victim = None
        if not self._seats.num_free:
            victim = self._seat_victim(request)
            if victim is None:
                step.is_full = True
                return False
        if not self._lease_slot(request, step):
            return False
        if self._lease_blocks(request, step) and self._take_seat(request, victim, step):
            step.admitted.add(request)
            return True
        request.blocks.release()
        if request.slot is not None:
            request.slot.release()
            request.slot = None
        return False

    def _seat_victim(self, request: Request) -> Request | None:
        if self._queue.overdue(request):
            return self._last_not_overdue()
        return self._queue.seat_victim(request, self._seats.running)

    def _take_seat(self, request: Request, victim: Request | None, step: StepDraft) -> bool:
        """Sit down; ``victim`` gets up first, if it has not for the blocks' sake."""
        if victim is not None and not self._seats.num_free and not self._preempt_for(victim, step):
            return False
        shared = request.blocks.num_shared_tokens
        request.num_computed_tokens = min(shared, request.max_reused_tokens)
        self._seats.take(request)
        return True

    def _lease_slot(self, request: Request, step: StepDraft) -> bool:
        """Hold the adapter's slot; False while it is on its way, or too much for a step.

        Nobody is held up for an adapter that is being loaded. One that finds no slot, or too many
        ranks in the batch, is overtaken like any other, and then others make way.
        """
        if request.adapter is None:
            return True
        if self._slots.state(request.adapter) != "ready":
            self._adapter_wait.wait(request)
            if not self._slots.is_coming(request.adapter):
                self._queue.passed(request)
                if self._queue.overdue(request) and not self._slots.evictable():
                    self._empty_a_slot(step)
            return False
        if not self._seats.admits_rank(request.adapter):
            self._queue.passed(request)
            return False
        request.slot = self._slots.acquire(request.adapter)
        return request.slot is not None

    def _empty_a_slot(self, step: StepDraft) -> None:
        """Preempt the requests of the adapter that has the fewest, so that another can come.

        Not where one of them was overdue itself: the two would take the slot in turns. Nor where
        one has just sat down: its cost, that made this one overdue, would be given back, and the
        same would happen in every step.
        """
        seats: dict[str, list[Request]] = {}
        for other in self._seats.running:
            if other.adapter is not None:
                seats.setdefault(other.adapter, []).append(other)
        may_go = [
            group
            for group in seats.values()
            if not any(map(self._queue.overdue, group)) and step.admitted.isdisjoint(group)
        ]
        for victim in min(may_go, key=len, default=[]):
            if not self._preempt_for(victim, step):
                return

    def _lease_blocks(self, request: Request, step: StepDraft) -> bool:
        """Match, then take what is missing; False while others compute or bring what it needs."""
        lease, key = request.blocks, request.key
        in_host = self._cache.match(lease, key)
        step.num_matched += 1
        if lease.num_shared_tokens < request.max_reused_tokens:  # else it has all that is of use
            if in_host and self._cache.restore(in_host, lease.tenant, step.keep or ()):
                return False
            if self._seats.prefills.is_under_way(lease, key):
                return False
        is_over_share = self._is_over_share(request)
        if not is_over_share and self._grow(request, step):
            return True
        self._queue.passed(request)
        step.num_refused += 1
        if is_over_share:
            return False
        made_way = False
        while (victim := self._block_victim(request)) is not None:
            if not self._preempt_for(victim, step):
                return False
            made_way = True
            if self._grow(request, step):
                return True
        must_run = made_way or not self._seats.running or self._queue.overdue(request)
        return must_run and self._cache.grow(lease, request.num_tokens)

    def _is_over_share(self, request: Request) -> bool:
        """Whether its tenant would hold more than its share of the pool while others wait."""
        tenant = request.tenant
        if self._would_hold(request) <= self._cache.blocks.tenant_limit:
            return False
        if self._queue.num_waiting == self._queue.num_waiting_of(tenant):
            return False
        is_alone = all(other.tenant != tenant for other in self._seats.running)
        return not is_alone and not self._queue.overdue(request)

    def _block_victim(self, request: Request) -> Request | None:
        """A running request whose blocks a waiting one has a better claim to.

        It must be overdue, or stay within its tenant's share while another's is over it: then the
        two can't take their blocks from each other in turns.
        """
        if self._queue.overdue(request):
            return self._last_not_overdue()
        if self._would_hold(request) > self._cache.blocks.tenant_limit:
            return None
        holders = [r for r in self._holders_over_share() if not self._queue.overdue(r)]
        return choose_victim(holders) if holders else None

    def _last_not_overdue(self) -> Request | None:
        others = [r for r in self._seats.running if not self._queue.overdue(r)]
        return choose_victim(others) if others else None

    def _would_hold(self, request: Request) -> int:
        """Blocks that its tenant would hold with it."""
        held = self._cache.blocks.num_held(request.tenant)
        return held + request.blocks.num_missing(request.num_tokens)

    def make_room(self, request: Request, step: StepDraft) -> bool:
        """Grow a running request's lease by eviction, then by preempting the last in rank."""
        while not self._grow(request, step) and not self._cache.grow(
            request.blocks, request.num_tokens
        ):
            # Those of a tenant over its share go first, if that is not everyone.
            victim = choose_victim(self._holders_over_share() or self._seats.running)
            if not self._preempt_for(victim, step) or victim is request:
                return False
        return True

    def _grow(self, request: Request, step: StepDraft) -> bool:
        """Grow a lease without evicting what the next requests will use."""
        lease = request.blocks
        if step.keep is None and lease.num_missing(request.num_tokens) > self._cache.pool.num_free:
            upcoming = self._queue.upcoming(LOOKAHEAD)
            step.keep = {node for other in upcoming for node in self._cache.find(other.key)}
        return self._cache.grow(lease, request.num_tokens, step.keep or ())

    def _holders_over_share(self) -> list[Request]:
        """Running requests of tenants that hold more blocks than their share."""
        blocks, running = self._cache.blocks, self._seats.running
        tenants = {request.tenant for request in running}
        over = {tenant for tenant in tenants if blocks.num_held(tenant) > blocks.tenant_limit}
        return [request for request in running if request.tenant in over]

    def _preempt_for(self, victim: Request, step: StepDraft) -> bool:
        """Preempt one request for another's sake, unless a step under way still reads of it."""
        if not self._seats.fence.is_idle:
            step.needs_drain = True
            return False
        for chunk in step.chunks:
            if chunk.request is victim:
                step.budget += chunk.num_scheduled_tokens
        step.chunks = [chunk for chunk in step.chunks if chunk.request is not victim]
        step.preempted.append(victim)
        self._queue.refund(victim, step.charged.pop(victim, 0.0))
        if victim in self._queue:
            self._queue.remove(victim)
        self._seats.leave(victim)
        victim.num_computed_tokens = 0
        victim.num_preemptions += 1
        victim.status = RequestStatus.WAITING
        victim.key.extend_to(victim.token_ids)
        self._queue.push(victim)
        return True
