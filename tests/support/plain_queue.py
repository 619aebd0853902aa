"""The fair queue's rules once more, in plain lists: every answer is computed from scratch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from queued_request import QueuedRequest


@dataclass(slots=True, eq=False)
class Entry:
    """A request that lives; ``overtaken`` and ``delayed`` are kept while it is out of line."""

    request: QueuedRequest
    line: str
    queued: bool = True
    seated: bool = False
    started: bool = False
    overtaken: float = 0.0
    delayed: float = 0.0
    turn_came: bool = False
    last_push: int = 0
    last_round: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        return self.request.priority, self.request.arrival

    @property
    def arrival(self) -> int:
        return self.request.arrival


@dataclass(slots=True)
class Account:
    counter: float
    weight: float = 1.0
    newest: int = -1


@dataclass(slots=True, eq=False)
class Pass:
    """One call of ``candidates``: what it has given, and where it may not start anybody."""

    newest_push: int
    due: list[Entry]
    seen: set[int] = field(default_factory=set)
    begun: bool = False
    due_over: bool = False
    oldest: dict[str, int] = field(default_factory=dict)
    ranked: set[str] = field(default_factory=set)
    held: dict[str, list[Entry]] = field(default_factory=dict)
    all_held: bool = False


class PlainQueue:
    """Nothing is ever forgotten here, and every counter is brought up to date at once."""

    def __init__(self, policy: str, limit: float, burst: float) -> None:
        self.is_fair = policy == "fair"
        self.limit = limit
        self.burst = min(burst, limit)
        self.live: dict[str, Entry] = {}
        self.accounts: dict[str, Account] = {}
        self.time = 0.0
        self.highest = 0.0
        self.num_pushes = 0
        self.num_rounds = 1
        self.passed_last: QueuedRequest | None = None

    def line_of(self, tenant: str) -> str:
        return tenant if self.is_fair else ""

    def in_line(self, line: str) -> list[Entry]:
        entries = [e for e in self.live.values() if e.queued and e.line == line]
        return sorted(entries, key=lambda e: e.arrival)

    def lines(self) -> list[str]:
        return sorted({e.line for e in self.live.values() if e.queued})

    def account(self, line: str) -> Account:
        return self.accounts.setdefault(line, Account(self.time - self.burst))

    def is_idle(self, line: str) -> bool:
        return not any(e.line == line and (e.queued or e.seated) for e in self.live.values())

    def _settle(self) -> None:
        """Nobody is further behind than allowed, and who is idle and owes nothing starts anew."""
        for line, account in list(self.accounts.items()):
            account.counter = max(account.counter, self.time - self.limit)
            if self.is_idle(line) and account.counter <= self.time - self.burst:
                del self.accounts[line]

    def _advance(self, time: float) -> None:
        self.time = max(self.time, time)
        self._settle()

    # -- in and out ------------------------------------------------------------------------------

    def push(self, request: QueuedRequest) -> None:
        line = self.line_of(request.tenant)
        if not self.lines():
            self._advance(self.highest)
            self.accounts = {x: a for x, a in self.accounts.items() if not self.is_idle(x)}
        account = self.account(line)
        entry = self.live.setdefault(request.request_id, Entry(request, line))
        others = [e for e in self.in_line(line) if e is not entry]
        if not others:
            account.counter = max(account.counter, self.time - self.burst)
        if request.arrival > account.newest:
            account.newest, account.weight = request.arrival, request.weight
        younger = [e.overtaken for e in others if e.arrival > request.arrival]
        entry.overtaken = max([entry.overtaken, *younger])
        for other in others:
            if other.arrival < request.arrival:
                other.overtaken = max(other.overtaken, entry.overtaken)
        entry.queued, entry.turn_came = True, False
        self.num_pushes += 1
        entry.last_push = self.num_pushes
        self._settle()

    def remove(self, request: QueuedRequest) -> None:
        entry = self.live[request.request_id]
        entry.queued = entry.turn_came = False
        self._settle()

    def activate(self, request: QueuedRequest) -> None:
        entry = self.live[request.request_id]
        entry.seated = entry.started = True
        entry.turn_came = False

    def deactivate(self, request: QueuedRequest) -> None:
        entry = self.live[request.request_id]
        entry.seated = False
        self.num_pushes += 1 if entry.queued else 0
        entry.last_push = self.num_pushes if entry.queued else entry.last_push
        self._settle()

    # -- costs -----------------------------------------------------------------------------------

    def charge(self, request: QueuedRequest, cost: float) -> None:
        entry = self.live[request.request_id]
        if entry.queued and entry.seated:
            entry.last_round = self.num_rounds
            self._advance(self.account(entry.line).counter)
        self._charge(entry.line, cost, request)

    def charge_tenant(self, tenant: str, cost: float) -> None:
        self._charge(self.line_of(tenant), cost, None)

    def _charge(self, line: str, cost: float, served: QueuedRequest | None) -> None:
        account = self.account(line)
        account.counter += cost / account.weight
        self.highest = max(self.highest, account.counter)
        for entry in self.live.values():
            if entry.turn_came and entry.request is not served:
                entry.delayed += cost
            is_overtaken = served is None or entry.arrival < served.arrival
            if entry.queued and entry.line == line and is_overtaken:
                entry.overtaken += cost
        self._settle()

    def passed(self, request: QueuedRequest) -> None:
        self.passed_last = request
        entry = self.live[request.request_id]
        if not entry.seated and not any(e.turn_came for e in self.in_line(entry.line)):
            entry.turn_came = True

    def overdue(self, request: QueuedRequest) -> bool:
        return self.live[request.request_id].delayed > self.limit

    # -- order -----------------------------------------------------------------------------------

    def due(self) -> list[Entry]:
        due = [e for e in self.live.values() if e.turn_came and e.delayed > self.limit]
        return sorted(due, key=lambda e: (-e.delayed, e.arrival))

    def begin(self) -> Pass:
        self.passed_last = None
        return Pass(self.num_pushes, self.due())

    def next(self, this: Pass, given: QueuedRequest | None) -> QueuedRequest | None:
        """The candidate after ``given``, which was charged, seated, passed or none of it."""
        if not this.begun:
            this.begun = True
            self.num_rounds += 1
        was_passed = given is not None and self.passed_last is given
        if not this.due_over:
            this.all_held = was_passed
            while this.due and not this.all_held:
                entry = this.due.pop(0)
                if entry.queued:
                    this.seen.add(entry.arrival)
                    return entry.request
            this.due_over = True
            entries = {line: self.in_line(line) for line in self.lines()}
            this.oldest = {
                line: entries[line][0].arrival
                for line in entries
                if not this.all_held or any(e.seated for e in entries[line])
            }
            if entries and not this.all_held:
                self._advance(min(self.accounts[line].counter for line in entries))
        elif was_passed and given is not None:
            line = self.line_of(given.tenant)
            if line not in this.ranked:
                self._hold(this, line)
        return self._next_by_counter(this)

    def _hold(self, this: Pass, line: str) -> None:
        this.ranked.add(line)
        seated = [e for e in self.in_line(line) if e.seated]
        this.held[line] = sorted(seated, key=lambda e: e.rank)

    def _next_by_counter(self, this: Pass) -> QueuedRequest | None:
        while this.oldest:
            line = min(this.oldest, key=lambda x: (self._counter(x), this.oldest[x]))
            if this.all_held and line not in this.held:
                self._hold(this, line)
            entry = self._next_of(this, line)
            if entry is not None:
                this.seen.add(entry.arrival)
                return entry.request
            del this.oldest[line]
        return None

    def _counter(self, line: str) -> float:
        return self.accounts[line].counter if line in self.accounts else -1.0

    def _next_of(self, this: Pass, line: str) -> Entry | None:
        def is_open(entry: Entry) -> bool:
            return entry.arrival not in this.seen and entry.last_push <= this.newest_push

        if line in this.held:
            return next((e for e in this.held[line] if e.queued and is_open(e)), None)
        entries = [e for e in self.in_line(line) if is_open(e)]
        if line not in this.ranked:
            entry = next((e for e in entries if e.overtaken > self.limit), None)
            if entry is not None:
                return entry
            this.ranked.add(line)
        return min(entries, key=lambda e: e.rank, default=None)

    def upcoming(self, count: int) -> list[QueuedRequest]:
        found = [e.request for e in self.due()]
        this = Pass(self.num_pushes, [], {r.arrival for r in found}, due_over=True)
        this.oldest = {line: self.in_line(line)[0].arrival for line in self.lines()}
        ahead = dict.fromkeys(this.oldest, 0.0)
        while this.oldest and len(found) < count:
            line = min(this.oldest, key=lambda x: (self._counter(x) + ahead[x], this.oldest[x]))
            entry = self._next_of(this, line)
            if entry is None:
                del this.oldest[line]
                continue
            this.seen.add(entry.arrival)
            ahead[line] += entry.request.num_uncomputed_tokens / self.accounts[line].weight
            if not entry.seated:
                found.append(entry.request)
        return found[:count]

    # -- who makes way ---------------------------------------------------------------------------

    def waiting(self, is_of: Callable[[Entry], bool] = lambda _: True) -> list[Entry]:
        return [e for e in self.live.values() if e.queued and not e.seated and is_of(e)]

    def sheds(self, tenant: str) -> list[QueuedRequest | None]:
        """Every answer that the rules allow; there are several when tenants tie."""
        own = self.line_of(tenant)

        def share(line: str, more: int) -> float:
            weight = self.accounts[line].weight if line in self.accounts else 1.0
            return (len(self.waiting(lambda e: e.line == line)) + more) / weight

        most = max((share(line, 0) for line in self.lines()), default=0.0)
        if most <= share(own, 1):
            return [None]
        allowed = [line for line in self.lines() if share(line, 0) == most]
        assert own not in allowed
        return [self._newest_unstarted(line) for line in allowed]

    def _newest_unstarted(self, line: str) -> QueuedRequest | None:
        fresh = self.waiting(lambda e: e.line == line and not e.started)
        return max(fresh, key=lambda e: e.arrival).request if fresh else None

    def seats(self, line: str) -> int:
        return sum(e.line == line and e.seated for e in self.live.values())

    def seat_victims(self, request: QueuedRequest) -> list[QueuedRequest | None]:
        """Every answer that the rules allow; there are several when tenants tie."""
        own = self.line_of(request.tenant)
        then = (self.seats(own) + 1) / self.accounts[own].weight
        over = [
            line
            for line, account in self.accounts.items()
            if line != own
            and (self.seats(line) - 1) / account.weight >= then
            and account.counter > self.accounts[own].counter + self.burst / 4
        ]
        if not over:
            return [None]
        most = max(self.seats(line) / self.accounts[line].weight for line in over)
        tied = [line for line in over if self.seats(line) / self.accounts[line].weight == most]
        return [self._last_in_rank(line) for line in tied]

    def _last_in_rank(self, line: str) -> QueuedRequest | None:
        seated = [e for e in self.live.values() if e.line == line and e.seated]
        seated = [e for e in seated if e.delayed <= self.limit and e.last_round < self.num_rounds]
        return max(seated, key=lambda e: e.rank).request if seated else None
