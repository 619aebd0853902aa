"""One gateway's part in one tenant's limits, and what Redis must still be told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from .headroom import Headroom
from .limits import Limits
from .scripts import LEASE_SECONDS, Charge, News, Renewal, Settled, Settlement
from .windows import DAY, NOTHING, SPAN, Amounts, Reserve, Verdict, Windows, minus, plus

MAX_NEWS = 500
"""Renewals, settlements and charges in one call, each."""
RENEW_SECONDS = LEASE_SECONDS / 3


@dataclass(frozen=True, slots=True)
class Flight:
    """A request under way.

    ``counted`` is what Redis' windows hold for it even where they don't know it: after its lease
    ran out, or before they ever heard of it. ``told_at`` is when they last heard of it, ms; None:
    surely never.
    """

    reserve: Reserve
    counted: Amounts
    told_at: int | None


@dataclass(slots=True)
class Account:
    """One tenant's part at this gateway; ``windows`` holds only what this gateway let through.

    ``sequences`` numbers the news of all accounts of a gateway. ``spent_by_all`` is what Redis
    last said was spent on ``spent_day``, ``spent_then`` this gateway's own part of it.
    ``wants_word``: Redis may have lost its state, and is asked even if there is no news.
    """

    sequences: Iterator[int]
    windows: Windows = field(default_factory=Windows)
    flights: dict[str, Flight] = field(default_factory=dict)
    epoch: str = ""
    sent: News | None = None
    settlements: list[Settlement] = field(default_factory=list)
    charges: dict[int, Amounts] = field(default_factory=dict)
    spent_by_all: int = 0
    spent_then: int = 0
    spent_day: int = -1
    wants_word: bool = False
    headroom: Headroom = field(default_factory=Headroom)

    def admit_at_once(
        self, now: int, flight: str, tokens: tuple[int, int], limits: Limits, num_gateways: int
    ) -> Verdict | None:
        """The verdict where all limits are far: it can only be yes. None: ask Redis."""
        windows = self.windows
        windows.advance(now)
        reserve = Reserve(windows.at, *tokens)
        used = self.headroom.take(now, reserve, limits.in_order, num_gateways)
        if used is None:
            return None
        windows.take(flight, _NEVER, reserve)
        windows.last = reserve.second
        self.flights[flight] = Flight(reserve, NOTHING, None)
        reset = max(0, (reserve.second + SPAN) * 1000 - now)
        return Verdict(
            refused_by=None, wait=0, now=now, second=reserve.second, used=used.amounts, reset=reset
        )

    def accept(self, flight: str, reserve: Reserve, now: int) -> None:
        """Redis let it through, after ``hear``."""
        self.windows.take(flight, _NEVER, reserve)
        self.windows.last = reserve.second
        self.spent_then = self.windows.spent
        counted = (1, reserve.num_input_tokens, 0)
        self.flights[flight] = Flight(reserve, counted, now)

    def hear(self, now: int, used: Sequence[int], epoch: str) -> None:
        """What Redis says in every answer; ``used`` in the order of ``LIMIT_NAMES``."""
        self.windows.advance(now)
        self.headroom.hear(now, used)
        if self.epoch and epoch != self.epoch:
            self._tell_all_again()
        self.epoch = epoch
        self.spent_by_all, self.spent_then = used[4], self.windows.spent
        self.spent_day = self.windows.at // DAY

    def admit_alone(
        self, now: int, flight: str, tokens: tuple[int, int], share: tuple[int | None, ...]
    ) -> Verdict:
        """The verdict of this gateway's share, while Redis does not answer."""
        verdict = self.windows.admit(now, flight, _NEVER, tokens, share)
        if verdict.refused_by is None:
            self.flights[flight] = Flight(Reserve(verdict.second, *tokens), NOTHING, None)
        return verdict

    def share(self, now: int, limits: Limits, num_gateways: int) -> tuple[int | None, ...]:
        """One of so many gateways' part of each limit, never nothing of something."""
        self.windows.advance(now)
        *windows, budget = limits.in_order
        parts = [_part(limit, max(1, num_gateways)) for limit in windows]
        return (*parts, None if budget is None else self._budget_share(budget, num_gateways))

    def doubt(self, flight: str, second: int) -> None:
        """Nobody heard Redis' answer: if it let the flight through, that must count once or not."""
        held = self.flights.get(flight)
        if held is not None:
            self.flights[flight] = replace(held, told_at=_IN_DOUBT)
        else:
            self._add_settlement(flight, Flight(Reserve(second, 0, 0), NOTHING, None), NOTHING)

    def settle(self, flight: str, final: Amounts) -> None:
        """A flight is over; the second time: nothing."""
        held = self.flights.pop(flight, None)
        if held is None:
            return
        self.windows.settle(flight, final)
        if held.told_at is not None or self._is_sent(flight):
            self._add_settlement(flight, held, final)
        else:
            self._add_charge(held.reserve.second, minus(final, held.counted))

    def news(self, now: int) -> News | None:
        """What to tell Redis next, None: nothing; the same until ``told``, to count once."""
        if self.sent is None:
            renewals = tuple(islice(self._due(now), MAX_NEWS))
            charges = tuple(self._take_charges())
            settlements = tuple(self.settlements[:MAX_NEWS])
            if not (renewals or charges or settlements or self.wants_word):
                return None
            self.wants_word = False
            del self.settlements[:MAX_NEWS]
            if len(renewals) < MAX_NEWS and not self.charges:
                self.headroom.send()
            self.sent = News(
                sequence=next(self.sequences),
                charges=charges,
                renewals=renewals,
                settlements=settlements,
            )
        return self.sent

    def told(self, answer: Settled) -> None:
        """Redis has the news, or has lost its state and gets all of it again."""
        if answer.is_applied and self.sent is not None:
            for renewal in self.sent.renewals:
                held = self.flights.get(renewal.flight)
                if held is not None:
                    counted = (1, held.reserve.num_input_tokens, 0)
                    self.flights[renewal.flight] = Flight(held.reserve, counted, answer.now)
            self.sent = None
            self.headroom.told()
        self.hear(answer.now, answer.used, answer.epoch)

    @property
    def is_idle(self) -> bool:
        """Whether nothing here would be missed; ``windows`` must have been advanced."""
        pending = self.flights or self.settlements or self.charges or self.sent
        return not (pending or self.windows.buckets or self.windows.spent)

    def check(self) -> None:
        """Raises AssertionError unless windows and flights agree."""
        assert self.windows.flights.keys() == self.flights.keys()
        buckets = self.windows.buckets.values()
        assert self.windows.used == [sum(bucket[k] for bucket in buckets) for k in range(3)]
        assert all(min(bucket) >= 0 for bucket in buckets)

    def _budget_share(self, budget: int, num_gateways: int) -> int:
        """Its part of what was left when Redis last answered, on top of its own use until then."""
        is_today = self.spent_day == self.windows.at // DAY
        spent_by_all, spent_then = (self.spent_by_all, self.spent_then) if is_today else (0, 0)
        return spent_then + max(0, budget - spent_by_all) // max(1, num_gateways)

    def _tell_all_again(self) -> None:
        """Redis came back empty: it gets what this gateway let through, and its flights.

        What it may know already, since an answer was lost, is left to ``if_unknown``.
        """
        self.headroom.forget()
        if self.sent is not None:
            self.settlements[:0] = self.sent.settlements
            self.sent = None
        later = [(s.second, s.if_unknown) for s in self.settlements]
        for name, held in self.flights.items():
            if held.told_at == _IN_DOUBT:
                later.append((held.reserve.second, held.reserve.amounts))
            else:
                self.flights[name] = Flight(held.reserve, held.reserve.amounts, None)
        self.charges = {second: (r, i, o) for second, (r, i, o) in self.windows.buckets.items()}
        today, spent = self.windows.at // DAY, self.windows.spent
        for second, change in later:
            if second in self.charges:
                self.charges[second] = minus(self.charges[second], change)
            spent -= (change[1] + change[2]) * (second // DAY == today)
        spent -= sum(i + o for at, (_, i, o) in self.charges.items() if at // DAY == today)
        if spent:
            self._add_charge(today * DAY, (0, spent, 0))

    def _add_charge(self, second: int, change: Amounts) -> None:
        if second <= self.windows.at - SPAN:
            second = second // DAY * DAY  # No window holds it any more: only the day matters.
        self.charges[second] = plus(self.charges.get(second, NOTHING), change)
        if len(self.charges) > 2 * SPAN:
            charges, self.charges = self.charges, {}
            for second, change in charges.items():
                self._add_charge(second, change)

    def _take_charges(self) -> list[Charge]:
        taken = [(second, *change) for second, change in islice(self.charges.items(), MAX_NEWS)]
        for second, *_ in taken:
            del self.charges[second]
        return taken

    def _add_settlement(self, flight: str, held: Flight, final: Amounts) -> None:
        self.settlements.append(
            Settlement(
                flight=flight,
                second=held.reserve.second,
                final=final,
                if_unknown=minus(final, held.counted),
            )
        )

    def _is_sent(self, flight: str) -> bool:
        return self.sent is not None and any(r.flight == flight for r in self.sent.renewals)

    def _due(self, now: int) -> Iterator[Renewal]:
        oldest = now - round(RENEW_SECONDS * 1000)
        for name, held in self.flights.items():
            if held.told_at is None or held.told_at <= oldest:
                unknown = minus(held.reserve.amounts, held.counted)
                yield Renewal(flight=name, reserve=held.reserve, if_unknown=unknown)


_IN_DOUBT = 0
"""``told_at`` of a flight that Redis may or may not have let through."""
_NEVER = 1 << 62
"""This gateway's own flights don't expire while it lives."""


def _part(limit: int | None, num_gateways: int) -> int | None:
    return limit if not limit else max(1, limit // num_gateways)
