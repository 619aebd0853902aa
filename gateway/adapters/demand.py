"""How much each adapter version is asked for, in tokens a second, forgotten by halves."""

from __future__ import annotations

import heapq
import math
import time
from collections import OrderedDict
from collections.abc import Callable

HALF_LIFE = 30.0
MAX_VERSIONS = 4096
MAX_TOLD = 64
"""How many versions' demand a gateway tells the others of."""


class DemandMeter:
    """Exponentially weighted rates; those that are longest not asked for are forgotten first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def note(self, version_id: str, num_tokens: int) -> None:
        """A request of so many tokens, those that it may generate included."""
        rate = self.rate(version_id) + max(1, num_tokens) * math.log(2) / HALF_LIFE
        self._rates[version_id] = (rate, self._clock())
        self._rates.move_to_end(version_id)
        if len(self._rates) > MAX_VERSIONS:
            self._rates.popitem(last=False)

    def rate(self, version_id: str) -> float:
        """Tokens a second now."""
        rate, since = self._rates.get(version_id, (0.0, 0.0))
        return float(rate * 0.5 ** ((self._clock() - since) / HALF_LIFE)) if rate else 0.0

    def busiest(self) -> dict[str, float]:
        """The versions that are asked for most, by id."""
        rates = {version_id: self.rate(version_id) for version_id in self._rates}
        chosen = heapq.nlargest(MAX_TOLD, rates, key=rates.__getitem__)
        return {version_id: rates[version_id] for version_id in chosen if rates[version_id] >= 0.01}
