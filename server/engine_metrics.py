"""The engine's side of the metrics, read off its latest snapshot at each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.types import EngineStats
from .adapters import Catalog

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)

_BLOCK_LABELS = ("model_name", "tier", "state")


class EngineCollector(Collector):
    """Reads the engine's latest snapshot whenever metrics are scraped.

    ``max_loras`` adapters are on the device at once, None for all.
    """

    def __init__(
        self,
        catalog: Catalog,
        stats: Callable[[], EngineStats],
        in_flight: Mapping[str, int],
        max_loras: int | None,
    ) -> None:
        self._catalog = catalog
        num_adapters = len(catalog.sources)
        self._max_loras = num_adapters if max_loras is None else min(max_loras, num_adapters)
        self._stats = stats
        self._in_flight = in_flight

    def collect(self) -> Iterable[Metric]:
        """Gauges and counters of the engine."""
        stats = self._stats()
        used = 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
        gauges = (
            ("vllm:num_requests_running", "In the batch now.", stats.num_running),
            ("vllm:num_requests_waiting", "Waiting for a place.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of KV blocks that can't be had, 0 to 1.", used),
        )
        for name, documentation, value in gauges:
            yield self._family(GaugeMetricFamily, name, documentation, value)
        for name, documentation, value in _counters(stats):
            yield self._family(CounterMetricFamily, name, documentation, value)
        yield self._blocks(stats)
        yield self._lora_info(stats)

    def _family(self, kind: type[Family], name: str, documentation: str, value: float) -> Family:
        family = kind(name, documentation, labels=["model_name"])
        family.add_metric([self._catalog.base.name], value)
        return family

    def _blocks(self, stats: EngineStats) -> Metric:
        """Every block of a tier in one state, so that the states of a tier sum to its size."""
        family = GaugeMetricFamily(
            "branchline:kv_blocks", "KV blocks by tier and state.", labels=_BLOCK_LABELS
        )
        num_held = stats.num_blocks - stats.num_free_blocks
        num_pinned = min(stats.num_pinned_blocks, num_held)
        states = {
            ("device", "free"): stats.num_free_blocks - stats.num_evictable_blocks,
            ("device", "cached"): stats.num_evictable_blocks,
            ("device", "pinned"): num_pinned,
            ("device", "in_use"): num_held - num_pinned,
            ("host", "free"): stats.max_host_blocks - stats.num_host_blocks,
            ("host", "cached"): stats.num_host_blocks,
        }
        for (tier, state), number in states.items():
            family.add_metric([self._catalog.base.name, tier, state], number)
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
                str(self._max_loras),
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


def _counters(stats: EngineStats) -> tuple[tuple[str, str, int], ...]:
    """Name, documentation and value of all that only grows."""
    return (
        ("vllm:num_preemptions", "Requests that lost their blocks.", stats.num_preemptions),
        ("branchline:engine_steps", "Engine steps.", stats.num_steps),
        ("branchline:engine_failed_steps", "Engine steps that failed.", stats.num_failed_steps),
        (
            "branchline:computed_prompt_tokens",
            "Prompt tokens that the engine computed: all but those it found in the cache.",
            stats.num_computed_prompt_tokens,
        ),
        (
            "branchline:kv_blocks_evicted",
            "Blocks that left the cache on the device for others.",
            stats.num_evicted_blocks,
        ),
        (
            "branchline:kv_blocks_offloaded",
            "Blocks copied to host memory.",
            stats.num_offloaded_blocks,
        ),
        (
            "branchline:kv_blocks_restored",
            "Blocks copied back from host memory.",
            stats.num_restored_blocks,
        ),
        (
            "branchline:adapter_loads",
            "Adapters brought to the device.",
            stats.num_adapter_loads,
        ),
        (
            "branchline:overloaded_requests",
            "Choices refused because the queue was full.",
            stats.num_overloaded,
        ),
    )
