"""Whether a request is so far from its tenant's limits that Redis need not be asked first.

Redis says with each answer what all gateways' requests use. For a moment after, while half of every
limit is free, a gateway lets requests through by itself and tells Redis of them with its next news.
What Redis has not heard of stays under ``UNTOLD_SHARE`` of each limit over all gateways: by so much
they may be overshot, if others use up the other half within that moment. Small limits have no such
share, and each of their requests is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from .windows import Reserve

FRESH_MS = 300
"""For so long an answer says enough; news go out more often, see ``limiter.TELL_SECONDS``."""
FREE_SHARE = 0.5
UNTOLD_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Use:
    """What counts against limits, in the order of ``LIMIT_NAMES``."""

    amounts: tuple[int, ...] = (0, 0, 0, 0, 0)

    @classmethod
    def of(cls, reserve: Reserve) -> Use:
        """Of one request."""
        i, o = reserve.num_input_tokens, reserve.num_output_tokens
        return cls((1, i, o, 1, i + o))

    def __add__(self, other: Use) -> Use:
        return Use(tuple(map(sum, zip(self.amounts, other.amounts, strict=True))))


@dataclass(slots=True)
class Headroom:
    """One tenant's, at one gateway.

    ``untold`` is let through and in no news yet, ``sent`` in news whose answer is not there.
    """

    said: Use = field(default_factory=Use)
    said_at: float = -math.inf
    untold: Use = field(default_factory=Use)
    sent: Use = field(default_factory=Use)

    def hear(self, now: int, used: Sequence[int]) -> None:
        """What Redis counts, ms; an answer that was overtaken by a later one says nothing more."""
        if now < self.said_at:
            return
        self.said, self.said_at = Use(tuple(used)), now

    def forget(self) -> None:
        """What Redis said holds no more."""
        self.said_at = -math.inf

    def send(self) -> None:
        """All that is untold goes out with the next news."""
        self.sent, self.untold = self.sent + self.untold, Use()

    def told(self) -> None:
        """Redis has the news."""
        self.sent = Use()

    def take(
        self, now: int, reserve: Reserve, limits: Sequence[int | None], num_gateways: int
    ) -> Use | None:
        """Count a request in; gives all that is used then. None: Redis has to be asked."""
        if abs(now - self.said_at) > FRESH_MS:
            return None
        untold = self.untold + Use.of(reserve)
        unknown = self.sent + untold
        used = self.said + unknown
        share = UNTOLD_SHARE / max(1, num_gateways)
        for limit, mine, all_of_it in zip(limits, unknown.amounts, used.amounts, strict=True):
            if limit is not None and (mine > limit * share or all_of_it > limit * FREE_SHARE):
                return None
        self.untold = untold
        return used
