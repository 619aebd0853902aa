"""The engine's side of the metrics, read off its latest snapshot at each scrape."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.types import EngineStats

Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)

State = tuple[str, str]
"""A tier and a state of what it holds."""


class InFlight:
    """Requests being generated now, by the name they came under and the digest that answers."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str | None]] = Counter()

    @contextmanager
    def mark(self, name: str, digest: str | None) -> Iterator[None]:
        """Count one request while the context lasts."""
        self._counts[name, digest] += 1
        try:
            yield
        finally:
            self._counts[name, digest] -= 1
            if not self._counts[name, digest]:  # names come and go
                del self._counts[name, digest]

    def total(self) -> int:
        """All of them."""
        return self._counts.total()

    def names_of(self, digests: Iterable[str]) -> list[str]:
        """Names that these versions answer under now; one may answer under several."""
        busy = frozenset(digests)
        return sorted({name for name, digest in self._counts if digest in busy})


class EngineCollector(Collector):
    """Reads the engine's latest snapshot whenever metrics are scraped."""

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], in_flight: InFlight
    ) -> None:
        self._model_name = model_name
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
            (
                "branchline:requests_held",
                "Neither running nor waiting: their readers are behind.",
                stats.num_held,
            ),
            (
                "branchline:requests_waiting_for_adapter",
                "Waiting for their adapter to come to the device.",
                stats.num_waiting_for_adapter,
            ),
            (
                "branchline:requests_waiting_for_grammar",
                "Waiting for their grammar to be compiled.",
                stats.num_waiting_for_grammar,
            ),
            (
                "branchline:cached_grammars",
                "Compiled grammars that are kept.",
                stats.num_cached_grammars,
            ),
        )
        for name, documentation, value in gauges:
            yield self._family(GaugeMetricFamily, name, documentation, value)
        for name, documentation, value in _counters(stats):
            yield self._family(CounterMetricFamily, name, documentation, value)
        yield self._by_state("branchline:kv_blocks", "KV blocks by tier and state.", _blocks(stats))
        yield self._adapters(stats)
        yield self._by_state(
            "branchline:adapter_memory_bytes",
            "Memory for adapters by tier and state; dense is the device's second pool.",
            _adapter_bytes(stats),
        )
        yield self._lora_info(stats)

    def _family(self, kind: type[Family], name: str, documentation: str, value: float) -> Family:
        family = kind(name, documentation, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _by_state(self, name: str, documentation: str, states: Mapping[State, int]) -> Metric:
        """A gauge whose states sum to a tier's size."""
        labels = ["model_name", "tier", "state"]
        family = GaugeMetricFamily(name, documentation, labels=labels)
        for (tier, state), number in states.items():
            family.add_metric([self._model_name, tier, state], number)
        return family

    def _adapters(self, stats: EngineStats) -> Metric:
        """Every adapter once, so that the tiers sum to all that are registered."""
        family = GaugeMetricFamily(
            "branchline:adapters",
            "Adapters by the nearest tier that holds their weights.",
            labels=["model_name", "tier"],
        )
        family.add_metric([self._model_name, "device"], stats.num_device_adapters)
        family.add_metric([self._model_name, "host"], stats.num_host_adapters)
        family.add_metric([self._model_name, "disk"], stats.num_disk_adapters)
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
                str(stats.max_adapters),
                ",".join(self._in_flight.names_of(stats.waiting_adapters)),
                ",".join(self._in_flight.names_of(stats.running_adapters)),
            ],
            time.time(),
        )
        return family


def _blocks(stats: EngineStats) -> dict[State, int]:
    num_held = stats.num_blocks - stats.num_free_blocks
    num_pinned = min(stats.num_pinned_blocks, num_held)
    return {
        ("device", "free"): stats.num_free_blocks - stats.num_evictable_blocks,
        ("device", "cached"): stats.num_evictable_blocks,
        ("device", "pinned"): num_pinned,
        ("device", "in_use"): num_held - num_pinned,
        ("host", "free"): stats.max_host_blocks - stats.num_host_blocks,
        ("host", "cached"): stats.num_host_blocks,
    }


def _adapter_bytes(stats: EngineStats) -> dict[State, int]:
    pools = {
        "device": (stats.adapter_device_bytes, stats.max_adapter_device_bytes),
        "dense": (stats.adapter_dense_bytes, stats.max_adapter_dense_bytes),
        "host": (stats.adapter_host_bytes, stats.max_adapter_host_bytes),
    }
    return {
        (tier, state): number
        for tier, (used, size) in pools.items()
        for state, number in (("used", used), ("free", size - used))
    }


def _counters(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    """Name, documentation and value of all that only grows."""
    return (
        ("vllm:num_preemptions", "Requests that lost their blocks.", stats.num_preemptions),
        (
            "branchline:request_holds",
            "Times that a request was held until its reader caught up.",
            stats.num_holds,
        ),
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
        *_grammar_counters(stats),
    )


def _grammar_counters(stats: EngineStats) -> tuple[tuple[str, str, float], ...]:
    return (
        (
            "branchline:grammars_compiled",
            "Grammars that were compiled.",
            stats.num_compiled_grammars,
        ),
        (
            "branchline:grammars_failed",
            "Grammars that could not be compiled.",
            stats.num_failed_grammars,
        ),
        (
            "branchline:grammar_cache_hits",
            "Choices whose grammar was compiled already, or being compiled.",
            stats.num_grammar_hits,
        ),
        (
            "branchline:grammar_compile_seconds",
            "Time that compiling took, beside the steps.",
            stats.grammar_compile_seconds,
        ),
        (
            "branchline:grammar_wait_seconds",
            "Time that steps waited for grammars' masks, beyond their forward pass.",
            stats.grammar_wait_seconds,
        ),
    )
