"""A request as the fair queue sees it, and what a scheduler does with it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from branchline.engine.fair_queue import FairQueue
from branchline.engine.request import RequestStatus


@dataclass(slots=True, eq=False)
class QueuedRequest:
    request_id: str
    arrival: int
    tenant: str = "a"
    weight: float = 1.0
    priority: int = 0
    num_uncomputed_tokens: int = 100
    token_ids: tuple[int, ...] = ()
    status: RequestStatus = RequestStatus.WAITING
    ticket: Any = None

    def __repr__(self) -> str:
        return self.request_id


class Requests:
    """Makes requests in order of arrival and queues them."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._arrivals = itertools.count()

    def __call__(self, tenant: str = "a", **fields: Any) -> QueuedRequest:
        arrival = next(self._arrivals)
        request = QueuedRequest(f"{tenant}{arrival}", arrival, tenant, **fields)
        self._queue.push(request)
        self._queue.check()
        return request


def run(queue: FairQueue, request: QueuedRequest, cost: float) -> None:
    """Seat a candidate and serve it, its whole prefill."""
    queue.activate(request)
    queue.charge(request, cost)
    queue.remove(request)


def finish(queue: FairQueue, *requests: QueuedRequest) -> None:
    for request in requests:
        if request in queue:
            queue.remove(request)
        queue.deactivate(request)
        queue.check()


def order(queue: FairQueue, cost: float = 100, count: int = 99) -> list[QueuedRequest]:
    """Who would run, each served that much; nobody does in the end."""
    taken = []
    for request in queue.candidates():
        taken.append(request)
        queue.charge(request, cost)
        if len(taken) == count:
            break
    return taken


def serve(queue: FairQueue, count: int, cost: float = 100) -> list[str]:
    """Serve that many of those that are next, to their end; returns their tenants."""
    served = []
    for request in queue.candidates():
        queue.activate(request)
        queue.charge(request, cost)
        served.append(request)
        if len(served) == count:
            break
    finish(queue, *served)
    return [request.tenant for request in served]


def seats(queue: FairQueue, new: Requests, **num_running: int) -> list[QueuedRequest]:
    """Running requests, every other one with the higher priority number."""
    running = []
    for tenant, count in num_running.items():
        for priority in range(count):
            request = new(tenant, priority=priority % 2)
            run(queue, request, 10)
            running.append(request)
    return running


def decode(queue: FairQueue, running: list[QueuedRequest]) -> None:
    """Some steps later."""
    next(queue.candidates(), None)
    for request in running * 3:
        queue.charge(request, 2)


def overdue_turn(
    queue: FairQueue, new: Requests, limit: int, tenant: str = "starved"
) -> QueuedRequest:
    """A request whose turn came, that could not start, and that others then overtook."""
    starved = new(tenant)
    queue.passed(starved)
    assert not queue.overdue(starved)
    run(queue, new("busy"), limit)
    assert not queue.overdue(starved)
    run(queue, new("busy"), 1)
    assert queue.overdue(starved)
    return starved
