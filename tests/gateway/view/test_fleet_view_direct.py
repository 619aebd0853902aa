"""Static members, asked themselves; probes over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from fake_replica import SECRET
from fleet_values import report

from branchline.gateway.fleet.records import AdapterPlace
from branchline.gateway.view import direct_poller
from branchline.gateway.view.direct_poller import DirectPoller
from branchline.gateway.view.prober import HttpProber


async def test_static_members_are_seen_lost_and_found_again(house: Any) -> None:
    a, b = await house.replica("a"), await house.replica("b")
    b.places = [AdapterPlace(name="own", digest="d")]
    view = await house.view(urls=(f"{a.url}/", b.url))

    def standing() -> dict[str, str | None]:
        return {one.replica_id: one.out_reason for one in view.snapshot().replicas}

    await house.until(lambda: standing() == {"a": None, "b": None})
    assert view.redis_state == "none"
    assert view.num_gateways == 1
    await house.until(lambda: "own" in view.snapshot().replicas[1].places)
    flight = view.begin("a", 10)
    await a.kill()
    assert await house.until(lambda: flight.lost.is_set()) < 5.0
    assert standing() == {"a": "lease", "b": None}
    a.fields["epoch"] = "e2"
    await a.start()
    await house.until(lambda: standing() == {"a": None, "b": None})
    num_reads = b.num_adapter_reads
    await house.holds(lambda: b.num_adapter_reads == num_reads == 1, 0.6)


async def test_only_the_fleets_secret_opens_a_replica(house: Any) -> None:
    a = await house.replica("a")
    wrong = await DirectPoller(house.session, "wrong").poll([a.url], {})
    assert wrong.replicas == {}
    right = await DirectPoller(house.session, SECRET).poll([a.url], {})
    assert right.replicas["a"].report.url == a.url
    assert right.gateways is None


async def test_what_does_not_answer_well_is_not_seen(
    house: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct_poller, "MAX_ANSWER_BYTES", 1000)
    bodies = iter([b"[", b'{"replica_id": 3}', b" " * 100_000, b"\xff"])

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=next(bodies))

    app = web.Application()
    app.router.add_get("/fleet/state", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    poller = DirectPoller(house.session, SECRET)
    for _ in range(4):
        assert (await poller.poll([url, "http://127.0.0.1:1"], {})).replicas == {}
    await runner.cleanup()


async def test_a_frozen_replica_does_not_hold_up_the_others(house: Any) -> None:
    a, b = await house.replica("a"), await house.replica("b")
    a.freeze()
    poller = DirectPoller(house.session, SECRET, timeout=0.2)
    looked = await asyncio.wait_for(poller.poll([a.url, b.url], {}), 2.0)
    assert set(looked.replicas) == {"b"}
    assert looked.replicas["b"].age >= 0.1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((200, "ok"), (400, "refused"), (404, "refused")),
        *((429, "overloaded"), (503, "overloaded"), (500, "failed")),
    ],
)
async def test_a_probe_tells_a_fault_of_the_replica_from_all_else(
    house: Any, status: int, outcome: str
) -> None:
    a = await house.replica("a")
    a.status = status
    assert await HttpProber(house.session, SECRET).probe(a.report) == outcome


async def test_a_probe_of_what_is_dead_or_stuck(house: Any) -> None:
    a = await house.replica("a")
    prober = HttpProber(house.session, SECRET, timeout=0.2)
    a.is_wedged = True
    assert await prober.probe(a.report) == "stalled"
    assert await prober.probe(report("x", url="http://127.0.0.1:1")) == "unreachable"
    assert a.fields["progress"] == 0
