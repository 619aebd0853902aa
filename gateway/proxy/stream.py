"""Streams: passed on event by event, and resumed on another replica when one is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..endpoints import endpoint_of
from ..error_shapes import stream_error
from ..errors import GatewayError
from ..types import Usage
from .attempt import Attempt
from .attempts import Attempts, NoReplica
from .client_side import ClientSide
from .guard import UpstreamLost
from .job import Trail
from .parts import ProxyParts
from .record import StreamRecord
from .sse import BadStream, BlockReader
from .whole import read_usage, relay_whole

MAX_RESUMES = 32
POLL_SECONDS = 0.2

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)

logger = logging.getLogger(__name__)


class StreamRelay:
    """One stream, over all the replicas that it takes.

    ``usage`` may be read at any time: what the client has of it so far.
    """

    def __init__(
        self,
        parts: ProxyParts,
        attempts: Attempts,
        client: ClientSide,
        trail: Trail,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._keeps_done = trail.path, endpoint_of(trail.path).keeps_done
        self.record = self._new_record()
        self._parts, self._attempts, self._client, self._trail = parts, attempts, client, trail
        self._clock = clock
        self._told: Usage | None = None

    def usage(self, num_input_tokens: int) -> Usage:
        """What was used; ``num_input_tokens`` stands in where no replica said it."""
        last = self.record.last_event
        # Of streams with named events the usage is spread over several.
        is_there = last.startswith(b"data: ") and b'"usage"' in last
        told = read_usage(last[len(b"data: ") :]) if is_there else None
        return self._told or told or self.record.usage(num_input_tokens)

    async def run(self, attempt: Attempt) -> None:
        """Pass it on to its end; raises NoReplica while nothing is sent, and ClientGone."""
        num_in_vain = 0
        while True:
            num_tokens = self.record.num_output_tokens
            lost = await self._relay(attempt)
            if lost is None:
                return
            self._attempts.lost(attempt, lost)
            if not self._client.has_started:
                self.record = self._new_record()
                attempt = await self._attempts.open()
                if attempt.status < 300 and attempt.is_event_stream:
                    continue
                limit = self._parts.limits.max_buffered_bytes
                self._told = await relay_whole(self._attempts, attempt, self._client, limit)
                return
            num_in_vain = 0 if self.record.num_output_tokens > num_tokens else num_in_vain + 1
            resumed = await self._resume() if self._may_resume(num_in_vain) else None
            if resumed is None:
                await self._interrupted()
                return
            attempt = resumed

    def _new_record(self) -> StreamRecord:
        return StreamRecord(keeps_done=self._keeps_done)

    def _may_resume(self, num_in_vain: int) -> bool:
        """A stream that takes one replica after the other down is not carried to the next."""
        if self._attempts.is_stopped or self._trail.num_resumes >= MAX_RESUMES:
            return False
        return num_in_vain < self._parts.limits.max_tries

    async def _relay(self, attempt: Attempt) -> UpstreamLost | None:
        """Pass on what this replica sends; None when the stream is at its end."""
        try:
            await self._pass_on(attempt)
        except UpstreamLost as lost:
            return lost
        except BaseException:
            attempt.abandon("client_left")
            raise
        await attempt.finish("ok")
        return None

    async def _pass_on(self, attempt: Attempt) -> None:
        record, blocks = self.record, BlockReader()
        record.restart()
        while not record.is_done:
            data = await attempt.read()
            if not data:
                raise UpstreamLost("the stream ended early")
            try:
                out = record.take(blocks.feed(data))
            except BadStream as fault:
                raise UpstreamLost(str(fault), "failed") from None
            if out or record.is_done:
                if not self._client.has_started:
                    await self._client.start(200, _HEADERS)
                await self._client.write(out, more=not record.is_done)
            if record.fault is not None:
                raise UpstreamLost(record.fault, "failed")

    async def _resume(self) -> Attempt | None:
        """Another replica that goes on; None if none does within the time there is."""
        deadline = self._clock() + self._parts.limits.resume_timeout
        self._rule_out()
        while self.record.can_resume and self._clock() < deadline:
            try:
                attempt = await self._attempts.open(self.record.resume_bytes())
            except (NoReplica, GatewayError) as error:
                logger.info("request %s: no resumption yet: %s", self._trail.request_id, error)
                if self._is_hopeless():
                    break
                try:
                    await self._attempts.pause(POLL_SECONDS)
                except UpstreamLost:  # the gateway ends
                    break
                self._attempts.start_over()
                self._rule_out()
            else:
                self._attempts.start_over()
                self._trail.num_resumes += 1
                self._parts.metrics.resumed("resumed")
                return attempt
        return None

    def _rule_out(self) -> None:
        """Don't ask replicas that would compute something else; see ``StreamOpening``."""
        for replica in self._parts.view.snapshot().replicas:
            if not self.record.fits(replica.report.fingerprint):
                self._attempts.rule_out(replica.replica_id)

    def _is_hopeless(self) -> bool:
        """Whether all that are up have said that they can't continue this stream."""
        up = {r.replica_id for r in self._parts.view.snapshot().replicas if r.is_up}
        return bool(up) and up <= self._attempts.mismatched

    async def _interrupted(self) -> None:
        """Tell the client, in the stream, that it is cut."""
        self._parts.metrics.resumed("failed")
        self._trail.outcome = "interrupted"
        error = GatewayError(
            502,
            "The replica that answered was lost, and no other could go on from there.",
            code="stream_interrupted",
        )
        event = stream_error(self._path, error, self.record.last_event)
        await self._client.write(event, more=False)
