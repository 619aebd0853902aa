"""What each tenant has been served, by its weight, and the virtual time that they share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from .request import Request
from .tenant_line import Line


@dataclass(slots=True, eq=False)
class Tenant:
    """What the queue knows of one tenant.

    ``counter`` is what it was served, each unit of cost divided by its weight then. ``newest`` is
    the arrival of its latest request, whose weight counts. ``turn`` is the request whose turn came
    and that could not start, ``turn_start`` what everybody had been served when that was.
    """

    name: str
    counter: float
    line: Line
    weight: float = 1.0
    newest: int = -1
    num_running: int = 0
    parked_until: float = math.inf
    turn: Request | None = field(default=None, repr=False)
    turn_start: float = 0.0

    @property
    def num_waiting(self) -> int:
        """Requests in line that have no seat."""
        return len(self.line) - len(self.line.seated)

    @property
    def is_idle(self) -> bool:
        """Nothing in line and nothing running."""
        return not self.num_running and not len(self.line)


class Tenants:
    """Tenants by name; ``virtual_time`` is the counter of those whose turn it is.

    A tenant whose line was empty comes back at most ``max_burst`` behind it, any other falls behind
    it by at most ``max_lag``, both in cost units by weight as counters are. So nobody saves up more
    of a claim to a machine that others had to themselves meanwhile. An idle tenant is forgotten as
    soon as that changes nothing.
    """

    def __init__(self, max_lag: float, max_burst: float) -> None:
        self._max_lag = max_lag
        self._max_burst = max_burst
        self._tenants: dict[str, Tenant] = {}
        self._parked: list[tuple[float, str]] = []
        self._highest = 0.0
        self.in_line: dict[str, Tenant] = {}
        self.virtual_time = 0.0
        self.served = 0.0

    def __len__(self) -> int:
        return len(self._tenants)

    def all(self) -> Iterable[Tenant]:
        """Every tenant that is remembered."""
        return self._tenants.values()

    def find(self, name: str) -> Tenant | None:
        """A tenant that is remembered."""
        return self._tenants.get(name)

    def get(self, name: str) -> Tenant:
        """A tenant, a new one where it is not remembered."""
        tenant = self._tenants.get(name)
        if tenant is None:
            counter = self.virtual_time - self._max_burst
            tenant = self._tenants[name] = Tenant(name, counter, Line(self._max_lag))
        return tenant

    def join(self, name: str) -> Tenant:
        """A tenant whose line is about to have another request."""
        if not self.in_line:
            self._forget_idle()
        tenant = self.get(name)
        if not len(tenant.line):
            tenant.counter = max(tenant.counter, self.virtual_time - self._max_burst)
            self.in_line[name] = tenant
        return tenant

    def _forget_idle(self) -> None:
        """Nobody waits for anything, so nobody is owed anything: whoever comes back begins anew."""
        self.advance(self._highest)
        for _, name in self._parked:
            tenant = self._tenants.get(name)
            if tenant is not None:
                tenant.parked_until = math.inf
                if tenant.is_idle:
                    del self._tenants[name]
        self._parked.clear()

    def leave(self, tenant: Tenant) -> None:
        """A request of the tenant left its line, or gave its seat back: perhaps the last one."""
        if not len(tenant.line):
            self.in_line.pop(tenant.name, None)
            if not tenant.num_running:
                self._park(tenant)

    def charge(self, tenant: Tenant, cost: float, arrival: float) -> None:
        """Add to the counter for serving a request of that arrival, which overtakes older ones."""
        tenant.counter = self.counter(tenant) + cost / tenant.weight
        if tenant.counter > self._highest:
            self._highest = tenant.counter
        self.served += cost
        tenant.line.charge(arrival, cost)
        if tenant.is_idle:
            self._park(tenant)

    def refund(self, tenant: Tenant, cost: float) -> None:
        """Undo a charge to a tenant that has a request in line or running."""
        assert not tenant.is_idle
        tenant.counter -= cost / tenant.weight
        self.served -= cost

    def advance(self, virtual_time: float) -> None:
        """Move the virtual time forward, never back, and forget whom it has caught up with."""
        if virtual_time > self.virtual_time:
            self.virtual_time = virtual_time
            while self._parked and self._parked[0][0] <= virtual_time:
                time, name = heappop(self._parked)
                tenant = self._tenants.get(name)
                if tenant is not None and tenant.parked_until == time:
                    tenant.parked_until = math.inf
                    if tenant.is_idle:
                        self._park(tenant)

    def _park(self, tenant: Tenant) -> None:
        """Forget an idle tenant, or remember it until it would come back as a new one does."""
        caught_up_at = tenant.counter + self._max_burst
        if caught_up_at <= self.virtual_time:
            del self._tenants[tenant.name]
        elif caught_up_at < tenant.parked_until:
            tenant.parked_until = caught_up_at
            heappush(self._parked, (caught_up_at, tenant.name))

    def counter(self, tenant: Tenant) -> float:
        """The tenant's counter, no further behind the virtual time than it may be."""
        return max(tenant.counter, self.virtual_time - self._max_lag)

    def check(self) -> None:
        """Every tenant is in line, running or parked, and those of them in line are listed."""
        parked = set(self._parked)
        assert all(time > self.virtual_time for time, _ in self._parked)
        for tenant in self.all():
            is_parked = (tenant.parked_until, tenant.name) in parked
            assert is_parked or tenant.parked_until == math.inf
            assert is_parked or not tenant.is_idle, f"{tenant.name} is kept for ever"
            assert (tenant.name in self.in_line) == (len(tenant.line) > 0)
            assert tenant.num_running >= 0
            assert math.isfinite(tenant.counter)
            assert tenant.counter <= self._highest or tenant.counter <= self.virtual_time
            tenant.line.check()
        assert self.in_line.keys() <= self._tenants.keys()
