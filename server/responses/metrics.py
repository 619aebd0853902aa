"""Metrics of kept responses."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .store import ResponseStore


class KeptCollector(Collector):
    """What a store has kept, and what it holds in this process."""

    def __init__(self, model_name: str, store: ResponseStore) -> None:
        self._model_name = model_name
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """Four counters, two gauges."""
        counts = self._store.counts
        counters = (
            ("kept", "Responses that were kept.", counts.num_kept),
            ("not_kept", "Responses to be kept that were not.", counts.num_not_kept),
            ("no_room", "Of those the ones that Redis had no room for.", counts.num_no_room),
            ("evicted", "Kept responses that others pushed out.", counts.num_evicted),
        )
        gauges = (
            ("held", "Kept responses in this process.", counts.num_held),
            ("held_bytes", "Bytes of kept responses in this process.", counts.num_held_bytes),
        )
        for name, documentation, value in counters:
            counter = CounterMetricFamily(
                f"branchline:responses_{name}", documentation, labels=["model_name"]
            )
            counter.add_metric([self._model_name], value)
            yield counter
        for name, documentation, value in gauges:
            gauge = GaugeMetricFamily(
                f"branchline:responses_{name}", documentation, labels=["model_name"]
            )
            gauge.add_metric([self._model_name], value)
            yield gauge
