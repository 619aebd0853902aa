"""One pass over the lines of all tenants, in scheduling order, while lines and counters change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace

from .policy import scheduling_order
from .request import Request
from .tenant_line import Line, ticket_of
from .tenants import Tenant, Tenants


@dataclass(slots=True)
class Round:
    """One pass over the queue: whoever was seen in it or came too late for it is skipped."""

    newest_push: int
    seen: set[int] = field(default_factory=set)

    def takes(self, request: Request) -> bool:
        """Whether it is the request's turn in this round; it is seen from then on."""
        if request.arrival in self.seen or ticket_of(request).last_push > self.newest_push:
            return False
        self.seen.add(request.arrival)
        return True


class Walk:
    """A round's way along one line: the overdue by age, then by rank, while both change.

    ``at_overdue`` says that the last request was overdue; ``forecast`` is the caller's.
    """

    def __init__(self, line: Line, this_round: Round) -> None:
        self._line = line
        self._round = this_round
        self._arrival = -1
        self._rank = (-math.inf, -math.inf)
        self._seated: Iterator[Request] | None = None
        self.at_overdue = True
        self.forecast = 0.0

    def advance(self) -> Request | None:
        """The next request in line, None at its end."""
        while (request := self._next()) is not None:
            if request in self._line and self._round.takes(request):
                return request
        return None

    def _next(self) -> Request | None:
        if self._seated is not None:
            return next(self._seated, None)
        if self.at_overdue:
            request = self._line.next_overdue(self._arrival)
            if request is not None:
                self._arrival = request.arrival
                return request
            self.at_overdue = False
        request = self._line.next_in_rank(self._rank)
        if request is not None:
            self._rank = scheduling_order(request)
        return request

    def hold(self) -> None:
        """From here on, pass over those that have no seat yet."""
        self.at_overdue = False
        self._seated = iter(sorted(self._line.seated.values(), key=scheduling_order))


def merge_lines(
    tenants: Tenants,
    in_line: Iterable[Tenant],
    this_round: Round,
    *,
    is_held: bool = False,
    is_forecast: bool = False,
) -> Iterator[tuple[Walk, Request]]:
    """The next request of whichever tenant has the least counter just then, and its line's walk.

    A forecast goes on as if each request had been charged its tokens. A round that is held passes
    over requests without a seat.
    """
    heap = [(tenant.counter, tenant.line.oldest, tenant) for tenant in in_line]
    heapify(heap)
    walks: dict[str, Walk] = {}
    while heap:
        last_counter, oldest, tenant = heap[0]
        walk = walks.get(tenant.name)
        if walk is None:
            walk = walks[tenant.name] = Walk(tenant.line, this_round)
            if is_held:
                walk.hold()
        counter = tenants.counter(tenant) + walk.forecast
        if counter > last_counter:
            heapreplace(heap, (counter, oldest, tenant))
            continue
        request = walk.advance()
        if request is None:
            heappop(heap)
            continue
        yield walk, request
        if is_forecast:
            walk.forecast += request.num_uncomputed_tokens / tenant.weight
