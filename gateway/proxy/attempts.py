"""Tries for one request: route, bring the adapter, send, and go elsewhere before the first byte.

| what a replica does | counts there as | then |
| --- | --- | --- |
| can't be reached, breaks off | unreachable | elsewhere |
| is silent and does not know the request, or was declared out | stalled | elsewhere |
| 5xx | failed | elsewhere, within the retry budget |
| 429, 503 with Retry-After or draining | overloaded | elsewhere; nobody has room: passed on |
| 401, 403: our secret is not its own | refused | elsewhere, else 502 |
| 404 for what the registry has | refused | brought there again, once; then elsewhere |
| 400 for what is kept elsewhere | refused | elsewhere, unless replicas share it; else passed on |
| 409 to a resumption | refused | elsewhere |
| other 4xx | refused | passed on untouched |
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

import aiohttp

from ..endpoints import RESPONSES
from ..errors import GatewayError
from ..fleet import headers as fleet
from ..types import Decision, Outcome
from .attempt import Attempt, Refusal, Visit
from .guard import Guard, UpstreamLost
from .job import Job, Trail
from .parts import ProxyParts, replica_of
from .turns import Turn
from .upstream import LOST_ERRORS

# A pooled connection that the replica closed meanwhile fails at once, and says nothing of it.
STALE_SECONDS = 0.05
BRING_SECONDS = 300.0
_REACHED_NOBODY = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

# What says something of the replica, or of what is there, and not of the request alone.
_OWN_4XX = frozenset({401, 403, 404, 409, 429})

_NOT_THERE = ("model_not_found", "adapter_not_here")
_NOT_KEPT = ("previous_response_not_found", "item_not_found")

logger = logging.getLogger(__name__)


class NoReplica(Exception):  # noqa: N818 - turned into an answer by ``answer``
    """No try is left; ``refusal`` is the last answer, if a replica gave one."""

    def __init__(self, refusal: Refusal | None, error: GatewayError | None = None) -> None:
        super().__init__("no replica is left to try")
        self.refusal = refusal
        self.error = error

    def answer(self) -> GatewayError:
        """What the client gets where no replica's own answer can be passed on."""
        return self.error or GatewayError(
            503,
            "No replica can take this request now.",
            code="no_replica",
            headers={"retry-after": "1"},
        )


