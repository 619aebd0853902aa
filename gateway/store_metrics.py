"""How this gateway's copy of the store stands, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .store.documents import KINDS
from .store.store import Store

_PREFIX = "branchline_gateway_store"


class StoreCollector(Collector):
    """Read when the metrics are; names nobody."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self) -> Iterable[Metric]:
        """Whether it can be changed, how old the copy is, how much is in it, what Redis lost."""
        return self._collect()

    def _collect(self) -> Iterator[Metric]:
        store = self._store
        is_up = float(store.is_up)
        yield GaugeMetricFamily(f"{_PREFIX}_up", "1 if it can be changed, else 0.", value=is_up)
        behind = GaugeMetricFamily(
            f"{_PREFIX}_behind_seconds", "Since all that was in Redis was here."
        )
        behind.add_metric([], store.seconds_behind)
        yield behind
        documents = GaugeMetricFamily(f"{_PREFIX}_documents", "By kind.", labels=["kind"])
        for kind in KINDS:
            documents.add_metric([kind], len(store.items(kind)))
        yield documents
        restored = CounterMetricFamily(
            f"{_PREFIX}_restored", "Entries that Redis had lost and got back from here."
        )
        restored.add_metric([], store.num_restored)
        yield restored
