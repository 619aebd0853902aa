"""Metrics of adapters on their way: how long loads take, what is evicted, what fails."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from ...engine.adapter_types import AdapterEvent

_LOAD_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class AdapterMetrics:
    """Counts what happens to adapters; ``source_kind`` is what the adapter was made of.

    There is no series by adapter: there may be thousands. ``GET /admin/adapters`` has those.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._model_name = model_name
        self._seconds = Histogram(
            "branchline:adapter_load_seconds",
            "From the start of a load to when the adapter could be used there; for the disk, of "
            "fetching, checking and formatting.",
            ("model_name", "tier", "source"),
            registry=registry,
            buckets=_LOAD_BUCKETS,
        )
        labels = ("model_name", "tier")
        self._evictions = Counter(
            "branchline:adapter_evictions",
            "Adapters that left a tier for others or on request.",
            labels,
            registry=registry,
        )
        self._failures = Counter(
            "branchline:adapter_load_failures",
            "Loads that failed; for the disk, adapters that were refused or could not be had.",
            labels,
            registry=registry,
        )
        for tier in ("disk", "host", "device"):  # a rate needs the zero before the first one
            self._failures.labels(model_name, tier)
            if tier != "disk":
                self._evictions.labels(model_name, tier)

    def observe(self, event: AdapterEvent, source_kind: str) -> None:
        """Count what the engine says of an adapter."""
        if event.kind == "loaded":
            self._seconds.labels(self._model_name, event.tier, source_kind).observe(event.seconds)
        elif event.kind == "evicted":
            self._evictions.labels(self._model_name, event.tier).inc()
        else:
            self._failures.labels(self._model_name, event.tier).inc()

    def observe_fetch(self, source_kind: str, seconds: float) -> None:
        """An adapter is on the disk, fetched, checked and formatted."""
        self._seconds.labels(self._model_name, "disk", source_kind).observe(seconds)

    def count_failed_fetch(self) -> None:
        """An adapter was refused, or could not be had."""
        self._failures.labels(self._model_name, "disk").inc()
