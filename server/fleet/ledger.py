"""Which of the fleet's requests are here, so that a gateway that lost sight of one can ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

KEPT_SECONDS = 60.0
MAX_ENDED = 10_000


@dataclass(slots=True, eq=False)
class LedgerEntry:
    """One request; ``is_sent`` once its answer has begun, ``ended_at`` by the ledger's clock."""

    is_sent: bool = False
    ended_at: float | None = None


class RequestLedger:
    """Requests by their ``x-request-id``: those under way, and those that ended a minute ago."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[str, LedgerEntry] = {}
        self._ended: OrderedDict[str, LedgerEntry] = OrderedDict()

    @contextmanager
    def enter(self, request_id: str) -> Iterator[LedgerEntry]:
        """Be known for one request; a second one of the same id takes the first one's place."""
        entry = self._under_way[request_id] = LedgerEntry()
        try:
            yield entry
        finally:
            if self._under_way.get(request_id) is entry:
                del self._under_way[request_id]
            entry.ended_at = self._clock()
            self._ended.pop(request_id, None)
            self._ended[request_id] = entry
            self._forget()

    def find(self, request_id: str) -> LedgerEntry | None:
        """A request that is here, or ended within the last minute."""
        self._forget()
        return self._under_way.get(request_id) or self._ended.get(request_id)

    def _forget(self) -> None:
        oldest = self._clock() - KEPT_SECONDS
        while self._ended:
            entry = next(iter(self._ended.values()))
            assert entry.ended_at is not None
            if len(self._ended) <= MAX_ENDED and entry.ended_at > oldest:
                return
            self._ended.popitem(last=False)
