"""One tenant's requests that have prompt tokens to compute, by rank and by age."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass

from .policy import scheduling_order
from .request import Request


@dataclass(slots=True)
class Ticket:
    """What the queue remembers of a request from its first push on, in ``Request.ticket``.

    ``last_push`` numbers the queue's pushes, ``last_round`` the rounds of candidates: the one in
    which it was last served of its prefill. ``overtaken`` and ``delayed`` are cost units of
    former stays in the queue: served to later arrivals of its line, and served to anybody else
    after its turn had come.
    """

    last_push: int = 0
    last_round: int = 0
    is_queued: bool = False
    has_seat: bool = False
    has_started: bool = False
    overtaken: float = 0.0
    delayed: float = 0.0


def ticket_of(request: Request) -> Ticket:
    """The ticket of a request that has been pushed."""
    assert isinstance(request.ticket, Ticket), f"{request.request_id} has never been queued"
    return request.ticket


class Line:
    """Requests of one tenant that have prompt tokens to compute, seated or waiting.

    ``overtaken`` of a request is the cost served to later arrivals while it was in line; one that
    is overtaken by more than ``max_overtake_cost`` is overdue. It never grows from an older to a
    younger request, so the overdue are the oldest ones, and it is kept as differences: what a
    later arrival is served changes one number.

        arrivals      3     5     8     9
        differences   0   700     0    40      overtaken: 740  740  40  40
                       overdue  |  others      (more than 500)
    """

    def __init__(self, max_overtake_cost: float) -> None:
        self._max_overtake_cost = max_overtake_cost
        self._requests: dict[int, Request] = {}
        self._ranks: list[tuple[int, int]] = []
        self._arrivals: list[int] = []
        self._differences: list[float] = []
        self._num_overdue = 0
        self._next_overtaken = 0.0  # of the oldest request that is not overdue
        self._held: set[int] = set()
        self.seated: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, request: Request) -> bool:
        return request.arrival in self._requests

    @property
    def oldest(self) -> int:
        """The arrival of the oldest request."""
        return self._arrivals[0]

    def add(self, request: Request, overtaken: float = 0.0) -> None:
        """Take a request in; ``overtaken`` is carried over from an earlier stay.

        Nobody older counts as overtaken by less, from then on.
        """
        arrival, differences = request.arrival, self._differences
        assert arrival not in self._requests, f"{request.request_id} is in line already"
        self._requests[arrival] = request
        insort(self._ranks, scheduling_order(request))
        index = bisect_left(self._arrivals, arrival)
        more = max(0.0, overtaken - math.fsum(differences[index:])) if overtaken else 0.0
        self._arrivals.insert(index, arrival)
        differences.insert(index, more)
        if index < self._num_overdue:
            self._num_overdue += 1
        if more:
            self._take_from_older(index, more)
            self._next_overtaken = math.fsum(differences[self._num_overdue :])
            self._find_overdue()

    def _take_from_older(self, index: int, more: float) -> None:
        """Lower the differences before ``index`` by what a new one there adds to their sums."""
        while index and more:
            index -= 1
            taken = min(more, self._differences[index])
            self._differences[index] -= taken
            more -= taken

    def remove(self, request: Request) -> float:
        """Let a request go; returns the cost by which it was overtaken."""
        del self._requests[request.arrival]
        self.seated.pop(request.arrival, None)
        self.hold(request)
        self._held.discard(request.arrival)
        index = bisect_left(self._arrivals, request.arrival)
        overtaken = self._overtaken(index)
        del self._arrivals[index]
        difference = self._differences.pop(index)
        if index:
            self._differences[index - 1] += difference
        if index < self._num_overdue:
            self._num_overdue -= 1
        elif index == self._num_overdue:
            self._next_overtaken -= difference
        if self._num_overdue == len(self._arrivals):
            self._next_overtaken = 0.0
        return overtaken

    def hold(self, request: Request) -> None:
        """Pass over a request from now on; it keeps its place, and its age."""
        if request.arrival not in self._held:
            del self._ranks[bisect_left(self._ranks, scheduling_order(request))]
            self._held.add(request.arrival)

    def let_go(self, request: Request) -> None:
        """Undo ``hold``."""
        if request.arrival in self._held:
            self._held.remove(request.arrival)
            insort(self._ranks, scheduling_order(request))

    def charge(self, arrival: float, cost: float) -> None:
        """Note that a request of that arrival was served: older ones are overtaken by it."""
        index = bisect_left(self._arrivals, arrival) - 1
        if index < 0:
            return
        self._differences[index] += cost
        if index >= self._num_overdue:
            self._next_overtaken += cost
            self._find_overdue()

    def _find_overdue(self) -> None:
        while self._next_overtaken > self._max_overtake_cost:
            self._next_overtaken -= self._differences[self._num_overdue]
            self._num_overdue += 1
            if self._num_overdue == len(self._arrivals):
                self._next_overtaken = 0.0

    def _overtaken(self, index: int) -> float:
        start, differences = self._num_overdue, self._differences
        if index < start:
            return self._next_overtaken + math.fsum(differences[index:start])
        if index - start < len(differences) - index:
            return max(0.0, self._next_overtaken - math.fsum(differences[start:index]))
        return math.fsum(differences[index:])

    def next_overdue(self, arrival: int) -> Request | None:
        """The oldest overdue request younger than ``arrival``."""
        index = bisect_right(self._arrivals, arrival)
        while index < self._num_overdue and self._arrivals[index] in self._held:
            index += 1
        return self._requests[self._arrivals[index]] if index < self._num_overdue else None

    def next_in_rank(self, rank: tuple[float, float]) -> Request | None:
        """The first request behind ``rank``, a (priority, arrival)."""
        index = bisect_right(self._ranks, rank)
        return self._requests[self._ranks[index][1]] if index < len(self._ranks) else None

    def newest_unstarted(self) -> Request | None:
        """The youngest request that never had a seat."""
        for arrival in reversed(self._arrivals):
            if not ticket_of(self._requests[arrival]).has_started:
                return self._requests[arrival]
        return None

    def check(self) -> None:
        """The three orders hold the same requests, and overdue are those that should be."""
        assert self._arrivals == sorted(self._requests)
        free = [r for r in self._requests.values() if r.arrival not in self._held]
        assert self._ranks == sorted(map(scheduling_order, free))
        assert self._held <= self._requests.keys() - self.seated.keys()
        assert all(self._requests[arrival] is self.seated[arrival] for arrival in self.seated)
        assert len(self._differences) == len(self._arrivals)
        assert all(difference >= 0 for difference in self._differences)
        overtaken = math.fsum(self._differences[self._num_overdue :])
        assert math.isclose(self._next_overtaken, overtaken, rel_tol=1e-6, abs_tol=1e-3)
        assert self._next_overtaken <= self._max_overtake_cost
        for request in self._requests.values():
            ticket = ticket_of(request)
            assert ticket.is_queued
            assert ticket.has_seat == (request.arrival in self.seated)
