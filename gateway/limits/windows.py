"""The scripts' rules in Python: for one gateway alone, and what it has used itself.

A window is 61 buckets of a second, sixty whole ones and the one that is not over yet: so no 60
seconds, wherever they begin, see more than the limit. What a request uses counts in the second
that admitted it. A budget is of a UTC day and counts input and output tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

SPAN = 61
DAY = 86400

Amounts = tuple[int, int, int]
"""Requests, input tokens, output tokens."""

NOTHING: Amounts = (0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a limiter says of a request; times in milliseconds.

    ``refused_by`` is an index of ``LIMIT_NAMES``, None: admitted. ``used`` is in that order too,
    with this request if it was admitted. ``second`` is where it counts. ``reset`` is when the
    windows will be empty if nothing more comes.
    """

    refused_by: int | None
    wait: int
    now: int
    second: int
    used: tuple[int, ...]
    reset: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """What a flight holds until it is settled."""

    second: int
    num_input_tokens: int
    num_output_tokens: int

    @property
    def amounts(self) -> Amounts:
        """As windows count it."""
        return (1, self.num_input_tokens, self.num_output_tokens)


@dataclass(slots=True)
class Windows:
    """One tenant's; ``now`` everywhere in milliseconds since 1970."""

    at: int = 0
    last: int = 0
    spent: int = 0
    used: list[int] = field(default_factory=lambda: [0, 0, 0])
    buckets: dict[int, list[int]] = field(default_factory=dict)
    flights: dict[str, tuple[int, Reserve]] = field(default_factory=dict)
    expired: dict[str, Reserve] = field(default_factory=dict)

    def admit(
        self,
        now: int,
        flight: str,
        expiry: int,
        tokens: tuple[int, int],
        limits: tuple[int | None, ...],
    ) -> Verdict:
        """Check all limits, then take all or nothing."""
        self.advance(now)
        self.reap(now)
        refused_by, wait = self._check(now, (1, *tokens), limits)
        if refused_by is None:
            self.take(flight, expiry, Reserve(self.at, *tokens))
            self.last = self.at
        return Verdict(
            refused_by=refused_by,
            wait=wait,
            now=now,
            second=self.at,
            used=(*self.used, len(self.flights), self.spent),
            reset=max(0, (self.last + SPAN) * 1000 - now),
        )

    def take(self, flight: str, expiry: int, reserve: Reserve) -> None:
        """Count a flight, whatever the limits."""
        self.flights[flight] = (expiry, reserve)
        self.charge(reserve.second, reserve.amounts)

    def settle(self, flight: str, final: Amounts) -> None:
        """Put what it really took in place of the reserve; of an unknown flight: nothing."""
        held = self.flights.pop(flight, None)
        reserve = held[1] if held is not None else self.expired.pop(flight, None)
        if reserve is not None:
            self.charge(reserve.second, minus(final, reserve.amounts))

    def advance(self, now: int) -> None:
        """Let go what the window has left behind."""
        second = now // 1000
        gap = second - self.at
        if -SPAN < gap <= 0:
            return  # If the clock went back a little, time stands still.
        if second // DAY != self.at // DAY:
            self.spent = 0
            self.expired.clear()
        self.at = second
        for old in [old for old in self.buckets if gap < 0 or old <= second - SPAN]:
            self.used = [*minus(_three(self.used), _three(self.buckets.pop(old)))]

    def charge(self, second: int, change: Amounts) -> None:
        """Add to a second's bucket, if the window still holds it, and to that day's budget."""
        second = min(second, self.at)
        if second > self.at - SPAN:
            bucket = self.buckets.setdefault(second, [0, 0, 0])
            for k in range(3):
                before = bucket[k]
                bucket[k] = max(0, before + change[k])
                self.used[k] += bucket[k] - before
        if second // DAY == self.at // DAY:
            self.spent = max(0, self.spent + change[1] + change[2])

    def reap(self, now: int) -> None:
        """Give back what flights that nobody renewed would still have written."""
        for flight in [name for name, (expiry, _) in self.flights.items() if expiry <= now]:
            _, reserve = self.flights.pop(flight)
            self.charge(reserve.second, (0, 0, -reserve.num_output_tokens))
            self.expired[flight] = replace(reserve, num_output_tokens=0)

    def _check(
        self, now: int, want: Amounts, limits: tuple[int | None, ...]
    ) -> tuple[int | None, int]:
        waits: list[tuple[int, int]] = []
        for k in range(3):
            limit = limits[k]
            if limit is not None and want[k] > 0:
                # More than the whole limit can only be had from an empty window.
                excess = self.used[k] + min(want[k], max(limit, 1)) - limit
                if excess > 0:
                    waits.append((k, self._wait_for(now, k, excess)))
        if limits[3] is not None and len(self.flights) >= limits[3]:
            waits.append((3, 1000))
        if limits[4] is not None and self.spent >= limits[4]:
            waits.append((4, DAY * 1000 - now % (DAY * 1000)))
        return max(waits, key=lambda found: found[1]) if waits else (None, 0)

    def _wait_for(self, now: int, k: int, excess: int) -> int:
        for second in sorted(self.buckets):
            excess -= self.buckets[second][k]
            if excess <= 0:
                return (second + SPAN) * 1000 - now
        return SPAN * 1000


def plus(left: Amounts, right: Amounts) -> Amounts:
    """The sum."""
    return (left[0] + right[0], left[1] + right[1], left[2] + right[2])


def minus(left: Amounts, right: Amounts) -> Amounts:
    """The difference."""
    return (left[0] - right[0], left[1] - right[1], left[2] - right[2])


def _three(values: list[int]) -> Amounts:
    return (values[0], values[1], values[2])
