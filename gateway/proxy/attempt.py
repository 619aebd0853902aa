"""One try at one replica: its connection and its place in the books, released once."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

from ..fleet.headers import ERROR_CODE
from ..fleet.tracing import Span
from ..types import Decision, Outcome
from ..view.flight import Flight
from .guard import Guard, UpstreamLost
from .header_rules import RawHeaders, to_client
from .upstream import LOST_ERRORS, error_code

MAX_REFUSAL_BYTES = 1 << 20
DRAIN_SECONDS = 0.25

_FINE = ("ok", "refused", "client_left")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error: passed on as it is when nobody has a better one."""

    status: int
    headers: RawHeaders
    body: bytes
    code: str | None = None


class Visit:
    """A request's place in a replica's books and in the trace; ended once."""

    def __init__(self, decision: Decision, flight: Flight, parent: Span | None) -> None:
        self.decision = decision
        self.flight = flight
        self.span: Span | None = None
        if parent is not None:
            replica: dict[str, str | int] = {"replica": decision.replica_id}
            self.span = parent.child("gateway.attempt", replica)

    def end(self, outcome: Outcome) -> None:
        """It is over; later calls do nothing."""
        self.flight.end(outcome)
        if self.span is not None:
            self.span.set("outcome", outcome)
            self.span.end(None if outcome in _FINE else outcome)
            self.span = None


class Attempt:
    """An answer that has begun. End it with ``finish`` or ``abandon``."""

    def __init__(
        self,
        visit: Visit,
        response: aiohttp.ClientResponse,
        guard: Guard,
        silence_timeout: float,
    ) -> None:
        self.decision = visit.decision
        self.response = response
        self._visit = visit
        self._guard = guard
        self._silence_timeout = silence_timeout

    @property
    def status(self) -> int:
        """Its HTTP status."""
        return self.response.status

    @property
    def is_event_stream(self) -> bool:
        """Whether events come."""
        return self.response.headers.get("content-type", "").startswith("text/event-stream")

    async def read(self) -> bytes:
        """The next piece of the body, empty at its end; raises UpstreamLost, ClientGone."""
        try:
            data = await self._guard.read(self.response.content.readany(), self._silence_timeout)
        except LOST_ERRORS as error:
            raise UpstreamLost(f"connection lost ({type(error).__name__})") from None
        self._visit.flight.progress()
        return data

    async def refusal(self) -> Refusal:
        """The whole of a short error answer; raises UpstreamLost where it is not whole."""
        body = b""
        while data := await self.read():
            body += data
            if len(body) > MAX_REFUSAL_BYTES:
                raise UpstreamLost("an error answer without end")
        headers = self.response.headers
        code = headers.get(ERROR_CODE) or error_code(body)
        return Refusal(self.status, to_client(headers), body, code)

    async def finish(self, outcome: Outcome) -> None:
        """All was read but the end mark: give the connection back."""
        self._end(outcome)
        try:
            if not self.response.content.at_eof():
                await self._guard.read(self.response.content.readany(), DRAIN_SECONDS)
        except (UpstreamLost, *LOST_ERRORS):
            self.response.close()
        except BaseException:
            self.response.close()
            raise
        self.response.release()

    def abandon(self, outcome: Outcome) -> None:
        """Break the connection off: the replica sees at once that nobody reads any more."""
        self._end(outcome)
        self.response.close()

    def _end(self, outcome: Outcome) -> None:
        if self._guard.flight is self._visit.flight:
            self._guard.flight = None
        self._visit.end(outcome)
