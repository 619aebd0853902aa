"""A fleet's hour in seconds: discrete events, with the real router and its delays."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from branchline.gateway.routing.choice import Policy
from branchline.gateway.view.flight import Flight

from .gateway import Board, PrefixIndex, SimGateway
from .machine import Machine
from .replica import Served, SimReplica
from .traffic import SimRequest

BEAT_SECONDS = 0.25
POLL_SECONDS = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Who stands where; each gateway gets a policy and an index of its own."""

    policy: Callable[[], Policy]
    index: Callable[[Callable[[], float]], PrefixIndex]
    machine: Machine = field(default_factory=Machine)
    num_replicas: int = 4
    num_gateways: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Everything served, and the prompt tokens that each replica computed."""

    served: list[Served]
    num_computed_tokens: list[int]


class Simulation:
    """Beats and polls are spread over their periods; a request takes no time on the way."""

    def __init__(self, setup: Setup, requests: Sequence[SimRequest]) -> None:
        self._now = 0.0
        self._requests = requests
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._board = Board()
        self._replicas = {
            f"r{i}": SimReplica(f"r{i}", setup.machine) for i in range(setup.num_replicas)
        }
        self._gateways = [
            SimGateway(f"g{i}", setup.policy(), setup.index(self._clock), self._clock)
            for i in range(setup.num_gateways)
        ]
        self._flights: dict[int, Flight] = {}
        self._served: list[Served] = []
        self._num_open = len(requests)

    def run(self) -> Run:
        """Until the last request is answered."""
        for number, replica in enumerate(self._replicas.values()):
            self._beat(replica, BEAT_SECONDS * number / len(self._replicas))
        for number, gateway in enumerate(self._gateways):
            self._poll(gateway, POLL_SECONDS * number / len(self._gateways))
        for request in self._requests:
            self._at(request.at, partial(self._arrive, request))
        while self._num_open:
            self._now, _, event = heapq.heappop(self._events)
            event()
        return Run(self._served, [one.num_computed_tokens for one in self._replicas.values()])

    def _clock(self) -> float:
        return self._now

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _beat(self, replica: SimReplica, first_wait: float = BEAT_SECONDS) -> None:
        board, replica_id = self._board, replica.replica_id
        events = replica.key_events()
        if events is not None:
            board.events.setdefault(replica_id, []).append(events)
        board.replicas[replica_id] = (replica.report(), self._now)
        places = board.places.get(replica_id)
        if places is None or places.version != replica.adapters.version:
            board.places[replica_id] = replica.places()
        self._at(self._now + first_wait, lambda: self._beat(replica))

    def _poll(self, gateway: SimGateway, first_wait: float = POLL_SECONDS) -> None:
        gateway.poll(self._board)
        self._at(self._now + first_wait, lambda: self._poll(gateway))

    def _arrive(self, request: SimRequest) -> None:
        gateway = self._gateways[request.number % len(self._gateways)]
        flight = gateway.send(request)
        self._flights[request.number] = flight
        replica = self._replicas[flight.replica_id]
        self._served.append(replica.arrive(self._now, request))
        self._go_on(replica)

    def _go_on(self, replica: SimReplica) -> None:
        """Begin the next step, or come back when an adapter is there."""
        if replica.step is not None:
            return
        ends_at = replica.next_step(self._now)
        if ends_at is not None:
            self._at(ends_at, lambda: self._step_ended(replica))
            return
        wakes_at = replica.wakes_at()
        if wakes_at is not None and wakes_at > self._now:
            self._at(wakes_at, lambda: self._go_on(replica))

    def _step_ended(self, replica: SimReplica) -> None:
        for served in replica.end_step():
            self._flights[served.request.number].first_byte()
        for served in replica.finished:
            self._flights.pop(served.request.number).end("ok")
            self._num_open -= 1
        replica.finished.clear()
        self._go_on(replica)
