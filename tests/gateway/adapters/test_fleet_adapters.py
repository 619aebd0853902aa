"""The fleet's adapters through the admin API: put, replace, roll back, pin, delete, resolve."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fake_replicas import report_of
from gateway_adapters import AdapterGateway, gateway_house

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.records import AdapterPlace
from branchline.gateway.types import Caller


@pytest.fixture
async def gateway() -> AsyncIterator[AdapterGateway]:
    async with gateway_house("a", "b", "c") as gateway:
        yield gateway


async def test_an_upload_is_acknowledged_when_two_replicas_hold_it(
    gateway: AdapterGateway,
) -> None:
    answer = await gateway.upload("legal", b"one")
    assert answer.status_code == 201, answer.text
    assert len(gateway.fleet.holding(b"one")) >= 2
    entry = answer.json()["adapter"]
    assert (entry["name"], entry["version"], entry["rank"]) == ("legal", 1, 8)
    assert entry["source"] == {"kind": "upload", "location": "upload"}
    assert {one["replica"] for one in entry["replicas"]} == gateway.fleet.holding(b"one")
    target = gateway.target("legal")
    assert target.wire_name == f"fleet/{report_of(b'one').version_id}"
    assert (target.label, target.in_registry, target.uses_base_prefix) == ("legal", True, False)


async def test_a_source_is_fetched_by_one_replica_and_pulled_by_the_next(
    gateway: AdapterGateway,
) -> None:
    gateway.fleet.sources["/adapters/legal"] = b"alora one"
    answer = await gateway.put("legal", "/adapters/legal")
    assert answer.status_code == 201, answer.text
    assert answer.json()["adapter"]["source"]["location"] == "/adapters/legal"
    puts = [put for one in gateway.fleet.replicas for what, put in one.calls if what == "put"]
    assert len(puts) == 2
    assert [bool(put.peers) for put in sorted(puts, key=lambda put: len(put.peers))] == [0, 1]
    assert gateway.target("legal").uses_base_prefix


async def test_the_same_bytes_again_change_nothing(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    again = await gateway.upload("legal", b"one#in another archive")
    assert (again.status_code, again.json()["changed"]) == (200, False)
    assert again.json()["adapter"]["versions"] == [1]


async def test_new_bytes_are_a_new_version_and_a_roll_back_brings_the_old_one(
    gateway: AdapterGateway,
) -> None:
    await gateway.upload("legal", b"one")
    old = gateway.target("legal")
    answer = await gateway.upload("legal", b"two")
    assert (answer.status_code, answer.json()["changed"]) == (200, True)
    assert gateway.target("legal").digest == report_of(b"two").digest
    back = await gateway.client.post("/admin/adapters/legal/rollback")
    assert back.json()["changed"] is True
    assert gateway.target("legal") == old
    listed = (await gateway.client.get("/admin/adapters/legal/versions")).json()["versions"]
    assert [(entry["version"], entry["is_current"]) for entry in listed] == [(1, True), (2, False)]
    missing = await gateway.client.post("/admin/adapters/legal/rollback", json={"version": 9})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "version_not_found")


async def test_what_is_refused_leaves_nothing(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    answer = await gateway.upload("legal", b"bad")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "adapter_refused")
    assert error["param"] == "adapter_model"
    assert gateway.target("legal").digest == report_of(b"one").digest
    for replica in gateway.fleet.replicas:
        assert b"bad" not in replica.blobs.values()


async def test_a_deleted_adapter_is_gone_at_once_and_everywhere(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.upload("legal", b"two")
    answer = await gateway.client.delete("/admin/adapters/legal", params={"wait": 5})
    assert answer.json() == {
        "name": "legal",
        "removed": True,
        "done": True,
        "requests": 0,
        "freed": {"device": 400, "host": 200},
    }
    assert not any(replica.versions for replica in gateway.fleet.replicas)
    with pytest.raises(GatewayError):
        gateway.target("legal")
    assert (await gateway.client.get("/admin/adapters/legal")).status_code == 404


async def test_a_version_that_another_name_has_stays(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.upload("law", b"one")
    answer = await gateway.client.delete("/admin/adapters/legal", params={"wait": 5})
    assert answer.json()["done"] is True
    assert len(gateway.fleet.holding(b"one")) >= 2


async def test_a_version_that_was_put_only_now_is_left_to_placement(
    gateway: AdapterGateway,
) -> None:
    await gateway.upload("legal", b"one")
    version_id = report_of(b"one").version_id
    for replica in gateway.fleet.replicas:
        replica.young.add(version_id)
    answer = await gateway.client.delete("/admin/adapters/legal")
    assert (answer.status_code, answer.json()["done"]) == (202, False)
    for replica in gateway.fleet.replicas:
        replica.young.clear()
    await gateway.tick()
    await gateway.tick(59)
    assert gateway.fleet.holding(b"one")
    await gateway.tick(2)
    assert not gateway.fleet.holding(b"one")


async def test_pins_follow_the_name(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    pinned = await gateway.client.post("/admin/adapters/legal/pin", json={"tier": "host"})
    assert pinned.json()["pin"] == "host"
    assert {one["pin"] for one in pinned.json()["replicas"]} == {"host"}
    await gateway.upload("legal", b"two")
    entry = (await gateway.client.get("/admin/adapters/legal")).json()
    assert {one["pin"] for one in entry["replicas"]} == {"host"}
    await gateway.admin.settled()
    old = report_of(b"one").version_id
    assert all(
        one.versions[old].pin is None for one in gateway.fleet.replicas if old in one.versions
    )
    unpinned = await gateway.client.post("/admin/adapters/legal/unpin")
    assert unpinned.json()["pin"] is None


async def test_load_and_evict_reach_all_that_hold_it(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    loaded = await gateway.client.post("/admin/adapters/legal/load", json={"tier": "device"})
    assert {one["tier"] for one in loaded.json()["replicas"]} == {"device"}
    for replica in gateway.fleet.replicas:
        replica.fails.add("evict")
    evicted = await gateway.client.post("/admin/adapters/legal/evict")
    assert (evicted.status_code, evicted.json()["error"]["code"]) == (409, "adapter_busy")


async def test_aliases_split_and_go_back(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    await gateway.upload("legal", b"two")
    split = [
        {"adapter": "legal", "version": 1, "percent": 50},
        {"adapter": "legal", "version": 2, "percent": 50},
    ]
    answer = await gateway.put_alias("counsel", split=split)
    assert answer.status_code == 201, answer.text
    seen = {gateway.target("counsel", key=str(number)).digest for number in range(50)}
    assert seen == {report_of(b"one").digest, report_of(b"two").digest}
    assert gateway.target("counsel", key="x") == gateway.target("counsel", key="x")
    await gateway.put_alias("counsel", adapter="legal")
    back = await gateway.client.post("/admin/aliases/counsel/rollback")
    assert [part["percent"] for part in back.json()["split"]] == [50, 50]
    held = await gateway.client.delete("/admin/adapters/legal")
    assert (held.status_code, held.json()["error"]["code"]) == (409, "adapter_in_use")
    assert (await gateway.client.delete("/admin/aliases/counsel")).json()["removed"] is True
    assert (await gateway.client.get("/admin/aliases")).json() == {"aliases": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("PUT", "adapters/x", {"source": "/x", "odd": 1}, 400, "odd"),
        ("PUT", "adapters/x", {}, 400, "source"),
        ("PUT", "adapters/x", {"source": 3}, 400, "source"),
        ("PUT", "adapters/x?pin=disk", {"source": "/x"}, 400, "pin"),
        ("PUT", "adapters/-x", {"source": "/x"}, 400, "name"),
        ("PUT", "adapters/fleet/" + "0" * 32, {"source": "/x"}, 400, "name"),
        ("PUT", "adapters/base", {"source": "/x"}, 409, "name"),
        ("PUT", "aliases/x", {"adapter": "none"}, 404, "adapter"),
        ("PUT", "aliases/x", {"adapter": "legal", "version": 7}, 404, "version"),
        ("PUT", "aliases/legal", {"adapter": "legal"}, 409, "alias"),
        ("PUT", "aliases/x", {"split": [{"adapter": "legal", "percent": 50}]}, 400, "split"),
        ("PUT", "aliases/x", {"split": [{"adapter": "legal", "odd": 1, "percent": 9}]}, 400, None),
        ("POST", "adapters/legal/pin", {"tier": "disk"}, 400, "tier"),
        ("POST", "adapters/legal/rollback", {}, 409, "version"),
        ("POST", "adapters/none/rollback", {}, 404, "name"),
        ("DELETE", "adapters/legal?wait=-1", None, 400, "wait"),
    ],
)
async def test_bad_requests_say_what_is_wrong(
    gateway: AdapterGateway,
    method: str,
    path: str,
    body: object,
    status: int,
    param: str | None,
) -> None:
    await gateway.upload("legal", b"one")
    answer = await gateway.client.request(method, f"/admin/{path}", json=body)
    assert answer.status_code == status, answer.text
    if param is not None:
        assert answer.json()["error"]["param"] == param, answer.text


async def test_pages_of_adapters(gateway: AdapterGateway) -> None:
    for name in ("c", "a", "b"):
        await gateway.upload(name, b"one")
    page = (await gateway.client.get("/admin/adapters", params={"limit": 2})).json()
    assert [entry["name"] for entry in page["adapters"]] == ["a", "b"]
    assert (page["has_more"], page["last"]) == (True, "b")
    rest = (await gateway.client.get("/admin/adapters", params={"after": "b"})).json()
    assert [entry["name"] for entry in rest["adapters"]] == ["c"]


async def test_a_tenant_reaches_its_own_names_and_no_others(gateway: AdapterGateway) -> None:
    await gateway.upload("acme/legal", b"one")
    await gateway.upload("rival/legal", b"two")
    acme = Caller(tenant="acme", models={"legal": "acme/legal", "base": "base", "gone": "gone"})
    assert gateway.target("legal", acme).digest == report_of(b"one").digest
    assert gateway.target("legal", acme).label == "acme/legal"
    assert gateway.target("base", acme).digest is None
    shown = gateway.directory.models(acme, gateway.fleet.snapshot())
    assert [entry.id for entry in shown] == ["base", "legal"]
    problems = set()
    wire = gateway.target("rival/legal").wire_name
    for name in ("rival/legal", "acme/legal", "nobody/legal", "gone", wire):
        with pytest.raises(GatewayError) as caught:
            gateway.target(name, acme)
        error = caught.value
        assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
        problems.add(error.message.replace(repr(name), "NAME"))
    assert len(problems) == 1, "what is another's looks like what is not there"
    with pytest.raises(GatewayError):
        gateway.target(wire, Caller(tenant="everything"))


async def test_the_default_model_is_the_base_as_its_caller_calls_it(
    gateway: AdapterGateway,
) -> None:
    await gateway.upload("legal", b"one")
    snapshot = gateway.fleet.snapshot()
    named = {"law": "legal", "plain": "base"}
    for models, name in ((None, "base"), (named, "plain"), ({"law": "legal"}, None)):
        caller = Caller(tenant="t", models=models)
        assert gateway.directory.default_model(caller, snapshot) == name


async def test_names_that_replicas_bring_are_there_too(gateway: AdapterGateway) -> None:
    gateway.fleet["b"].own["local"] = AdapterPlace(name="local", digest="d" * 64, tier="disk")
    gateway.fleet["b"].own["broken"] = AdapterPlace(name="broken", digest="d" * 64, error="x")
    target = gateway.target("local")
    assert (target.wire_name, target.in_registry, target.label) == ("local", False, "local")
    with pytest.raises(GatewayError):
        gateway.target("broken")
    names = gateway.directory.models(Caller(tenant="t"), gateway.fleet.snapshot())
    assert [entry.id for entry in names] == ["base", "local"]
    await gateway.upload("local", b"one")
    assert gateway.target("local").in_registry, "the fleet's word goes before a replica's"


async def test_a_store_that_is_away_is_a_503_and_changes_nothing(gateway: AdapterGateway) -> None:
    await gateway.upload("legal", b"one")
    gateway.store.redis.is_up = False
    answer = await gateway.upload("legal", b"two")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_down")
    assert gateway.target("legal").digest == report_of(b"one").digest