class Attempts:
    """All tries for one job, the excluded replicas among them."""

    def __init__(self, parts: ProxyParts, job: Job, trail: Trail, guard: Guard) -> None:
        self.turn: Turn | None = None
        """Taken before, for the first try."""
        self.excluded: set[str] = set()
        self.mismatched: set[str] = set()
        """Replicas that can't ever continue this stream."""
        self._parts, self._job, self._trail, self._guard = parts, job, trail, guard
        self._num_tries = 0
        self._refusal: Refusal | None = None
        self._error: GatewayError | None = None
        self._is_brought_again = False
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether the gateway ends."""
        return self._guard.is_stopped

    def start_over(self) -> None:
        """New tries, at all replicas but those that can't continue the stream."""
        self.excluded = set(self.mismatched)
        self._num_tries = 0
        self._refusal = self._error = None

    def rule_out(self, replica_id: str) -> None:
        """A replica can't ever continue this stream."""
        self.mismatched.add(replica_id)
        self.excluded.add(replica_id)

    def lost(self, attempt: Attempt, lost: UpstreamLost) -> None:
        """An answer broke off: its replica is not asked again."""
        attempt.abandon(lost.outcome)
        self._exclude(attempt.decision, str(lost), lost.outcome)

    async def pause(self, seconds: float) -> None:
        """Wait, unless the client leaves: raises ClientGone."""
        await self._guard.read(asyncio.sleep(seconds), seconds + 60)

    async def open(self, record: bytes = b"") -> Attempt:
        """The first answer that is worth having; raises NoReplica, ClientGone.

        With ``record`` the stream goes on from there.
        """
        while True:
            decision = self._choose()
            try:
                attempt = await self._send(decision, record)
                if attempt.status < 300 or not await self._is_refused(attempt, bool(record)):
                    return attempt
            except UpstreamLost as lost:
                self._exclude(decision, str(lost), lost.outcome)
                if lost.outcome == "refused":  # it was us
                    self.excluded.discard(decision.replica_id)
            except GatewayError as error:
                # The adapter can't be brought there.
                if error.status < 500:
                    raise
                self._error = error
                self._exclude(decision, error.message, "adapter")

    def _choose(self) -> Decision:
        parts = self._parts
        if self.is_stopped:
            raise NoReplica(None, GatewayError(503, "The gateway shuts down.", code="draining"))
        if self._num_tries >= parts.limits.max_tries:
            raise NoReplica(self._refusal, self._error)
        request = parts.route_request(self._job, frozenset(self.excluded))
        decision = parts.router.choose(request, parts.view.snapshot())
        if decision is None:
            raise NoReplica(self._refusal, self._error)
        self._num_tries += 1
        if self._num_tries > 1:
            self._trail.num_retries += 1
        self._trail.decision = decision
        parts.metrics.routed(decision)
        parts.index.expect(decision.replica_id, self._job.prefix_keys)
        if self._trail.span is not None:
            route = {"reason": decision.reason, "replica": decision.replica_id}
            self._trail.span.child("gateway.route", route).end()
        return decision

    def _exclude(self, decision: Decision, reason: str, word: str) -> None:
        self.excluded.add(decision.replica_id)
        self._parts.metrics.retried(word)
        logger.info("request %s: %s: %s", self._job.request_id, decision.replica_id, reason)

    async def _send(self, decision: Decision, record: bytes) -> Attempt:
        flight = self._parts.view.begin(decision.replica_id, decision.num_uncached_tokens)
        visit = Visit(decision, flight, self._trail.span)
        self._guard.flight = flight
        try:
            await self._bring_adapter(decision)
            response = await self._post(visit, record)
        except UpstreamLost as lost:
            self._end(visit, lost.outcome)
            raise
        except GatewayError:
            self._end(visit, "refused")
            raise
        except BaseException:
            self._end(visit, "client_left")
            raise
        flight.first_byte()
        self._trail.note_first_byte()
        return Attempt(visit, response, self._guard, self._parts.limits.silence_timeout)

    def _end(self, visit: Visit, outcome: Outcome) -> None:
        self._guard.flight = None
        visit.end(outcome)

    async def _bring_adapter(self, decision: Decision, *, again: bool = False) -> None:
        target = self._job.target
        if not target.in_registry:
            return
        replica = replica_of(self._parts.view.snapshot(), decision.replica_id)
        if replica is None:
            raise UpstreamLost("it is gone")
        place = replica.places.get(target.wire_name)
        if again or place is None or place.error is not None:
            bringing = self._parts.adapters.ensure(target, replica, anew=again)
            await self._guard.read(bringing, BRING_SECONDS)

    async def _post(self, visit: Visit, record: bytes) -> aiohttp.ClientResponse:
        """Send, once more at once where a pooled connection was stale."""
        since = time.perf_counter()
        try:
            return await self._post_once(visit, record)
        except LOST_ERRORS as error:
            was_stale = time.perf_counter() - since < STALE_SECONDS
            if isinstance(error, _REACHED_NOBODY) or not was_stale:
                raise self._unreachable(error) from None
        try:
            return await self._post_once(visit, record)
        except LOST_ERRORS as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> UpstreamLost:
        was_us = isinstance(error, TimeoutError) and self._parts.watchdog.was_late
        reason = f"can't be reached ({type(error).__name__})"
        return UpstreamLost(reason, "refused" if was_us else "unreachable")

    async def _post_once(self, visit: Visit, record: bytes) -> aiohttp.ClientResponse:
        job, guard, url = self._job, self._guard, visit.decision.url
        timeout = self._parts.limits.first_byte_timeout
        request_id = f"{job.request_id[:96]}.{secrets.token_hex(3)}"
        headers = {**job.headers, fleet.REQUEST_ID: request_id}
        if record:
            headers[fleet.RESUME] = str(len(record))
        if visit.span is not None:
            headers[fleet.TRACE_PARENT] = visit.span.traceparent
        self._trail.note_sent()
        guard.when_late = lambda: self._ask(url, request_id, timeout)
        turn = self.turn or await self._parts.turns.take()
        self.turn = None
        try:
            sending = self._parts.upstream.post(
                f"{url}{job.path}", headers, record + job.body, turn.release
            )
            return await guard.read(sending, timeout)
        finally:
            turn.release()
            guard.when_late = None
            if self._probe is not None:
                self._probe.cancel()
                self._probe = None

    def _ask(self, url: str, request_id: str, timeout: float) -> None:
        """Ask a silent replica whether it has the request at all."""

        async def ask() -> None:
            if await self._parts.upstream.knows(url, request_id):
                self._guard.extend(timeout)
            else:
                self._guard.lose("silent, and does not know the request", "stalled")

        self._probe = asyncio.create_task(ask())

    async def _is_refused(self, attempt: Attempt, is_resumption: bool) -> bool:
        """Whether to try again with an answer of 300 and over; then it is ended."""
        status = attempt.status
        is_own = status in _OWN_4XX or (status == 400 and self._may_be_kept_elsewhere())
        if 400 <= status < 500 and not is_own and not is_resumption:
            return False
        try:
            refusal = await attempt.refusal()
        except UpstreamLost as lost:
            self.lost(attempt, lost)
            return True
        code = refusal.code
        await attempt.finish(_outcome_of(refusal))
        decision = attempt.decision
        if status == 404 and code in _NOT_THERE:
            await self._not_there(decision)
            return True
        if code in _NOT_KEPT and not is_resumption:
            self._refusal = refusal
            self._exclude(decision, "does not keep what it goes on from", "refused")
            return True
        if status in (401, 403):
            logger.error("replica %s refuses the fleet's secret", decision.replica_id)
            self._error = GatewayError(502, "The replicas refuse this.", code="replica_refused")
        elif is_resumption and status < 500 and status != 429:
            self.mismatched.add(decision.replica_id)
        else:
            self._refusal = refusal
            if status < 429 or not self._parts.budget.take():
                raise NoReplica(refusal)
        self._exclude(decision, f"answered {status}", _outcome_of(refusal))
        return True

    def _may_be_kept_elsewhere(self) -> bool:
        """Whether it may go on from what only one replica keeps, as each does without a Redis."""
        return self._job.path == RESPONSES and not self._parts.shares_responses

    async def _not_there(self, decision: Decision) -> None:
        """A replica lacks a model that this gateway still saw there: bring it once, then others."""
        target = self._job.target
        self._error = GatewayError(
            404, f"The model {target.name!r} is not there.", param="model", code="model_not_found"
        )
        if target.in_registry and not self._is_brought_again:
            self._is_brought_again = True
            await self._bring_adapter(decision, again=True)
        else:
            self._exclude(decision, f"lacks {target.wire_name}", "adapter")


def _outcome_of(refusal: Refusal) -> Outcome:
    if refusal.status == 429:
        return "overloaded"
    if refusal.status == 503:
        names = [name for name, _ in refusal.headers]
        is_busy = refusal.code == "draining" or b"retry-after" in names
        return "overloaded" if is_busy else "failed"
    return "refused" if refusal.status < 500 else "failed"
