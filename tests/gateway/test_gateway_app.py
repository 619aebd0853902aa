"""The gateway's door: errors, ids, keys, what stays closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_house import LIMITS, SECRET, House, chat, gateway_house
from server_process import metric_of

from branchline.gateway.body import BodyBudget, HeldBody
from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.types import Caller


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


async def refused(house: House, body: bytes, path: str = "/v1/chat/completions") -> dict[str, Any]:
    headers = {"content-type": "application/json"}
    async with house.post(path, data=body, headers=headers) as response:
        answer = await response.json()
        assert 400 <= response.status < 500, answer
        assert not any(replica.bodies for replica in house.replicas)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        return dict(answer["error"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 5),
        ("model", ["base"]),
        ("stream", "yes"),
        ("n", 0),
        ("n", 10**30),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("messages", "hello"),
        ("cache_salt", ""),
        ("priority", "high"),
    ],
)
async def test_a_wrong_field_is_named(house: House, field: str, value: object) -> None:
    error = await refused(house, json.dumps({**chat(), field: value}).encode())
    assert error["param"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"model": "base", "n": NaN}',
        b'{"model": "\xff\xfe"}',
        b'{"model": "\\ud800"}',
        b'{"messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b"\x00" * 100,
        b'{"messages":[' + b"{}," * 9000 + b"{}]}",
        b'{"messages":[' + b"{}," * 500_000 + b"{}]}",
        b'{"prompt":[' + b'"",' * 300 + b'""]}',
    ],
)
async def test_what_is_no_json_object_is_a_400(house: House, body: bytes) -> None:
    await refused(house, body)


async def test_equal_keys_cannot_reach_another_model(house: House) -> None:
    """Whichever of them a replica reads: it is told beside the body what answers."""
    house.tenants.callers = {"k": Caller(tenant="t", models={"base": "base"})}
    headers = {"authorization": "Bearer k", "content-type": "application/json"}
    body = b'{"model":"base","model":"theirs","messages":[]}'
    async with house.post(data=body, headers=headers) as response:
        assert response.status == 404
    body = b'{"model":"theirs","mod\\u0065l":"base","messages":[]}'
    async with house.post(data=body, headers=headers) as response:
        assert response.status == 200
    (head,) = [head for replica in house.replicas for head in replica.headers]
    assert head["x-branchline-model"] == "base"


async def test_the_store_is_asked_before_a_name_is_called_unknown(house: House) -> None:
    """And then who the caller is and what the name stands for is seen anew."""
    tenants = house.tenants
    tenants.callers = {"k": Caller(tenant="t", models={})}
    headers = {"authorization": "Bearer k"}
    body = {"model": "base", "messages": []}
    async with house.post(json=body, headers=headers) as response:
        assert (response.status, tenants.num_looks) == (404, 1)
    tenants.news = {"k": Caller(tenant="t", models={"base": "base"})}
    for _ in range(2):
        async with house.post(json=body, headers=headers) as response:
            assert (response.status, tenants.num_looks) == (200, 2)


async def test_a_large_body_is_a_413(house: House) -> None:
    body = b" " * (LIMITS.max_body_bytes + 1)
    async with house.post(data=body) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/tokenize", 405),
        ("DELETE", "/v1/responses", 405),
        ("PUT", "/v1/responses/resp_1", 405),
        ("GET", "/v1/responses/resp_1/nothing", 404),
        ("GET", "/v1/responses/..%2fmodels", 404),
        ("GET", "/v1/chat/completions%0a", 404),
    ],
)
async def test_other_paths_and_methods(house: House, method: str, path: str, status: int) -> None:
    async with house.session.request(method, f"{house.url}{path}") as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_request_ids(house: House) -> None:
    async with house.post(json=chat(), headers={"x-request-id": "mine-1"}) as response:
        assert response.headers["x-request-id"] == "mine-1"
    (head,) = [head for replica in house.replicas for head in replica.headers]
    assert head["x-request-id"].startswith("mine-1.")
    async with house.get("/health", headers={"x-request-id": "a b"}) as response:
        assert len(response.headers["x-request-id"]) == 32


async def test_keys_are_asked_for_before_the_body_is_read(house: House) -> None:
    house.tenants.callers = {"k": Caller(tenant="t", priority=-2, weight=2.5, cache_group="g")}
    async with house.post(data=b"{") as response:
        assert response.status == 401
    status, _ = await house.answer({}, headers={"authorization": "Bearer k"})
    assert status == 200
    (head,) = [head for replica in house.replicas for head in replica.headers]
    assert head["x-branchline-tenant"] == "t"
    assert head["x-branchline-tenant-weight"] == "2.5"
    assert head["x-branchline-priority"] == "-2"
    assert head["x-branchline-cache-group"] == "g"


async def test_two_keys_are_none(house: House) -> None:
    headers = [("authorization", "Bearer a"), ("authorization", "Bearer b")]
    async with house.post(json=chat(), headers=headers) as response:
        assert response.status == 400


async def test_a_tenant_sees_its_own_models(house: House) -> None:
    house.adapters.adapters = {"theirs": "d" * 32}
    house.tenants.callers = {"k": Caller(tenant="t", models={"base": "base"})}
    headers = {"authorization": "Bearer k"}
    async with house.get("/v1/models", headers=headers) as response:
        assert [card["id"] for card in (await response.json())["data"]] == ["base"]
    async with house.get("/v1/models/theirs", headers=headers) as response:
        assert response.status == 404
    async with house.get("/v1/models/base", headers=headers) as response:
        assert (await response.json())["object"] == "model"
    async with house.get("/v1/models") as response:
        assert response.status == 401


async def test_a_limit_is_a_429_with_its_headers(house: House) -> None:
    house.limiter.refuses = True
    async with house.post(json=chat()) as response:
        assert response.status == 429
        assert response.headers["retry-after"] == "7"
        assert response.headers["x-ratelimit-remaining-requests"] == "0"
    house.limiter.refuses = False
    async with house.post(json=chat()) as response:
        assert response.headers["x-ratelimit-limit-requests"] == "60"


async def test_the_fleets_secret_is_a_probe_without_limits(house: House) -> None:
    house.tenants.callers = {"k": Caller(tenant="t")}
    house.limiter.refuses = True
    secret = {"x-branchline-fleet-secret": SECRET}
    assert (await house.answer({}, headers=secret))[0] == 200
    house.adapters.adapters = {"legal": "d" * 32}
    assert (await house.answer({"model": "legal"}, headers=secret))[0] == 404
    wrong = {"x-branchline-fleet-secret": SECRET[:-1]}
    assert (await house.answer({}, headers=wrong))[0] == 401


async def test_why_a_request_went_where(house: House) -> None:
    async with house.post(json=chat(), headers={"x-branchline-route": "1"}) as response:
        route = response.headers["x-branchline-route"]
    assert route.startswith("replica=r")
    assert "reason=turn" in route
    async with house.post(json=chat()) as response:
        assert "x-branchline-route" not in response.headers
    async with house.post("/debug/route", json=chat()) as response:
        answer = await response.json()
    assert answer["decision"]["replica_id"] in ("r0", "r1")
    assert answer["target"]["wire_name"] == "base"


async def test_why_a_body_of_any_endpoint_would_go_where(house: House) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": "hello"},
        "/v1/messages": {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1},
        "/v1/embeddings": {"input": "hello"},
    }
    for path, body in bodies.items():
        asked = {"model": "base", **body}
        async with house.post("/debug/route", params={"endpoint": path}, json=asked) as response:
            assert response.status == 200
            assert (await response.json())["num_prompt_tokens"] >= 1
    async with house.post("/debug/route", params={"endpoint": "/x"}, json=chat()) as response:
        assert response.status == 400
    assert not any(replica.bodies for replica in house.replicas)


async def test_readiness(house: House) -> None:
    async def ready() -> tuple[int, str]:
        async with house.get("/ready") as response:
            return response.status, (await response.json())["status"]

    assert await ready() == (200, "ok")
    house.view.redis_state = "away"
    assert await ready() == (200, "degraded")
    house.view.out = {"r0": "x", "r1": "x"}
    assert await ready() == (503, "no_replicas")
    house.services.gate.close()
    assert await ready() == (503, "draining")
    assert (await house.answer({}))[1]["error"]["code"] == "draining"


async def test_metrics_and_log_show_requests_but_no_text(house: House) -> None:
    await house.answer({"messages": [{"role": "user", "content": "a secret thing"}]})
    async with house.get("/metrics") as response:
        text = await response.text()
    assert metric_of(text, "branchline_gateway_requests_total", status="200") == 1
    assert metric_of(text, "branchline_gateway_replicas_up") == 2
    assert metric_of(text, "branchline_gateway_redis_up") == 1
    assert metric_of(text, "branchline_gateway_tokens_total", kind="output") == 5
    assert metric_of(text, "branchline_gateway_added_seconds_count") == 1
    log = house.last_log()
    assert (log["status"], log["model"], log["output_tokens"]) == (200, "base", 5)
    assert "secret" not in house.log[-1] + text


async def test_admins_need_the_key() -> None:
    async with gateway_house(admin_keys=(digest_key("admin"),)) as house:
        async with house.get("/admin/fleet") as response:
            assert response.status == 401
        async with house.get("/admin/nothing") as response:
            assert response.status == 401
        headers = {"authorization": "Bearer admin"}
        await house.answer({})
        async with house.get("/metrics") as response:
            text = await response.text()
            assert "branchline_gateway_replicas_up 2.0" in text
            assert 'tenant="' not in text
        async with house.get("/metrics", headers=headers) as response:
            assert 'tenant="default"' in await response.text()
        async with house.get("/admin/fleet", headers=headers) as response:
            assert [r["id"] for r in (await response.json())["replicas"]] == ["r0", "r1"]


async def test_without_a_key_only_this_machine_is_an_admin(house: House) -> None:
    async with house.get("/admin/fleet") as response:
        assert response.status == 200
    for headers in ({"origin": "http://evil"}, {"x-forwarded-for": "1.1.1.1"}, {"host": "evil"}):
        async with house.get("/admin/fleet", headers=headers) as response:
            assert response.status == 403
    async with gateway_house(allow_anonymous=False) as closed, closed.get("/admin/fleet") as no:
        assert no.status == 403


async def test_the_lowest_priority_is_shed_first(house: House) -> None:
    house.tenants.callers = {
        "high": Caller(tenant="high", priority=-1),
        "low": Caller(tenant="low", priority=5),
    }
    for replica in house.replicas:
        replica.num_waiting = 6
    status, answer = await house.answer({}, headers={"authorization": "Bearer low"})
    assert (status, answer["error"]["code"]) == (429, "overloaded")
    assert (await house.answer({}, headers={"authorization": "Bearer high"}))[0] == 200
    house.replicas[0].num_waiting = 2
    assert (await house.answer({}, headers={"authorization": "Bearer low"}))[0] == 200


async def test_more_requests_than_allowed_are_turned_away() -> None:
    from dataclasses import replace

    async with gateway_house(limits=replace(LIMITS, max_streams=1)) as house:
        for replica in house.replicas:
            replica.token_seconds = 0.05
        async with house.post(json=chat(stream=True, max_tokens=100)) as response:
            await response.content.readany()
            status, answer = await house.answer({})
            assert (status, answer["error"]["code"]) == (503, "too_many_requests_here")


async def test_a_head_without_end_is_cut(house: House) -> None:
    address = house.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address[0], int(address[1]))
    writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n")
    with contextlib.suppress(ConnectionError):
        for number in range(200):
            writer.write(f"x-{number}: {'y' * 1000}\r\n".encode())
            await writer.drain()
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    async with house.get("/health") as response:
        assert response.status == 200


async def test_bodies_are_held_within_a_budget() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(60), "more_body": False}

    budget = BodyBudget(400)
    first, second, other = HeldBody(budget, "a"), HeldBody(budget, "a"), HeldBody(budget, "b")
    await first.read(receive, "60", LIMITS)
    with pytest.raises(GatewayError) as full:
        await second.read(receive, "60", LIMITS)
    assert full.value.status == 503
    assert await other.read(receive, "60", LIMITS), "nobody takes the room of all"
    second.release()
    first.release()
    first.release()
    assert len(await second.read(receive, "60", LIMITS)) == 60
