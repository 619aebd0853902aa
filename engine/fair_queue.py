"""Whose turn it is: weighted fair shares between tenants, and nobody overtaken without bound.

Virtual token counters with weights (Sheng et al., "Fairness in Serving Large Language Models",
OSDI'24): the tenant that has been served least, by its weight, goes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice

from .config import SchedulingPolicy
from .line_walk import Round, merge_lines
from .policy import choose_victim
from .request import Request
from .tally import Tally
from .tenant_line import Ticket, ticket_of
from .tenants import Tenant, Tenants

MAX_BURST_COST = 8192
"""What a tenant may take at once, by weight, of the share that it left to others before."""


class FairQueue:
    """Requests with prompt tokens to compute: those that wait and those in their prefill.

    Under the policy "fcfs" all requests are treated as one tenant's.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        max_overtake_cost: int,
        max_burst_cost: int = MAX_BURST_COST,
    ) -> None:
        self.num_waiting = 0
        self.num_waiting_tokens = 0
        self._is_fair = policy == "fair"
        self._max_overtake_cost = max_overtake_cost
        max_burst_cost = min(max_burst_cost, max_overtake_cost)
        self._tenants = Tenants(max_overtake_cost, max_burst_cost)
        self._seat_margin = max_burst_cost / 4
        self._turns: dict[str, Tenant] = {}
        self._num_waiting_of = Tally()
        self._num_pushes = 0
        self._num_rounds = 1
        self._last_passed: Request | None = None

    def _tenant_of(self, request: Request) -> Tenant:
        return self._tenants.get(self._name(request.tenant))

    def _name(self, tenant: str) -> str:
        return tenant if self._is_fair else ""

    # -- in and out ----------------------------------------------------------------------------

    def push(self, request: Request) -> None:
        """Queue a request that is new, or was preempted."""
        if request.ticket is None:
            request.ticket = Ticket()
        ticket = ticket_of(request)
        assert not ticket.is_queued, f"{request.request_id} is queued already"
        assert not ticket.has_seat, f"{request.request_id} has a seat"
        tenant = self._tenants.join(self._name(request.tenant))
        if request.arrival > tenant.newest:
            tenant.newest, tenant.weight = request.arrival, request.weight
        ticket.is_queued = True
        tenant.line.add(request, ticket.overtaken)
        self._begin_waiting(request, ticket)

    def remove(self, request: Request) -> None:
        """Take out a request whose prefill is planned to its end, or that is over."""
        ticket, tenant = ticket_of(request), self._tenant_of(request)
        assert ticket.is_queued, f"{request.request_id} is not queued"
        ticket.is_queued = False
        ticket.overtaken = tenant.line.remove(request)
        self._end_turn(request, tenant)
        if not ticket.has_seat:
            self._end_waiting(request)
        self._tenants.leave(tenant)

    def __contains__(self, request: Request) -> bool:
        return isinstance(request.ticket, Ticket) and request.ticket.is_queued

    def activate(self, request: Request) -> None:
        """A request takes a seat in the running batch."""
        ticket, tenant = ticket_of(request), self._tenant_of(request)
        assert not ticket.has_seat, f"{request.request_id} has a seat already"
        ticket.has_seat = ticket.has_started = True
        tenant.num_running += 1
        if ticket.is_queued:
            tenant.line.seated[request.arrival] = request
            self._end_turn(request, tenant)
            self._end_waiting(request)

    def deactivate(self, request: Request) -> None:
        """A request gives its seat back; one that is still queued waits again."""
        ticket, tenant = ticket_of(request), self._tenant_of(request)
        assert ticket.has_seat, f"{request.request_id} has no seat"
        ticket.has_seat = False
        tenant.num_running -= 1
        if ticket.is_queued:
            del tenant.line.seated[request.arrival]
            self._begin_waiting(request, ticket)
        self._tenants.leave(tenant)

    def hold(self, request: Request) -> None:
        """Leave a waiting request out of the order until ``let_go``; it still counts as waiting."""
        self._tenant_of(request).line.hold(request)

    def let_go(self, request: Request) -> None:
        """Have a request considered again that was held."""
        self._tenant_of(request).line.let_go(request)

    def _begin_waiting(self, request: Request, ticket: Ticket) -> None:
        self._num_pushes += 1
        ticket.last_push = self._num_pushes
        self._num_waiting_of.add(request.tenant)
        self.num_waiting += 1
        self.num_waiting_tokens += len(request.token_ids)

    def _end_waiting(self, request: Request) -> None:
        self.num_waiting -= 1
        self.num_waiting_tokens -= len(request.token_ids)
        self._num_waiting_of.add(request.tenant, -1)

    def num_waiting_of(self, tenant: str) -> int:
        """Requests of a tenant that have no seat."""
        return self._num_waiting_of[tenant]

    @property
    def num_tenants(self) -> int:
        """Tenants that are remembered: those with requests, and those ahead of all others."""
        return len(self._tenants)

    # -- what was served -------------------------------------------------------------------------

    def charge(self, request: Request, cost: float) -> None:
        """Charge its tenant for what ``request`` is served, in or out of the queue."""
        ticket, tenant = ticket_of(request), self._tenant_of(request)
        if ticket.is_queued and ticket.has_seat:
            ticket.last_round = self._num_rounds
            self._tenants.advance(tenant.counter)
        if tenant.turn is request:
            tenant.turn_start += cost
        self._tenants.charge(tenant, cost, request.arrival)

    def refund(self, request: Request, cost: float) -> None:
        """Take back a charge for what was planned and then not done.

        Whom it seemed to overtake stays overtaken by that much: nobody waits longer for it.
        """
        self._tenants.refund(self._tenant_of(request), cost)

    def charge_tenant(self, tenant: str, cost: float) -> None:
        """Charge a tenant for what is no request's in particular; it overtakes its whole line."""
        self._tenants.charge(self._tenants.get(self._name(tenant)), cost, math.inf)

    # -- whose turn came and could not be taken ----------------------------------------------------

    def passed(self, request: Request) -> None:
        """A candidate could not start: from here on, what others are served overtakes it.

        That is counted for one request a tenant at a time: the next one's turn comes when this one
        has been served.
        """
        self._last_passed = request
        ticket, tenant = ticket_of(request), self._tenant_of(request)
        assert ticket.is_queued, f"{request.request_id} is not queued"
        if tenant.turn is None and not ticket.has_seat:
            tenant.turn = request
            tenant.turn_start = self._tenants.served - ticket.delayed
            self._turns[tenant.name] = tenant

    def _end_turn(self, request: Request, tenant: Tenant) -> None:
        if tenant.turn is request:
            ticket_of(request).delayed = self._tenants.served - tenant.turn_start
            tenant.turn = None
            del self._turns[tenant.name]

    def overdue(self, request: Request) -> bool:
        """Whether others were served more than ``max_overtake_cost`` since its turn first came."""
        tenant = self._tenants.find(self._name(request.tenant))
        if tenant is not None and tenant.turn is request:
            return self._tenants.served - tenant.turn_start > self._max_overtake_cost
        return ticket_of(request).delayed > self._max_overtake_cost

    def _overdue_turns(self) -> list[Request]:
        """Requests whose turn came and that are overdue since, the longest first."""
        latest = self._tenants.served - self._max_overtake_cost
        overdue = [
            (tenant.turn_start, tenant.turn.arrival, tenant.turn)
            for tenant in self._turns.values()
            if tenant.turn is not None and tenant.turn_start < latest
        ]
        return [request for _, _, request in sorted(overdue)]

    # -- the order -------------------------------------------------------------------------------

    def candidates(self) -> Iterator[Request]:
        """Each request at most once, in scheduling order, which follows what is charged meanwhile.

        What is pushed or unseated after the first one was given is left for the next time. Behind
        a request that is overdue and ``passed`` nobody starts: only those come that have a seat.
        """
        this_round, is_held = Round(self._num_pushes), False
        self._last_passed = None
        self._num_rounds += 1
        for request in self._overdue_turns():
            if request in self:
                this_round.seen.add(request.arrival)
                yield request
                is_held = self._last_passed is request
                if is_held:
                    break
        tenants = self._tenants.in_line.values()
        if tenants and not is_held:
            self._tenants.advance(min(tenant.counter for tenant in tenants))
        left = [tenant for tenant in tenants if tenant.line.seated or not is_held]
        for walk, request in merge_lines(self._tenants, left, this_round, is_held=is_held):
            yield request
            if walk.at_overdue and self._last_passed is request:
                walk.hold()

    def upcoming(self, count: int) -> list[Request]:
        """The next waiting requests, as if each were charged its tokens when its turn comes."""
        found = self._overdue_turns()[:count]
        this_round = Round(self._num_pushes, {request.arrival for request in found})
        in_line = self._tenants.in_line.values()
        merged = merge_lines(self._tenants, in_line, this_round, is_forecast=True)
        waiting = (request for _, request in merged if not ticket_of(request).has_seat)
        return found + list(islice(waiting, count - len(found)))

    # -- who makes way -------------------------------------------------------------------------

    def shed(self, tenant: str, weight: float | None = None) -> Request | None:
        """A waiting request that makes way in a full queue for a new one of ``tenant``.

        It is the newest that never started, of the tenant with the most waiting requests by
        weight; None if that is, with the new one, ``tenant`` itself. ``weight`` is the new
        request's.
        """
        own = self._tenants.find(self._name(tenant))
        own_weight = weight or (own.weight if own is not None else 1.0)
        num_waiting = own.num_waiting if own is not None else 0
        in_line = self._tenants.in_line.values()
        most = max(in_line, key=lambda other: other.num_waiting / other.weight, default=None)
        if most is None or most is own:
            return None
        if most.num_waiting / most.weight <= (num_waiting + 1) / own_weight:
            return None
        return most.line.newest_unstarted()

    def seat_victim(self, request: Request, running: Iterable[Request]) -> Request | None:
        """A running request that should give its seat to the tenant of ``request``.

        Of the tenant furthest over its weighted share of the seats it is the last in rank, but none
        that was overdue or that was served of its prefill in this round. That tenant must have been
        served more, by a quarter of a burst, and must not have fewer seats by weight afterwards. So
        it can't ask for the seat back, and those who take equal shares leave each other in peace.
        """
        own = self._tenant_of(request)
        counter, seats_then = self._tenants.counter(own), (own.num_running + 1) / own.weight
        over = [
            other
            for other in self._tenants.all()
            if other is not own
            and (other.num_running - 1) / other.weight >= seats_then
            and self._tenants.counter(other) > counter + self._seat_margin
        ]
        if not over:
            return None
        most = max(over, key=lambda other: other.num_running / other.weight)
        theirs = [r for r in running if r.tenant == most.name and self._may_give_way(r)]
        return choose_victim(theirs) if theirs else None

    def _may_give_way(self, request: Request) -> bool:
        return ticket_of(request).last_round < self._num_rounds and not self.overdue(request)

    def check(self) -> None:
        """Counts, lines and turns agree."""
        self._tenants.check()
        tenants = list(self._tenants.all())
        num_waiting = sum(tenant.num_waiting for tenant in tenants)
        assert self.num_waiting == self._num_waiting_of.total() == num_waiting
        assert all(count > 0 for count in self._num_waiting_of.values())
        assert set(self._turns.values()) == {t for t in tenants if t.turn is not None}
        for tenant in self._turns.values():
            assert tenant.turn is not None
            assert tenant.turn in tenant.line
            assert not ticket_of(tenant.turn).has_seat
