"""Prometheus metrics of one gateway, in a registry of its own; few labels, all of them bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from .types import Decision, FleetSnapshot

if TYPE_CHECKING:
    from .proxy.job import Trail

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABELS = 512
"""Of tenants, and of models, that have series of their own; later ones are ``other``."""

_PREFIX = "branchline_gateway"
_ADDED = (0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class GatewayMetrics:
    """All of a gateway's counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "requests", "Requests by what they got.", ("endpoint", "status", "tenant")
        )
        self._routed = self._counter("routed", "Tries by why the replica was chosen.", ("reason",))
        self._retries = self._counter("retries", "Tries beyond the first, by why.", ("reason",))
        self._resumes = self._counter("resumes", "Streams resumed elsewhere.", ("outcome",))
        self._ejections = self._counter("ejections", "Replicas taken out, by why.", ("reason",))
        self._limits = self._counter("limits_hit", "Requests turned away.", ("code",))
        self._tokens = self._counter("tokens", "Tokens by kind and model.", ("kind", "model"))
        self._predicted = self._counter("predicted_cached_tokens", "As routing expected.")
        self._cached = self._counter("cached_tokens", "As replicas counted.")
        self._added = self._histogram("added_seconds", "Time only the gateway took.", _ADDED)
        self._first_byte = self._histogram("first_byte_seconds", "To the first byte.", _SECONDS)
        self._whole = self._histogram("request_seconds", "To the last byte.", _SECONDS)
        self.in_flight = Gauge(f"{_PREFIX}_in_flight", "Requests now.", registry=self.registry)
        self._names: dict[str, set[str]] = {"tenant": set(), "model": set()}
        self._children: dict[tuple[object, ...], Counter] = {}

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"{_PREFIX}_{name}", documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"{_PREFIX}_{name}", documentation, registry=self.registry, buckets=buckets
        )

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)

    def watch(
        self, snapshot: Callable[[], FleetSnapshot], redis_is_up: Callable[[], bool | None]
    ) -> None:
        """Show how the fleet and its Redis stand whenever the metrics are read."""
        self.registry.register(_FleetCollector(snapshot, redis_is_up))

    def routed(self, decision: Decision) -> None:
        """A replica was chosen."""
        self._child(self._routed, decision.reason).inc()
        self._predicted.inc(decision.num_matched_tokens)

    def retried(self, reason: str) -> None:
        """A replica is given up for a request; ``reason`` is one of few words."""
        self._retries.labels(reason).inc()

    def resumed(self, outcome: str) -> None:
        """A stream broke: ``resumed``, or ``failed`` where nobody could go on."""
        self._resumes.labels(outcome).inc()

    def changed(self, kind: str, reason: str) -> None:
        """A replica went ``out``, or came ``back``."""
        if kind == "out":
            self._ejections.labels(reason).inc()

    def limited(self, code: str | None) -> None:
        """A request was turned away by limits or overload."""
        self._limits.labels(code or "other").inc()

    def ended(self, trail: Trail) -> None:
        """A request is over."""
        tenant = self._bounded("tenant", trail.tenant) if trail.tenant_is_known else "other"
        self._child(self._requests, trail.path, trail.status, tenant).inc()
        self._whole.observe(time.perf_counter() - trail.arrived)
        if trail.first_byte is not None:
            self._first_byte.observe(trail.first_byte - trail.arrived)
        added = trail.added_seconds
        if added is not None:
            self._added.observe(added)
        if trail.usage is not None:
            model = self._bounded("model", trail.label)
            self._child(self._tokens, "input", model).inc(trail.usage.num_input_tokens)
            self._child(self._tokens, "output", model).inc(trail.usage.num_output_tokens)
            self._cached.inc(trail.usage.num_cached_tokens)

    def _child(self, counter: Counter, *labels: object) -> Counter:
        """Of these labels; ``labels`` itself takes a lock and makes strings each time."""
        child = self._children.get((counter, *labels))
        if child is None:
            child = self._children[counter, *labels] = counter.labels(*labels)
        return child

    def _bounded(self, kind: str, name: str | None) -> str:
        known = self._names[kind]
        if name is None:
            return "other"
        if name not in known:
            if len(known) >= MAX_LABELS:
                return "other"
            known.add(name)
        return name


class _FleetCollector(Collector):
    """Gauges that are read when asked for."""

    def __init__(
        self, snapshot: Callable[[], FleetSnapshot], redis_is_up: Callable[[], bool | None]
    ) -> None:
        self._snapshot, self._redis_is_up = snapshot, redis_is_up

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Replicas by why they are out, and Redis where there is one."""
        return self._collect()

    def _collect(self) -> Iterator[GaugeMetricFamily]:
        replicas = self._snapshot().replicas
        num_up = sum(replica.is_up for replica in replicas)
        yield GaugeMetricFamily(f"{_PREFIX}_replicas_up", "Replicas in use.", value=num_up)
        out = GaugeMetricFamily(f"{_PREFIX}_replicas_out", "Others, by why.", labels=["reason"])
        reasons = [replica.out_reason for replica in replicas if replica.out_reason is not None]
        for reason in sorted(set(reasons)):
            out.add_metric([reason], reasons.count(reason))
        yield out
        redis_is_up = self._redis_is_up()
        if redis_is_up is not None:
            yield GaugeMetricFamily(f"{_PREFIX}_redis_up", "1 or 0.", value=float(redis_is_up))
