"""Counts by tenant, for metrics and the admin API; a bounded number of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .access import Tenant

MAX_TENANTS = 1000
OTHER = "other"


@dataclass(slots=True)
class TenantCounts:
    """One tenant so far; tokens are summed over choices, each with its whole prompt.

    ``weight`` is the one of the last request.
    """

    weight: float = 1.0
    num_in_flight: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generation_tokens: int = 0
    num_requests: Counter[int] = field(default_factory=Counter)


class TenantMeter(Collector):
    """Counts of the first ``MAX_TENANTS`` tenants, and of all further ones together.

    A gateway may name any number of tenants, and a series once made is never dropped.
    """

    def __init__(self, model_name: str, known: Iterable[Tenant], limit: int = MAX_TENANTS) -> None:
        self._model_name = model_name
        self._limit = limit
        self._counts: dict[str, TenantCounts] = {}
        self._other: TenantCounts | None = None
        for tenant in known:
            self.counts_of(tenant.name).weight = tenant.weight

    def counts_of(self, name: str) -> TenantCounts:
        """What is counted for a tenant, to be added to."""
        counts = self._counts.get(name)
        if counts is None and len(self._counts) < self._limit:
            counts = self._counts[name] = TenantCounts()
        if counts is None:
            counts = self._other = self._other or TenantCounts()
        return counts

    @property
    def tenants(self) -> Mapping[str, TenantCounts]:
        """Every tenant counted by name."""
        return MappingProxyType(self._counts)

    @property
    def other(self) -> TenantCounts | None:
        """Those past the limit together; None while there are none."""
        return self._other

    @contextmanager
    def in_flight(self, tenant: Tenant) -> Iterator[None]:
        """Mark one request of ``tenant`` as being generated."""
        counts = self.counts_of(tenant.name)
        counts.weight = tenant.weight
        counts.num_in_flight += 1
        try:
            yield
        finally:
            counts.num_in_flight -= 1

    def collect(self) -> Iterable[Metric]:
        """The counters by tenant."""
        labels = ["model_name", "tenant"]
        in_flight = GaugeMetricFamily(
            "branchline:tenant_requests_in_flight", "Requests being generated.", labels=labels
        )
        requests = CounterMetricFamily(
            "branchline:tenant_requests",
            "HTTP requests for an answer, by tenant and status.",
            labels=[*labels, "status"],
        )
        tokens = {
            "num_prompt_tokens": "Prompt tokens of choices that got an answer.",
            "num_cached_tokens": "Those of them that the prefix cache held.",
            "num_generation_tokens": "Tokens generated.",
        }
        families = {
            name: CounterMetricFamily(
                f"branchline:tenant_{name.removeprefix('num_')}", documentation, labels=labels
            )
            for name, documentation in tokens.items()
        }
        for tenant, counts in self._rows():
            series = [self._model_name, tenant]
            in_flight.add_metric(series, counts.num_in_flight)
            for name, family in families.items():
                family.add_metric(series, getattr(counts, name))
            for status, number in counts.num_requests.items():
                requests.add_metric([*series, str(status)], number)
        return [in_flight, requests, *families.values()]

    def _rows(self) -> Iterator[tuple[str, TenantCounts]]:
        """Each label once: a tenant may itself be called ``other``."""
        for name, counts in self._counts.items():
            if self._other is None or name != OTHER:
                yield name, counts
        if self._other is not None:
            own = self._counts.get(OTHER)
            yield OTHER, self._other if own is None else _sum(own, self._other)


def _sum(one: TenantCounts, two: TenantCounts) -> TenantCounts:
    return TenantCounts(
        one.weight,
        one.num_in_flight + two.num_in_flight,
        one.num_prompt_tokens + two.num_prompt_tokens,
        one.num_cached_tokens + two.num_cached_tokens,
        one.num_generation_tokens + two.num_generation_tokens,
        one.num_requests + two.num_requests,
    )
