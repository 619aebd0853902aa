"""Time limits and losses of running requests, watched by one sweep instead of a timer a read."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from ..types import Outcome
from ..view.flight import Flight

SWEEP_SECONDS = 0.05
LAG_SECONDS = 0.2
LATE_SECONDS = 3.0

SHUT_DOWN = "the gateway shuts down"

T = TypeVar("T")


class UpstreamLost(Exception):  # noqa: N818 - a replica's end, not an error of this code
    """An attempt is over before its answer is: why, and whether it was silence.

    ``outcome`` is what it says of the replica: nothing (``refused``) where this process was too
    slow.
    """

    def __init__(self, reason: str, outcome: Outcome = "unreachable") -> None:
        super().__init__(reason)
        self.outcome = outcome


class ClientGone(Exception):  # noqa: N818 - as above
    """The client left, or takes nothing."""


class Guard:
    """What may interrupt one request while it waits.

    ``read`` is interrupted by silence and by the loss of the replica, ``send`` by a client that
    takes nothing, both by a client that left. Whatever interrupts cancels the request's task,
    and turns into an exception here.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.flight: Flight | None = None
        self.is_answered = False
        """The last byte goes out: that the client leaves after it is nobody's loss."""
        self.is_stopped = False
        """The gateway ends: nothing is read any more, nothing tried again."""
        self.when_late: Callable[[], None] | None = None
        """Called instead of an interruption when a read takes too long; sets ``extend``."""
        self._task = task
        self._clock = clock
        self._deadline = math.inf
        self._is_reading = False
        self._is_sending = False
        self._has_left = False
        self._cause: Exception | None = None

    async def read(self, waiting: Awaitable[T], seconds: float) -> T:
        """The result of ``waiting`` on a replica; raises UpstreamLost, ClientGone."""
        self._deadline, self._is_reading = self._clock() + seconds, True
        if self.is_stopped:
            self.lose(SHUT_DOWN, "refused")
        try:
            await self._settle_pending(waiting)
            return await waiting
        except asyncio.CancelledError:
            self._explain()
            raise
        finally:
            self._is_reading = False

    async def send(self, sending: Awaitable[None], seconds: float) -> None:
        """Wait for the client to take something; raises ClientGone."""
        self._deadline, self._is_sending = self._clock() + seconds, True
        try:
            await self._settle_pending(sending)
            await sending
        except asyncio.CancelledError:
            self._explain()
            raise
        finally:
            self._is_sending = False

    def stop(self) -> None:
        """End the request with what its client has."""
        self.is_stopped = True
        self.lose(SHUT_DOWN, "refused")

    def extend(self, seconds: float) -> None:
        """Give the read that is late more time."""
        self._deadline = self._clock() + seconds

    def lose(self, reason: str, outcome: Outcome = "unreachable") -> None:
        """Interrupt the read that is going on."""
        if self._is_reading:
            self._interrupt(UpstreamLost(reason, outcome))

    def client_left(self) -> None:
        """The client closed the connection: interrupt whatever is going on."""
        if not self.is_answered:
            self._has_left = True
            self._interrupt(ClientGone("the client left"))

    def takes_back(self) -> bool:
        """Whether a cancellation that came outside of ``read`` and ``send`` was of this guard."""
        if self._cause is None:
            return False
        self._cause = None
        self._task.uncancel()
        return True

    def delay(self, seconds: float) -> None:
        """The event loop stood still for so long: nobody's fault out there."""
        self._deadline += seconds

    def sweep(self, now: float) -> None:
        """Interrupt what is over its time, or on a lost replica."""
        if self._is_sending:
            if now > self._deadline:
                self._interrupt(ClientGone("the client takes nothing"))
        elif self._is_reading:
            if self.flight is not None and self.flight.lost.is_set():
                self.lose(self.flight.lost_reason, "stalled")
            elif now > self._deadline:
                self._is_late()

    def _is_late(self) -> None:
        if self.when_late is None:
            self.lose("silence", "stalled")
        else:
            self._deadline = math.inf
            self.when_late()

    def _interrupt(self, cause: Exception) -> None:
        if self._cause is None:
            self._cause = cause
            self._task.cancel()

    async def _settle_pending(self, unbegun: Awaitable[object]) -> None:
        """An interruption that a library took for its own and swallowed is raised here."""
        if self._cause is not None:
            if isinstance(unbegun, Coroutine):
                unbegun.close()
            await asyncio.sleep(0)
            self._explain()

    def _explain(self) -> None:
        """Raise what stands behind a cancellation, if it is one of ours."""
        cause, self._cause = self._cause, None
        if cause is not None:
            self._task.uncancel()
            raise ClientGone("the client left") if self._has_left else cause


class Watchdog:
    """Sweeps the guards of all running requests.

    When the sweep itself is late, the event loop was: then all get that time on top, since what
    they wait for may be here and not read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guards: set[Guard] = set()
        self._swept_at = clock()
        self._late_at = -math.inf

    @property
    def was_late(self) -> bool:
        """Whether the event loop was late within the last seconds."""
        now = self._clock()
        return now - self._late_at < LATE_SECONDS or now - self._swept_at > LAG_SECONDS

    def add(self, guard: Guard) -> None:
        """Watch a request."""
        self._guards.add(guard)

    def remove(self, guard: Guard) -> None:
        """The request is over."""
        self._guards.discard(guard)

    def sweep(self) -> None:
        """One look at all of them."""
        now = self._clock()
        lag = now - self._swept_at - SWEEP_SECONDS
        self._swept_at = now
        if lag > LAG_SECONDS:
            self._late_at = now
        for guard in list(self._guards):
            if lag > LAG_SECONDS:
                guard.delay(lag)
            guard.sweep(now)

    def stop_all(self) -> None:
        """The gateway ends now."""
        for guard in list(self._guards):
            guard.stop()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sweep()
