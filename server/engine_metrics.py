"""The engine's side of the metrics, read off its latest snapshot at each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.types import EngineStats
from .adapters import Catalog


class EngineCollector(Collector):
    """Reads the engine's latest snapshot whenever metrics are scraped."""

    def __init__(
        self,
        catalog: Catalog,
        stats: Callable[[], EngineStats],
        in_flight: Mapping[str, int],
    ) -> None:
        self._catalog = catalog
        self._stats = stats
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        """Gauges and counters of the engine."""
        stats = self._stats()
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        yield self._gauge("vllm:num_requests_running", "In the batch now.", stats.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Waiting for a place.", stats.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", used)
        yield self._counter(
            "vllm:num_preemptions", "Requests that lost their blocks.", stats.num_preemptions
        )
        yield self._counter("branchline:engine_steps", "Engine steps.", stats.num_steps)
        yield self._counter(
            "branchline:engine_failed_steps", "Engine steps that failed.", stats.num_failed_steps
        )
        yield self._lora_info(stats)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._catalog.base.name], value)
        return family

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        family = CounterMetricFamily(name, documentation, labels=["model_name"])
        family.add_metric([self._catalog.base.name], value)
        return family

    def _lora_info(self, stats: EngineStats) -> Metric:
        """Adapters with work in the engine now, by name; the value is the time, as vLLM's."""
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that run or wait in the engine now.",
            labels=["max_lora", "waiting_lora_adapters", "running_lora_adapters"],
        )
        family.add_metric(
            [
                str(len(self._catalog.sources)),
                ",".join(self._names(stats.waiting_adapters)),
                ",".join(self._names(stats.running_adapters)),
            ],
            time.time(),
        )
        return family

    def _names(self, digests: list[str]) -> list[str]:
        """Names in use now; a digest has several when equal bytes go by several names."""
        busy = frozenset(digests)
        return sorted(
            model.name
            for model in self._catalog.models.values()
            if model.digest in busy and self._in_flight.get(model.name, 0) > 0
        )
