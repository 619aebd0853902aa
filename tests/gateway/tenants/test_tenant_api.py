"""The tenant API through ASGI, over stores with and without a Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis_server import RedisServer, redis_server
from tenant_house import NOW, tenant_house

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


async def test_a_tenant_is_made_replaced_read_and_removed() -> None:
    async with tenant_house() as house:
        answer = await house.call("PUT", "tenants/acme", json={})
        assert answer.status_code == 201
        entry = answer.json()
        revision = entry.pop("revision")
        assert answer.headers["etag"] == f'"{revision}"'
        assert entry == {
            "name": "acme",
            "models": None,
            "weight": 1.0,
            "priority": 0,
            "group": None,
            "limits": dict.fromkeys(LIMITS),
            "disabled": False,
            "created": NOW,
            "num_keys": 0,
        }
        house.clock.now += 10
        body = {
            "models": {"legal": "acme-legal"},
            "weight": 2.5,
            "priority": -3,
            "group": "ten",
            "limits": LIMITS,
        }
        answer = await house.call("PUT", "tenants/acme", json=body)
        assert answer.status_code == 200
        entry = (await house.call("GET", "tenants/acme")).json()
        assert entry == answer.json()
        assert entry["revision"] > revision
        assert entry == entry | body
        assert entry["created"] == NOW
        record = house.directory.record("acme")
        assert record is not None
        assert record.limits.max_in_flight == 4
        answer = await house.call("DELETE", "tenants/acme")
        assert answer.json() == {"name": "acme", "num_keys": 0}
        assert (await house.call("GET", "tenants/acme")).status_code == 404
        assert house.directory.record("acme") is None


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"weigth": 1}, "weigth", "models, weight, priority, group, limits, disabled"),
        ({"limits": {"rpm": 1}}, "limits.rpm", "requests_per_minute, input_tokens_per_minute"),
        ({"weight": 0}, "weight", ">= 0.001"),
        ({"weight": "2"}, "weight", "float"),
        ({"priority": 1001}, "priority", "<= 1000"),
        ({"priority": 1.5}, "priority", "int"),
        ({"group": "a b"}, "group", "matching"),
        ({"models": "legal"}, "models", "array"),
        ({"models": ["legal", 3]}, "models[1]", "str"),
        ({"models": [""]}, "models[0]", "length >= 1"),
        ({"models": [" x"]}, "models", "printable"),
        ({"models": {"*": "x"}}, "models", "list"),
        ({"models": {"x": "\n"}}, "models", "printable"),
        ({"limits": {"max_in_flight": -1}}, "limits.max_in_flight", ">= 0"),
        ({"limits": {"max_in_flight": True}}, "limits.max_in_flight", "int"),
        ({"limits": {"max_in_flight": 10**16}}, "limits.max_in_flight", "<="),
        ({"limits": 7}, "limits", "object"),
        ({"name": "acme"}, "name", "no such field"),
        ([], "body", "object"),
    ],
)
async def test_a_bad_field_is_named_with_what_is_allowed(body: Any, param: str, said: str) -> None:
    async with tenant_house() as house:
        answer = await house.call("PUT", "tenants/acme", json=body)
        error = answer.json()["error"]
        assert answer.status_code == 400, error
        assert error["param"] == param
        assert said in error["message"]
        assert house.store.get("tenant", "acme") is None


@pytest.mark.parametrize(
    "raw", [b"{", b"\xff\xfe", b"nul", b'{"a":' * 5000, b'"\\ud800"', b"[" * 100_000], ids=repr
)
async def test_what_is_no_json_is_refused(raw: bytes) -> None:
    async with tenant_house() as house:
        answer = await house.call("PUT", "tenants/acme", content=raw)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "body"


async def test_a_large_body_is_refused() -> None:
    async with tenant_house() as house:
        answer = await house.call("PUT", "tenants/acme", content=b" " * (1 << 20) + b"{}")
        assert answer.status_code == 413


@pytest.mark.parametrize(
    "name",
    [
        "-a",
        "a%20b",
        "%C3%A9",
        "a" * 129,
        "%00",
        "a%0A",
        "..%2fx",
        ".hidden",
        "*",
        "branchline-probe",
    ],
)
async def test_a_bad_name_is_refused(name: str) -> None:
    async with tenant_house() as house:
        answer = await house.call("PUT", f"tenants/{name}", json={})
        assert answer.status_code in (400, 404)
        for verb, path in (("GET", name), ("DELETE", name), ("GET", f"{name}/keys")):
            assert (await house.call(verb, f"tenants/{path}")).status_code == 404
        assert not house.store.items("tenant")


async def test_revisions_guard_a_put() -> None:
    async with tenant_house() as house:
        path = "tenants/acme"
        new = {"if-none-match": "*"}
        first = await house.call("PUT", path, json={}, headers=new)
        assert first.status_code == 201
        assert (await house.call("PUT", path, json={}, headers=new)).status_code == 409
        match = {"if-match": first.headers["etag"]}
        second = await house.call("PUT", path, json={"weight": 2}, headers=match)
        assert second.status_code == 200
        for verb in ("PUT", "DELETE"):
            body = {"json": {"weight": 3}} if verb == "PUT" else {}
            answer = await house.call(verb, path, headers=match, **body)
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "revision_conflict"
        assert (await house.call("GET", path)).json()["weight"] == 2
        for header in ({"if-match": "x"}, {"if-none-match": "3"}, {"if-match": '"0"'}):
            assert (await house.call("PUT", path, json={}, headers=header)).status_code == 400
        match = {"if-match": second.headers["etag"]}
        assert (await house.call("DELETE", path, headers=match)).status_code == 200


async def test_pages() -> None:
    async with tenant_house() as house:
        for number in range(5):
            await house.put(f"t{number}")
        seen, after, has_more = [], {}, True
        while has_more:
            page = (await house.call("GET", "tenants", params={"limit": 2, **after})).json()
            seen.append([entry["name"] for entry in page["tenants"]])
            after, has_more = {"after": page["last"]}, page["has_more"]
        assert seen == [["t0", "t1"], ["t2", "t3"], ["t4"]]
        for query in (
            "limit=0",
            "limit=1001",
            "limit=x",
            "limit=%C2%B2",
            "page=1",
            "limit=1&limit=2",
        ):
            assert (await house.call("GET", f"tenants?{query}")).status_code == 400


async def test_redis_away_refuses_changes_and_nothing_else() -> None:
    with redis_server() as server:
        async with tenant_house(server.url) as house:
            await house.put("acme")
            key = (await house.new_key("acme"))["key"]
            server.kill()
            for verb, path in (("PUT", "acme"), ("POST", "acme/keys"), ("DELETE", "acme")):
                body = {"json": {}} if verb != "DELETE" else {}
                answer = await house.call(verb, f"tenants/{path}", **body)
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "store_down"
                assert answer.headers["retry-after"] == "1"
            assert (await house.call("GET", "tenants/acme")).status_code == 200
            assert house.directory.caller(bearer(key)).tenant == "acme"


async def test_usage() -> None:
    async with tenant_house() as house:
        answer = await house.call("GET", "usage?tenant=acme&day=2026-11-21")
        (row,) = answer.json()["rows"]
        assert (row["tenant"], row["day"], row["num_input_tokens"]) == ("acme", "2026-11-21", 20)
        answer = await house.call("GET", "usage?from=2026-11-20&to=2026-11-21")
        assert len(answer.json()["rows"]) == 4
        assert (await house.call("GET", "usage")).status_code == 200
        bad = (
            "day=2026-13-01",
            "day=yesterday",
            "day=2026-11-21&from=2026-11-20",
            "from=2026-11-21&to=2026-11-20",
            "tenant=%2A",
            "tenants=acme",
        )
        for query in bad:
            answer = await house.call("GET", f"usage?{query}")
            assert answer.status_code == 400, query
