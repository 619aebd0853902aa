"""What metrics say of adapters: where they are, what they take, how long loads took."""

from __future__ import annotations

import dataclasses

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from branchline.engine.adapter_types import AdapterEvent
from branchline.engine.types import EngineStats, GenerationRequest, SamplingParams
from branchline.server.access import Tenant
from branchline.server.adapters.metrics import AdapterMetrics
from branchline.server.catalog import Catalog, ServedModel
from branchline.server.metrics import ServerMetrics

STATS = EngineStats(
    num_device_adapters=3,
    num_host_adapters=5,
    num_disk_adapters=92,
    num_waiting_for_adapter=7,
    adapter_device_bytes=100,
    max_adapter_device_bytes=400,
    adapter_dense_bytes=10,
    max_adapter_dense_bytes=30,
    adapter_host_bytes=2000,
    max_adapter_host_bytes=2000,
    max_adapters=256,
)


class House:
    """Metrics over names ``a`` and ``b``, and an engine that says what it is told."""

    def __init__(self) -> None:
        self.catalog = Catalog("/models/base", ["base"])
        self.stats = STATS
        for name in ("a", "b"):
            self.serve(name, f"digest-{name}")
        self.metrics = ServerMetrics(self.catalog, lambda: self.stats)

    def serve(self, name: str, digest: str) -> ServedModel:
        model = ServedModel(name, f"/adapters/{name}", digest)
        self.catalog.put(name, {1: model}, 1)
        return model

    def text(self) -> str:
        return self.metrics.render().decode()


@pytest.fixture
def house() -> House:
    return House()


def test_residency_and_memory(house: House) -> None:
    text = house.text()
    for tier, number in (("device", 3), ("host", 5), ("disk", 92)):
        assert f'branchline:adapters{{model_name="base",tier="{tier}"}} {number}.0' in text
    for state, tier, number in (
        ("used", "device", 100),
        ("free", "device", 300),
        ("used", "dense", 10),
        ("free", "dense", 20),
        ("used", "host", 2000),
        ("free", "host", 0),
    ):
        labels = f'model_name="base",state="{state}",tier="{tier}"'
        assert f"branchline:adapter_memory_bytes{{{labels}}} {number}.0" in text
    assert 'branchline:requests_waiting_for_adapter{model_name="base"} 7.0' in text


def test_lora_info_says_who_runs_and_who_waits(house: House) -> None:
    house.stats = dataclasses.replace(
        STATS, running_adapters=["digest-a"], waiting_adapters=["digest-b"]
    )
    a, b = house.catalog.resolve("a"), house.catalog.resolve("b")
    with house.metrics.in_flight(a, Tenant()), house.metrics.in_flight(b, Tenant()):
        text = house.text()
    info = 'max_lora="256",running_lora_adapters="a",waiting_lora_adapters="b"'
    assert f"vllm:lora_requests_info{{{info}}}" in text
    info = 'max_lora="256",running_lora_adapters="",waiting_lora_adapters=""'
    assert f"vllm:lora_requests_info{{{info}}}" in house.text()


def test_lora_info_knows_a_version_that_was_replaced(house: House) -> None:
    """The old version still runs under the name; the new one does nothing yet."""
    old = house.catalog.resolve("a")
    with house.metrics.in_flight(old, Tenant()):
        house.serve("a", "digest-new")
        house.stats = dataclasses.replace(STATS, running_adapters=["digest-a"])
        assert 'running_lora_adapters="a"' in house.text()
        house.stats = dataclasses.replace(STATS, running_adapters=["digest-new"])
        assert 'running_lora_adapters=""' in house.text()


def test_equal_bytes_under_two_names(house: House) -> None:
    """Only the name that has a request runs."""
    house.serve("b", "digest-a")
    house.stats = dataclasses.replace(STATS, running_adapters=["digest-a"])
    with house.metrics.in_flight(house.catalog.resolve("b"), Tenant()):
        assert 'running_lora_adapters="b"' in house.text()


def test_counts_by_name_go_with_the_name(house: House) -> None:
    request = GenerationRequest(request_id="r", prompt_token_ids=[1, 2], params=SamplingParams())
    with house.metrics.time_choice("a", request, 0.0) as timer:
        timer.tokens(3, 1)
        timer.finish("stop")
    house.metrics.count_request("a", Tenant(), 200)
    text = house.text()
    series = '{model="a",model_name="base"}'
    for name, number in (
        ("prompt_tokens", 2),
        ("prefix_cache_queries", 2),
        ("prefix_cache_hits", 1),
        ("generation_tokens", 3),
    ):
        assert f"branchline:model_{name}_total{series} {number}.0" in text
    assert 'branchline:requests_total{model="a",model_name="base",status="200"} 1.0' in text
    house.catalog.remove("a")
    text = house.text()
    assert 'model="a"' not in text
    assert 'vllm:generation_tokens_total{model_name="base"} 3.0' in text, "the whole stays"


def test_loads_evictions_and_failures() -> None:
    registry = CollectorRegistry()
    metrics = AdapterMetrics(registry, "base")
    loaded = AdapterEvent(digest="d", tier="device", kind="loaded", num_bytes=1, seconds=0.02)
    metrics.observe(loaded, "http")
    metrics.observe(dataclasses.replace(loaded, tier="host", seconds=0.4), "directory")
    metrics.observe(dataclasses.replace(loaded, kind="evicted"), "http")
    metrics.observe(dataclasses.replace(loaded, kind="failed", tier="host"), "http")
    metrics.observe_fetch("upload", 3.0)
    metrics.count_failed_fetch()
    text = generate_latest(registry).decode()
    seconds = "branchline:adapter_load_seconds"
    for expected in (
        f'{seconds}_sum{{model_name="base",source="http",tier="device"}} 0.02',
        f'{seconds}_count{{model_name="base",source="directory",tier="host"}} 1.0',
        f'{seconds}_bucket{{le="2.5",model_name="base",source="upload",tier="disk"}} 0.0',
        f'{seconds}_bucket{{le="5.0",model_name="base",source="upload",tier="disk"}} 1.0',
        'branchline:adapter_evictions_total{model_name="base",tier="device"} 1.0',
        'branchline:adapter_evictions_total{model_name="base",tier="host"} 0.0',
        'branchline:adapter_load_failures_total{model_name="base",tier="host"} 1.0',
        'branchline:adapter_load_failures_total{model_name="base",tier="disk"} 1.0',
        'branchline:adapter_load_failures_total{model_name="base",tier="device"} 0.0',
    ):
        assert expected in text
