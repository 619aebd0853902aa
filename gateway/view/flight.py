"""One request on its way to a replica, and what each replica has of ours."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from ..fleet.records import ReplicaLoad
from ..types import Outcome

ARRIVAL_SECONDS = 0.1
"""How long a request may take until a report of the replica can count it."""


class Flight:
    """Ends exactly once; ``lost`` is set when the replica is gone with everything it had.

    ``lost_reason`` is one of ``rules.LOSES_STREAMS``. Later calls than ``end`` do nothing.
    """

    __slots__ = (
        *("_book", "begun_at", "generation", "has_answered", "is_counted", "is_over"),
        *("lost", "lost_reason", "num_prefill_tokens"),
    )

    def __init__(
        self, book: FlightBook, num_prefill_tokens: int, begun_at: float, generation: int
    ) -> None:
        self._book = book
        self.num_prefill_tokens = num_prefill_tokens
        self.begun_at = begun_at
        self.generation = generation
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.has_answered = False
        self.is_counted = True
        self.is_over = False

    @property
    def replica_id(self) -> str:
        """Where it goes."""
        return self._book.replica_id

    def first_byte(self) -> None:
        """Its prompt is computed."""
        if not (self.has_answered or self.is_over):
            self._book.answered(self)

    def progress(self) -> None:
        """More of its answer came. Nothing is kept of it: a replica's steps tell its health."""

    def lose(self, reason: str) -> None:
        """Nothing more will come; the first reason stays."""
        if not self.lost.is_set():
            self.lost_reason = reason
            self.lost.set()

    def end(self, outcome: Outcome) -> None:
        """It is over, one way or the other."""
        if not self.is_over:
            self._book.ended(self, outcome)


class FlightBook:
    """Our flights to one replica, and which of them its last report can't know.

    A report of what the replica has and our own count of what we sent overlap. So we count only
    what was sent after that report was made, or so shortly before that it was still on its way:
    counting twice for a moment makes a replica look busier than it is, missing would herd.
    """

    def __init__(
        self,
        replica_id: str,
        clock: Callable[[], float],
        on_change: Callable[[str], None],
        on_end: Callable[[Flight, Outcome], None],
    ) -> None:
        self.replica_id = replica_id
        self.clock = clock
        self._on_change = on_change
        self._on_end = on_end
        self._flights: dict[Flight, None] = {}
        self._young: deque[Flight] = deque()
        self._num_unanswered = 0
        self._num_requests = 0
        self._num_prefill_tokens = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def load(self) -> ReplicaLoad:
        """What the replica's last report can't know of ours."""
        return ReplicaLoad(
            num_requests=self._num_requests, num_prefill_tokens=self._num_prefill_tokens
        )

    @property
    def num_unanswered(self) -> int:
        """Flights that wait for their first byte."""
        return self._num_unanswered

    def begin(self, num_prefill_tokens: int, generation: int) -> Flight:
        """A request leaves now."""
        flight = Flight(self, max(num_prefill_tokens, 0), self.clock(), generation)
        self._flights[flight] = None
        self._young.append(flight)
        self._num_unanswered += 1
        self._num_requests += 1
        self._num_prefill_tokens += flight.num_prefill_tokens
        self._on_change(self.replica_id)
        return flight

    def reported(self, made_at: float, p99_step_seconds: float) -> None:
        """The replica counted what it had at ``made_at``, as of its last step then."""
        known_until = made_at - ARRIVAL_SECONDS - min(p99_step_seconds, 1.0)
        while self._young and (self._young[0].is_over or self._young[0].begun_at < known_until):
            self._uncount(self._young.popleft())

    def answered(self, flight: Flight) -> None:
        """Its prompt is computed."""
        flight.has_answered = True
        self._num_unanswered -= 1
        if flight.is_counted:
            self._num_prefill_tokens -= flight.num_prefill_tokens
            self._on_change(self.replica_id)

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        """It takes nothing of the replica any more."""
        if flight.is_counted:
            self._uncount(flight)
            self._on_change(self.replica_id)
        flight.is_over = True
        self._num_unanswered -= not flight.has_answered
        del self._flights[flight]
        self._on_end(flight, outcome)

    def lose(self, reason: str) -> None:
        """Tell all flights that nothing more will come; they are still to be ended."""
        for flight in self._flights:
            flight.lose(reason)

    def check(self) -> None:
        """What is counted is what is under way."""
        counted = [flight for flight in self._flights if flight.is_counted]
        waiting = [flight for flight in counted if not flight.has_answered]
        assert self._num_requests == len(counted)
        assert self._num_prefill_tokens == sum(flight.num_prefill_tokens for flight in waiting)
        assert self._num_unanswered == sum(not flight.has_answered for flight in self._flights)
        assert set(counted) <= set(self._young)

    def _uncount(self, flight: Flight) -> None:
        if flight.is_counted:
            flight.is_counted = False
            self._num_requests -= 1
            if not flight.has_answered:
                self._num_prefill_tokens -= flight.num_prefill_tokens
