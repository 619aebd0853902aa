"""Whom to ask to hold a version, and how long to wait for one that has fallen silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from ..errors import GatewayError
from ..types import ReplicaView

NO_REPLICA = "no_replica_holds_it"

Candidates = Callable[[], Sequence[ReplicaView]]
"""Who may be asked now, the best first: the fleet changes while it is asked."""

Standing = Callable[[ReplicaView], bool | None]
"""Whether a replica is up; None: another process has its name now."""

OUT_SECONDS = 5.0
"""A call under way outlives its replica's absence by so much: a busy machine's is a short one."""
MAX_GAP_SECONDS = 1.0
"""Of the time between two looks; what is longer, we were blind for."""
SETTLE_SECONDS, FIRST_PAUSE = 6.0, 0.5
"""How long those are asked again that failed, each time after twice the pause: by then one that
is up in name only is out."""


class Tries:
    """Asks candidates in their order, each once; then, for a while, those that failed again.

    ``asked`` are ids that need not be.
    """

    def __init__(
        self, candidates: Candidates, settle_seconds: float, asked: Iterable[str] = ()
    ) -> None:
        self._candidates = candidates
        self._settle_seconds = settle_seconds
        self._asked = set(asked)
        self._failed: set[str] = set()
        self._ends_at = float("inf")
        self._pause = FIRST_PAUSE

    async def next(self, count: int) -> list[ReplicaView]:
        """Up to ``count`` to be asked now; none: after a pause, so the fleet may be another.

        Raises GatewayError 503 when there is nobody, and has been nobody for long enough.
        """
        fresh = [one for one in self._candidates() if one.replica_id not in self._asked][:count]
        if fresh:
            self._asked.update(one.replica_id for one in fresh)
            return fresh
        now = time.monotonic()
        self._ends_at = min(self._ends_at, now + self._settle_seconds)
        if now >= self._ends_at:
            raise no_replicas()
        await asyncio.sleep(min(self._pause, self._ends_at - now))
        self._pause *= 2
        self._asked -= self._failed
        self._failed.clear()
        return []

    def failed(self, replica: ReplicaView) -> None:
        """It did not do it, and may be asked again later."""
        self._failed.add(replica.replica_id)

    def forget(self, replica: ReplicaView) -> None:
        """It did, but is another process now."""
        self._asked.discard(replica.replica_id)


class Patience:
    """Tells when a replica is lost for a call: for ``seconds`` out on end, or another process."""

    def __init__(
        self,
        standing: Callable[[], bool | None],
        seconds: float = OUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standing = standing
        self._seconds = seconds
        self._clock = clock
        self._looked_at = clock()
        self._seconds_out = 0.0

    def is_over(self) -> bool:
        """Look; True once nobody should wait any longer."""
        now, standing = self._clock(), self._standing()
        gap, self._looked_at = now - self._looked_at, now
        self._seconds_out = 0.0 if standing else self._seconds_out + min(gap, MAX_GAP_SECONDS)
        return standing is None or self._seconds_out > self._seconds


def no_replicas() -> GatewayError:
    """503: too few replicas are there for it."""
    return GatewayError(
        503,
        "Not enough replicas could take the adapter; nothing has changed.",
        code=NO_REPLICA,
        headers={"retry-after": "1"},
    )
