"""Requests whose adapter is on its way: one of a tenant asks for it, the others are held back."""

from __future__ import annotations

from itertools import islice

from ..lora.slots import AdapterSlots
from .fair_queue import FairQueue
from .request import Request, RequestStatus

MAX_LET_GO = 256
"""Requests that come back into the order in one step, of all that waited for an adapter."""

Pair = tuple[str, str]


class AdapterWait:
    """Keeps a long line for a cold adapter from being walked through in every step.

    Of each tenant and adapter the first one in line, the scout, stays in the queue's order: its
    adapter is wanted, and its being overtaken counts. Those behind it are held until the adapter
    is ready, or the scout is gone.
    """

    def __init__(self, queue: FairQueue, slots: AdapterSlots) -> None:
        self._queue = queue
        self._slots = slots
        self._scouts: dict[Pair, Request] = {}
        self._held: dict[Pair, dict[int, Request]] = {}

    def wait(self, request: Request) -> None:
        """A candidate's turn came, and its adapter is not ready."""
        assert request.adapter is not None
        pair = (request.tenant, request.adapter)
        scout = self._scouts.setdefault(pair, request)
        if scout is not request and _waits(scout):
            self._queue.hold(request)
            self._held.setdefault(pair, {})[request.arrival] = request
        else:
            self._scouts[pair] = request

    def advance(self) -> None:
        """Let those go whose adapter is ready, and one where there is no scout any more."""
        for pair in [pair for pair, scout in self._scouts.items() if not _waits(scout)]:
            del self._scouts[pair]
        for pair in list(self._held):
            if self._slots.state(pair[1]) == "ready":
                self._let_go(pair, MAX_LET_GO)
            elif pair not in self._scouts:
                self._let_go(pair, 1)

    def _let_go(self, pair: Pair, count: int) -> None:
        held = self._held[pair]
        for arrival in list(islice(held, count)):
            self._queue.let_go(held.pop(arrival))
        if not held:
            del self._held[pair]

    def ended(self, request: Request) -> None:
        """A waiting request is no more."""
        if request.adapter is not None:
            pair = (request.tenant, request.adapter)
            held = self._held.get(pair, {})
            held.pop(request.arrival, None)
            if not held:
                self._held.pop(pair, None)

    def check(self) -> None:
        """Whoever is held waits, and is not alone in it for nothing."""
        assert all(self._held.values())
        held = [request for pair in self._held.values() for request in pair.values()]
        assert all(map(_waits, held))


def _waits(request: Request) -> bool:
    return request.status is RequestStatus.WAITING
