"""An upload on its way to several replicas, some of which fail at each stage."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import httpx
import pytest
from fake_replicas import SECRET, FakeFleet, fake_fleet
from gateway_adapters import AdapterGateway, gateway_house

from branchline.gateway.adapters.asking import Standing
from branchline.gateway.adapters.fan_out import MAX_QUEUED_CHUNKS, fan_out
from branchline.gateway.adapters.replica_client import ReplicaClient
from branchline.gateway.errors import GatewayError

CHUNK = b"x" * 16_384
NUM_CHUNKS = 40
ARCHIVE = CHUNK * NUM_CHUNKS


async def _chunks(num_chunks: int = NUM_CHUNKS) -> AsyncIterator[bytes]:
    for _ in range(num_chunks):
        yield CHUNK
        await asyncio.sleep(0)


@pytest.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    async with fake_fleet("a", "b") as fleet:
        yield fleet


def _standing(fleet: FakeFleet) -> Standing:
    return lambda replica: fleet[replica.replica_id].is_up


async def _send(fleet: FakeFleet, chunks: AsyncIterator[bytes], stall: float = 5.0):
    client = ReplicaClient(fleet.session, SECRET)
    return await fan_out(
        client, fleet.snapshot().replicas, chunks, "application/x-tar", _standing(fleet), stall
    )


async def test_all_hold_what_was_sent(fleet: FakeFleet) -> None:
    uploaded = await _send(fleet, _chunks())
    assert uploaded.blob.sha256 == hashlib.sha256(ARCHIVE).hexdigest()
    assert uploaded.blob.size > 0
    assert {holder.replica_id for holder in uploaded.holders} == {"a", "b"}


@pytest.mark.parametrize("stage", ["blob_begin", "blob_middle", "blob_end", "blob_hang"])
async def test_one_that_fails_on_the_way_is_left_behind(fleet: FakeFleet, stage: str) -> None:
    fleet["a"].fails.add(stage)
    uploaded = await _send(fleet, _chunks(400 if stage == "blob_hang" else NUM_CHUNKS), stall=0.3)
    assert [holder.replica_id for holder in uploaded.holders] == ["b"]
    assert uploaded.blob.sha256 in fleet["b"].blobs


@pytest.mark.parametrize("stage", ["blob_begin", "blob_middle", "blob_end"])
async def test_without_any_it_is_a_503(fleet: FakeFleet, stage: str) -> None:
    for replica in fleet.replicas:
        replica.fails.add(stage)
    with pytest.raises(GatewayError) as caught:
        await _send(fleet, _chunks())
    assert caught.value.status == 503


async def test_a_refusal_is_passed_on_before_the_end(fleet: FakeFleet) -> None:
    fleet["b"].fails.add("blob_refused")
    num_given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_given
        while True:
            num_given += 1
            yield CHUNK
            await asyncio.sleep(0)

    with pytest.raises(GatewayError) as caught:
        await asyncio.wait_for(_send(fleet, endless()), 10)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")


async def test_the_gateway_holds_little_of_it_while_a_replica_is_slow(fleet: FakeFleet) -> None:
    fleet["a"].go.clear()
    num_given = 0

    async def many() -> AsyncIterator[bytes]:
        nonlocal num_given
        for _ in range(4000):
            num_given += 1
            yield CHUNK

    sending = asyncio.create_task(_send(fleet, many(), stall=30))
    before = -1
    while before != num_given:
        before = num_given
        await asyncio.sleep(0.2)
    # The kernel's buffers on both ways, and our queue, but not the 65 MB of the whole.
    assert num_given * len(CHUNK) < (20 << 20) + MAX_QUEUED_CHUNKS * len(CHUNK)
    fleet["a"].go.set()
    uploaded = await asyncio.wait_for(sending, 30)
    assert (len(uploaded.holders), num_given) == (2, 4000)


async def test_a_client_that_leaves_leaves_nothing(fleet: FakeFleet) -> None:
    async def leaving() -> AsyncIterator[bytes]:
        yield CHUNK
        raise GatewayError(400, "left")

    with pytest.raises(GatewayError, match="left"):
        await _send(fleet, leaving())
    assert not fleet["a"].blobs
    assert not fleet["b"].blobs


@pytest.fixture
async def gateway() -> AsyncIterator[AdapterGateway]:
    async with gateway_house("a", "b", "c") as gateway:
        yield gateway


def _first_targets(gateway: AdapterGateway, name: str) -> list[str]:
    return [replica.replica_id for replica in gateway.admin.candidates(name)]


@pytest.mark.parametrize("stage", ["blob_begin", "blob_middle", "blob_end", "put", "put_cut"])
@pytest.mark.parametrize("which", [0, 1])
async def test_another_is_taken_for_one_that_dies_in_the_middle(
    gateway: AdapterGateway, stage: str, which: int
) -> None:
    failing = _first_targets(gateway, "legal")[which]
    gateway.fleet[failing].fails.add(stage)
    answer = await gateway.upload("legal", ARCHIVE)
    assert answer.status_code == 201, answer.text
    assert gateway.fleet.holding(ARCHIVE) == {"a", "b", "c"} - {failing}


async def test_with_only_one_left_nothing_is_acknowledged(gateway: AdapterGateway) -> None:
    for replica in gateway.fleet.replicas[:2]:
        replica.fails.add("put")
    answer = await gateway.upload("legal", b"one")
    assert answer.status_code == 503
    assert gateway.registry.adapter("legal") is None
    gateway.fleet.replicas[0].is_up = gateway.fleet.replicas[1].is_up = False
    answer = await gateway.upload("legal", b"one")
    assert answer.status_code == 201, "one of one that is up is all that can be"


@pytest.mark.parametrize("way", ["upload", "source", "rollback"])
async def test_a_replica_that_joins_meanwhile_gets_it_too(
    gateway: AdapterGateway, way: str
) -> None:
    gateway.fleet.sources["/x"] = b"one"
    for archive in (b"zero", b"two") if way == "rollback" else ():
        await gateway.upload("legal", archive)
    late = gateway.fleet.replicas[1:]
    for replica in late:
        replica.is_up = False
        replica.versions.clear()
    first = gateway.fleet.replicas[0]
    first.versions.clear()
    first.calls.clear()
    first.put_go.clear()
    calls = {
        "upload": lambda: gateway.upload("legal", b"one"),
        "source": lambda: gateway.put("legal", "/x"),
        "rollback": lambda: gateway.client.post("/admin/adapters/legal/rollback"),
    }
    putting = asyncio.create_task(calls[way]())
    while not first.calls:
        await asyncio.sleep(0.01)
    for replica in late:
        replica.is_up = True
    first.put_go.set()
    answer = await asyncio.wait_for(putting, 10)
    assert answer.status_code in (200, 201), answer.text
    assert len(gateway.fleet.holding(b"zero" if way == "rollback" else b"one")) == 2


async def test_one_that_is_up_in_name_only_is_not_waited_for_once_it_is_out(
    gateway: AdapterGateway,
) -> None:
    dead, other, alive = (gateway.fleet[name] for name in _first_targets(gateway, "legal"))
    other.is_up = False
    dead.fails.add("put")
    putting = asyncio.create_task(gateway.upload("legal", b"one"))
    while not any(what == "put" for what, _ in dead.calls):
        await asyncio.sleep(0.01)
    assert not putting.done()
    dead.is_up = False
    answer = await asyncio.wait_for(putting, 5)
    assert answer.status_code == 201, answer.text
    assert gateway.fleet.holding(b"one") == {alive.name}


@pytest.mark.parametrize("fate", ["dies", "starts anew"])
async def test_a_holder_that_is_lost_does_not_count(gateway: AdapterGateway, fate: str) -> None:
    first, second, third = (gateway.fleet[name] for name in _first_targets(gateway, "legal"))
    second.put_go.clear()
    putting = asyncio.create_task(gateway.upload("legal", b"one"))
    while not second.calls:
        await asyncio.sleep(0.01)
    assert first.versions, "the first one has made it"
    if fate == "dies":
        first.is_up = False
        first.fails.add("put")
    else:
        first.epoch = "e2"
        third.is_up = False
        first.versions.clear()
        first.blobs.clear()
    second.put_go.set()
    answer = await asyncio.wait_for(putting, 10)
    assert answer.status_code == 201, answer.text
    expected = {second, third} if fate == "dies" else {first, second}
    assert gateway.fleet.holding(b"one") - {first.name} >= {r.name for r in expected - {first}}
    assert all(replica.versions for replica in expected)


async def test_nothing_is_acknowledged_when_all_that_held_it_are_lost(
    gateway: AdapterGateway,
) -> None:
    first, second, third = (gateway.fleet[name] for name in _first_targets(gateway, "legal"))
    second.put_go.clear()
    second.fails.add("put")
    third.is_up = False
    putting = asyncio.create_task(gateway.upload("legal", b"one"))
    while not second.calls:
        await asyncio.sleep(0.01)
    first.is_up = False
    second.put_go.set()
    answer = await asyncio.wait_for(putting, 10)
    assert answer.status_code == 503
    assert gateway.registry.adapter("legal") is None


async def test_a_call_to_a_process_that_is_no_more_ends_at_once(gateway: AdapterGateway) -> None:
    gateway.fleet.sources["/x"] = b"one"
    first, second, _ = (gateway.fleet[name] for name in _first_targets(gateway, "legal"))
    first.put_go.clear()
    putting = asyncio.create_task(gateway.put("legal", "/x"))
    while not first.calls:
        await asyncio.sleep(0.01)
    first.epoch = "e2"
    async with asyncio.timeout(3):
        while not second.calls:
            await asyncio.sleep(0.01)
    first.put_go.set()
    answer = await asyncio.wait_for(putting, 4)
    assert answer.status_code == 201, answer.text
    assert len(gateway.fleet.holding(b"one")) >= 2


async def test_a_short_absence_ends_nothing(gateway: AdapterGateway) -> None:
    gateway.fleet.sources["/x"] = b"one"
    for replica in gateway.fleet.replicas:
        replica.go.clear()
    putting = asyncio.create_task(gateway.put("legal", "/x"))
    while not any(replica.calls for replica in gateway.fleet.replicas):
        await asyncio.sleep(0.01)
    for is_up in (False, True):
        for replica in gateway.fleet.replicas:
            replica.is_up = is_up
        await asyncio.sleep(1.2)
    for replica in gateway.fleet.replicas:
        replica.go.set()
    answer = await asyncio.wait_for(putting, 10)
    assert answer.status_code == 201, answer.text
    assert len(gateway.fleet.holding(b"one")) == 2


async def test_without_replicas_it_is_a_503(gateway: AdapterGateway) -> None:
    for replica in gateway.fleet.replicas:
        replica.is_up = False
    assert (await gateway.upload("legal", b"one")).status_code == 503
    assert (await gateway.put("legal", "/x")).status_code == 503


async def test_forms_are_streamed_through_and_their_pin_is_read(gateway: AdapterGateway) -> None:
    answer = await gateway.client.put(
        "/admin/adapters/legal", content=b"one", headers={"content-type": "multipart/pin"}
    )
    assert answer.json()["adapter"]["pin"] == "host"


async def test_bodies_have_a_limit_and_may_not_stand_still(
    gateway: AdapterGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await gateway.client.put("/admin/adapters/x", content=b" " * ((1 << 20) + 1))
    assert answer.status_code == 413
    bad: httpx.Response = await gateway.client.put("/admin/adapters/x", content=b"\xff")
    assert bad.status_code == 400


async def test_nobody_waits_for_a_replica_that_went_out(gateway: AdapterGateway) -> None:
    frozen = gateway.fleet[_first_targets(gateway, "legal")[0]]
    gateway.fleet.sources["/x"] = b"one"
    frozen.go.clear()
    putting = asyncio.create_task(gateway.put("legal", "/x"))
    while not frozen.calls:
        await asyncio.sleep(0.01)
    frozen.is_up = False
    answer = await asyncio.wait_for(putting, 10)
    assert answer.status_code == 201, answer.text
    assert len(gateway.fleet.holding(b"one")) == 2
    frozen.go.set()


async def test_an_upload_goes_on_without_a_replica_that_went_out(fleet: FakeFleet) -> None:
    fleet["a"].go.clear()
    sending = asyncio.create_task(_send(fleet, _chunks(4000), stall=60))
    while not fleet["b"].num_received:
        await asyncio.sleep(0.01)
    fleet["a"].is_up = False
    uploaded = await asyncio.wait_for(sending, 20)
    assert [holder.replica_id for holder in uploaded.holders] == ["b"]
    fleet["a"].go.set()
