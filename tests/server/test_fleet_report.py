"""A replica's report of itself, and the routes that gateways ask."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_engine import FakeEngine

from branchline.engine.adapter_types import AdapterEvent
from branchline.engine.errors import EngineDeadError
from branchline.engine.types import EngineStats
from branchline.gateway.fleet.records import AdapterPlace, AdapterPlaces, ReplicaReport
from branchline.server.app import create_app
from branchline.server.fleet.load_times import LoadTimes
from branchline.server.fleet.options import FleetOptions, ReplicaIdentity
from branchline.server.fleet.place_book import PlaceBook
from branchline.server.fleet.replica import FleetReplica
from branchline.server.services import Services, with_replica
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, access, make_client, make_services

FLEET = {"x-branchline-fleet-secret": "s"}


def event(tier: Any, kind: Any = "loaded", seconds: float = 0.0) -> AdapterEvent:
    return AdapterEvent(digest="d", tier=tier, kind=kind, num_bytes=1, seconds=seconds)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def services(tokenizer: Tokenizer, engine: FakeEngine, tmp_path: Path) -> Services:
    services = make_services(tokenizer, engine, access(fleet_secret="s"))
    config = replace(services.config, fleet=FleetOptions(secret="s"))
    services = replace(services, config=config, epoch="e1", fingerprint="f1")
    return with_replica(services, ReplicaIdentity("a:1", "http://a:1"), tmp_path)


@pytest.fixture
def replica(services: Services) -> FleetReplica:
    assert services.replica is not None
    return services.replica


def test_a_report_says_who_and_how(replica: FleetReplica, engine: FakeEngine) -> None:
    engine.stats = EngineStats(
        num_running=2,
        num_waiting=3,
        num_steps=10,
        num_failed_steps=1,
        num_queued_prompt_tokens=400,
        prompt_tokens_per_second=1500.0,
        num_free_blocks=7,
        num_blocks=9,
    )
    report = replica.report()
    assert (report.replica_id, report.url, report.epoch) == ("a:1", "http://a:1", "e1")
    assert (report.fingerprint, report.models, report.beat) == ("f1", [BASE], 1)
    assert (report.num_running, report.num_waiting, report.progress) == (2, 3, 9)
    assert (report.num_queued_prefill_tokens, report.prefill_tokens_per_second) == (400, 1500.0)
    assert (report.num_free_blocks, report.num_blocks) == (7, 9)
    assert replica.report().beat == 2


def test_progress_goes_on_over_engines(replica: FleetReplica, engine: FakeEngine) -> None:
    seen = []
    for num_steps in (5, 9, 2, 3):
        engine.stats = EngineStats(num_steps=num_steps)
        seen.append(replica.report().progress)
    assert seen == [5, 9, 11, 12]


async def test_states(replica: FleetReplica, services: Services, engine: FakeEngine) -> None:
    reporter = replica.reporter
    assert reporter.state == "starting"
    reporter.is_listening = True
    assert reporter.state == "ready"
    engine.dead.set()
    assert reporter.state == "starting"
    engine.dead.clear()
    services.gate.close()
    assert reporter.state == "draining"


def test_load_times_are_by_where_an_adapter_was() -> None:
    times = LoadTimes()
    assert (times.host_seconds, times.cold_seconds) == (0.0, 0.0)
    times.note(event("host", seconds=2.0))
    times.note(event("device", seconds=0.5))
    assert (times.host_seconds, times.cold_seconds) == (0.5, 2.5)
    times.note(event("device", "evicted", seconds=9.0))
    times.note(event("device", seconds=1.0))
    assert times.host_seconds == pytest.approx(0.6)


async def test_places_are_counted_in_versions() -> None:
    listed = [AdapterPlace(name="a", digest="d")]

    async def read() -> list[AdapterPlace]:
        if not listed:
            raise EngineDeadError("gone")
        return list(listed)

    book = PlaceBook("e", read)
    assert book.current.version == 0
    await book.refresh()
    await book.refresh()
    assert (book.current.version, book.current.places) == (1, listed)
    running = asyncio.create_task(book.run())
    listed[0] = AdapterPlace(name="a", digest="d", tier="device")
    book.note(event("device"))
    async with asyncio.timeout(5):
        while book.current.version < 2:
            await asyncio.sleep(0)
    listed.clear()
    await book.refresh()
    assert book.current.places[0].tier == "device"
    running.cancel()


async def test_gateways_are_answered(services: Services, errors_of: Any) -> None:
    async with make_client(create_app(services)) as client:
        for path in ("state", "adapters", "keys", "requests/x", "versions", "nothing"):
            refused = await client.get(f"/fleet/{path}")
            assert errors_of(refused, 404)["message"] == f"There is no GET /fleet/{path} here."
        state = await client.get("/fleet/state", headers=FLEET)
        report = msgspec.json.decode(state.content, type=ReplicaReport)
        assert (report.replica_id, report.state) == ("a:1", "starting")
        adapters = await client.get("/fleet/adapters", headers=FLEET)
        assert msgspec.json.decode(adapters.content, type=AdapterPlaces).epoch == "e1"
        asked = await client.get("/fleet/requests/x", headers=FLEET)
        assert asked.json() == {"known": False, "sent": False}


async def test_a_request_is_known_until_it_is_answered(
    services: Services, engine: FakeEngine
) -> None:
    engine.go.clear()
    app = create_app(services)
    body = {"model": BASE, "prompt": "hi"}
    async with make_client(app) as client:
        headers = FLEET | {"x-request-id": "r.1"}
        asking = asyncio.create_task(client.post("/v1/completions", json=body, headers=headers))
        async with asyncio.timeout(5):
            while not engine.requests:
                await asyncio.sleep(0.001)
        path = "/fleet/requests/r.1"
        assert (await client.get(path, headers=FLEET)).json() == {"known": True, "sent": False}
        engine.go.set()
        assert (await asking).status_code == 200
        assert (await client.get(path, headers=FLEET)).json() == {"known": True, "sent": True}
