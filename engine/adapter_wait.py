"""Requests whose adapter is on its way: one of a tenant asks for it, the others are held back."""

from __future__ import annotations

from collections import deque

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
        self._held: dict[Pair, deque[Request]] = {}

    def wait(self, request: Request) -> None:
        """A candidate's turn came, and its adapter is not ready."""
        assert request.adapter is not None
        pair = (request.tenant, request.adapter)
        scout = self._scouts.setdefault(pair, request)
        if scout is not request and _waits(scout):
            self._queue.hold(request)
            self._held.setdefault(pair, deque()).append(request)
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
        while held and count:
            request = held.popleft()
            if _waits(request):
                self._queue.let_go(request)
                count -= 1
        if not held:
            del self._held[pair]

    def check(self) -> None:
        """Whoever is held has a scout, or will have one in the next step."""
        assert all(self._held.values())


def _waits(request: Request) -> bool:
    return request.status is RequestStatus.WAITING
