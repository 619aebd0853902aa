"""Keys through the tenant API: what they open, how they end, and where they are never seen."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer, redis_server
from tenant_house import NOW, TenantHouse, tenant_house

from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.identity import digest_key

LIMITS = {
    "requests_per_minute": 60,
    "input_tokens_per_minute": None,
    "output_tokens_per_minute": 0,
    "max_in_flight": 4,
    "budget_tokens_per_day": 10**9,
}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def refused(house: TenantHouse, key: str) -> str:
    """Why a key does not open."""
    with pytest.raises(GatewayError) as caught:
        house.directory.caller(bearer(key))
    assert caught.value.status == 401
    return caught.value.message


async def test_a_key_opens_until_it_is_revoked() -> None:
    async with tenant_house() as house:
        await house.put("acme", priority=2, weight=3, group="ten", models=["legal"])
        answer = await house.call("POST", "tenants/acme/keys")
        assert answer.headers["cache-control"] == "no-store"
        new = answer.json()
        key = new.pop("key")
        assert key.startswith("bl-")
        assert len(key) >= 35
        caller = house.directory.caller(bearer(key))
        assert (caller.tenant, caller.priority, caller.weight) == ("acme", 2, 3)
        assert (caller.cache_group, dict(caller.models or {})) == ("ten", {"legal": "legal"})
        assert house.directory.caller({"x-api-key": key}) == caller
        listed = (await house.call("GET", "tenants/acme/keys")).json()
        assert listed == {"tenant": "acme", "keys": [new]}
        assert new["ending"] == key[-4:]
        assert (await house.call("GET", "tenants/acme")).json()["num_keys"] == 1
        answer = await house.call("DELETE", f"tenants/acme/keys/{new['id']}")
        assert answer.json() == {"tenant": "acme", "id": new["id"]}
        assert "not valid" in refused(house, key)
        assert (await house.call("DELETE", f"tenants/acme/keys/{new['id']}")).status_code == 404


async def test_a_key_ends_in_time() -> None:
    async with tenant_house() as house:
        await house.put("acme")
        for past in (0, NOW):
            answer = await house.call("POST", "tenants/acme/keys", json={"expires_at": past})
            assert answer.json()["error"]["param"] == "expires_at"
        key = (await house.new_key("acme", expires_at=NOW + 60))["key"]
        assert house.directory.caller(bearer(key)).tenant == "acme"
        house.clock.now += 60
        assert "expired" in refused(house, key)
        (entry,) = (await house.call("GET", "tenants/acme/keys")).json()["keys"]
        assert entry["is_expired"]


async def test_rotation_replaces_a_key_with_and_without_grace() -> None:
    async with tenant_house() as house:
        await house.put("acme")
        first = await house.new_key("acme")
        path = f"tenants/acme/keys/{first['id']}/rotate"
        second = (await house.call("POST", path, json={"grace_seconds": 60})).json()
        for key in (first["key"], second["key"]):
            assert house.directory.caller(bearer(key)).tenant == "acme"
        house.clock.now += 61
        assert "expired" in refused(house, first["key"])
        path = f"tenants/acme/keys/{second['id']}/rotate"
        answer = await house.call("POST", path, json={})
        assert answer.status_code == 201
        assert "not valid" in refused(house, second["key"])
        assert house.directory.caller(bearer(answer.json()["key"])).tenant == "acme"
        assert (await house.call("POST", path, json={})).status_code == 404


async def test_keys_of_one_tenant_are_not_another_ones() -> None:
    async with tenant_house() as house:
        await house.put("acme")
        await house.put("beta")
        new = await house.new_key("acme")
        for verb, path in (("DELETE", new["id"]), ("POST", f"{new['id']}/rotate")):
            assert (await house.call(verb, f"tenants/beta/keys/{path}")).status_code == 404
        assert (await house.call("POST", "tenants/nobody/keys")).status_code == 404
        assert house.directory.caller(bearer(new["key"])).tenant == "acme"


async def test_a_tenant_has_a_bounded_number_of_keys() -> None:
    async with tenant_house() as house:
        await house.put("acme")
        for _ in range(100):
            await house.new_key("acme")
        answer = await house.call("POST", "tenants/acme/keys")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "too_many_keys")


async def test_a_disabled_tenant_is_out_and_its_terms_change_at_once() -> None:
    async with tenant_house() as house:
        await house.put("acme")
        key = (await house.new_key("acme"))["key"]
        assert house.directory.caller(bearer(key)).weight == 1
        await house.put("acme", weight=4)
        assert house.directory.caller(bearer(key)).weight == 4
        await house.put("acme", disabled=True)
        assert "disabled" in refused(house, key)
        await house.put("acme", priority=7)
        await house.put("beta", priority=-1)
        assert house.directory.caller(bearer(key)).priority == 7
        assert house.directory.priorities == (-1, 7)


async def test_keys_go_with_their_tenant_and_never_come_back(redis: RedisServer) -> None:
    """Also one that was made elsewhere while the tenant was removed and made anew."""
    async with tenant_house(redis.url) as house, tenant_house(redis.url) as other:
        await house.put("acme")
        keys = [(await house.new_key("acme"))["key"] for _ in range(2)]
        document = next(iter(house.store.items("key").values()))
        assert (await house.call("DELETE", "tenants/acme")).json()["num_keys"] == 2
        await other.store.change([("key", document.name, document.data, None)])
        await other.put("acme")
        await house.store.refresh()
        assert len(house.store.items("key")) == 1
        for key in keys:
            assert "not valid" in refused(house, key)
        assert (await house.call("GET", "tenants/acme/keys")).json()["keys"] == []


async def test_puts_at_once_leave_one_whole_and_a_key_never_outlives_its_tenant(
    redis: RedisServer,
) -> None:
    async with tenant_house(redis.url) as one, tenant_house(redis.url) as two:
        await one.put("acme")
        puts = [
            house.call("PUT", "tenants/acme", json={"priority": n, "group": f"g{n}"})
            for n, house in enumerate([one, two] * 4)
        ]
        answers = await asyncio.gather(*puts)
        assert {answer.status_code for answer in answers} <= {200, 409}
        await asyncio.gather(one.store.refresh(), two.store.refresh())
        entry = (await one.call("GET", "tenants/acme")).json()
        assert entry == (await two.call("GET", "tenants/acme")).json()
        assert entry["group"] == f"g{entry['priority']}"
        made = await asyncio.gather(
            one.call("POST", "tenants/acme/keys"), two.call("DELETE", "tenants/acme")
        )
        assert made[1].status_code == 200
        assert made[0].status_code in (201, 404)
        await one.store.refresh()
        if made[0].status_code == 201:
            assert "not valid" in refused(one, made[0].json()["key"])


async def test_keys_are_nowhere_but_in_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with tenant_house(None, tmp_path) as house:
        await house.put("acme")
        new = await house.new_key("acme")
        key = new["key"]
        texts = [
            json.dumps((await house.call("GET", path)).json())
            for path in ("tenants", "tenants/acme", "tenants/acme/keys")
        ]
        texts.append((await house.call("DELETE", f"tenants/acme/keys/{key}")).text)
        texts += [repr(house.store.items("key")), repr(house.directory.caller(bearer(key)))]
        texts.append(refused(house, key + "x"))
        texts.append((tmp_path / "store.json").read_text())
    texts += [path.read_text() for path in tmp_path.iterdir()]
    texts += [record.getMessage() for record in caplog.records if "branchline" in record.name]
    assert not any(key.removeprefix("bl-") in text for text in texts)
    assert any(digest_key(key).hex() in text for text in texts)


async def test_a_key_is_not_made_for_a_tenant_that_goes_meanwhile(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tenant_house(redis.url) as one, tenant_house(redis.url) as two:
        await one.put("gone")
        change = one.store.change

        async def slow(*given: Any, **more: Any) -> int:
            monkeypatch.undo()
            await two.call("DELETE", "tenants/gone")
            return await change(*given, **more)

        monkeypatch.setattr(one.store, "change", slow)
        keys = set(one.store.items("key"))
        assert (await one.call("POST", "tenants/gone/keys")).status_code == 404
        assert set(one.store.items("key")) == keys


async def test_keys_are_counted_as_the_store_changes(redis: RedisServer) -> None:
    """Also those that were there before, come from elsewhere, move or can't be read."""
    async with tenant_house(redis.url) as one:
        for name in ("moves-from", "moves-to"):
            await one.put(name)
        made = await one.new_key("moves-from")
        digest = digest_key(made["key"]).hex()
        async with tenant_house(redis.url) as two:

            async def counts() -> list[int]:
                await two.store.refresh()
                answers = [await two.call("GET", f"tenants/moves-{w}") for w in ("from", "to")]
                return [answer.json()["num_keys"] for answer in answers]

            assert await counts() == [1, 0]
            document = one.store.get("key", digest)
            other = one.directory.record("moves-to")
            assert document is not None
            assert other is not None
            fields = json.loads(document.data)
            fields |= {"tenant": "moves-to", "incarnation": other.incarnation}
            await one.store.change([("key", digest, json.dumps(fields).encode(), None)])
            assert await counts() == [0, 1]
            await one.store.change([("key", digest, b"[]", None)])
            assert await counts() == [0, 0]
