"""Each endpoint at the gateway: what it reads, reserves and charges, and how its errors look."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from gateway_house import LIMITS, SECRET, House, gateway_house
from mock_replica import Fault, word
from mock_shapes import NUM_CACHED_TOKENS, NUM_PROMPT_TOKENS

from branchline.gateway.body import MAX_PROMPTS
from branchline.gateway.endpoints import ENDPOINTS, MAX_INPUTS
from branchline.gateway.fleet import headers as fleet
from branchline.gateway.kept_api import MAX_BUFFERED_BYTES
from branchline.gateway.types import Caller, Estimate, Usage

USER = {"role": "user", "content": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 7},
    "/v1/completions": {"prompt": "hello", "max_tokens": 7},
    "/v1/responses": {"input": "hello", "max_output_tokens": 7},
    "/v1/messages": {"messages": [USER], "max_tokens": 7},
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/embeddings": {"input": ["hello", "you"]},
    "/tokenize": {"prompt": "hello"},
    "/detokenize": {"tokens": [1, 2]},
}
ANSWERING = [path for path in BODIES if "max" in "".join(BODIES[path])]
NAMED = ["/v1/responses", "/v1/messages"]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


async def ask(house: House, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    headers = fields.pop("headers", {})
    body = {"model": "base", **BODIES[path], **fields}
    async with house.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


def test_there_is_a_body_for_each() -> None:
    assert BODIES.keys() == ENDPOINTS.keys()


@pytest.mark.parametrize("path", BODIES)
async def test_what_comes_goes_on_as_it_is_and_is_charged(house: House, path: str) -> None:
    status, _ = await ask(house, path)
    assert status == 200
    [replica] = [one for one in house.replicas if one.bodies]
    assert json.loads(replica.bodies[0]) == {"model": "base", **BODIES[path]}
    assert replica.headers[0][fleet.MODEL] == "base"
    assert replica.headers[0][fleet.TENANT] == "default"
    [reserved], [settled] = house.limiter.reserved, house.limiter.settled
    assert settled is not None
    if path in ANSWERING:
        assert reserved.num_output_tokens == 7
        assert reserved.num_input_tokens > 0
        assert settled == Usage(
            num_input_tokens=NUM_PROMPT_TOKENS,
            num_output_tokens=7,
            num_cached_tokens=NUM_CACHED_TOKENS,
        )
    elif path == "/v1/embeddings":
        assert reserved.num_output_tokens == 0
        assert reserved.num_input_tokens > 0
        assert settled == Usage(num_input_tokens=NUM_PROMPT_TOKENS, num_output_tokens=0)
    else:
        assert reserved == Estimate(num_input_tokens=0, num_output_tokens=0)
        assert settled == Usage(num_input_tokens=0, num_output_tokens=0)


@pytest.mark.parametrize("path", BODIES)
async def test_models_are_a_tenants_own(house: House, path: str) -> None:
    house.tenants.callers["k"] = Caller(tenant="acme", models={"mine": "base"})
    key = {"authorization": "Bearer k"}
    status, answer = await ask(house, path, headers=key)
    assert status == 404
    message = answer["error"]["message"]
    assert "base" in message
    status, _ = await ask(house, path, model="mine", headers=key)
    assert status == 200
    status, answer = await ask(house, path)
    assert status == 401
    is_anthropic = path.startswith("/v1/messages")
    assert answer["error"]["type"] == "authentication_error"
    assert (answer.get("type") == "error") == is_anthropic
    assert set(answer["error"]) == (
        {"type", "message"} if is_anthropic else {"type", "message", "param", "code"}
    )


async def test_anthropics_errors(house: House) -> None:
    house.limiter.refuses = True
    async with house.post("/v1/messages", json={"model": "base", **BODIES["/v1/messages"]}) as got:
        assert got.status == 429
        assert got.headers["retry-after"] == "7"
        assert got.headers["request-id"] == got.headers["x-request-id"]
        answer = await got.json()
    assert answer == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "too many"},
        "request_id": got.headers["request-id"],
    }
    house.limiter.refuses = False
    for replica in house.replicas:
        house.view.out[replica.replica_id] = "gone"
    status, answer = await ask(house, "/v1/messages")
    assert (status, answer["error"]["type"]) == (503, "overloaded_error")
    async with house.get("/v1/messages") as got:
        assert got.status == 405
        assert (await got.json())["type"] == "error"
        assert got.headers["request-id"] == (await got.json())["request_id"]
    async with house.post("/v1/messages", data=b"[") as got:
        assert (await got.json())["error"]["type"] == "invalid_request_error"
    house.services.gate.close()
    async with house.post("/v1/messages", data=b"[", headers={"x-request-id": "mine"}) as got:
        assert (got.status, got.headers["request-id"]) == (503, "mine")
        assert (await got.json())["request_id"] == "mine"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/v1/responses", "max_output_tokens", "7"),
        ("/v1/responses", "previous_response_id", 5),
        ("/v1/responses", "model", ["base"]),
        ("/v1/messages", "max_tokens", 1.5),
        ("/v1/embeddings", "input", 5),
        ("/v1/embeddings", "input", ["a"] * (MAX_INPUTS + 1)),
        ("/v1/completions", "prompt", ["a"] * (MAX_PROMPTS + 1)),
        ("/v1/completions", "best_of", 129),
    ],
)
async def test_a_wrong_field_is_named(house: House, path: str, field: str, value: object) -> None:
    status, answer = await ask(house, path, **{field: value})
    assert status == 400
    if path == "/v1/messages":
        assert field in answer["error"]["message"]
    else:
        assert answer["error"]["param"] == field


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "body", [b"[]", b'"x"', b"{", b"5", b'{"messages": 5, "input": {}}', b"{}"]
)
async def test_no_body_fails_here(house: House, path: str, body: bytes) -> None:
    """It is a 400, or a replica's business."""
    async with house.post(path, data=body) as response:
        assert response.status in (400, 404)


async def test_best_of_and_beams_are_reserved(house: House) -> None:
    for fields in ({"best_of": 4}, {"n": 3}, {"best_of": 4, "n": 3, "prompt": ["a", "b"]}):
        await ask(house, "/v1/completions", **fields)
    assert [one.num_output_tokens for one in house.limiter.reserved] == [28, 21, 56]


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("kind", ["cut", "cut_whole", "silence", "end"])
async def test_streams_with_named_events_are_resumed_and_have_no_done(
    house: House, path: str, kind: Any
) -> None:
    body = {"model": "base", **BODIES[path], "stream": True}
    async with house.post(path, json=body) as response:
        whole = await response.text()
    assert "[DONE]" not in whole
    assert ": branchline" not in whole
    assert whole.count("event: mock.event\ndata: {") == 8
    for after in (0, 3, 7):
        shared = house.replicas[0].faults
        shared.append(Fault(kind, after))
        house.replicas[1].faults = shared
        async with house.post(path, json=body) as response:
            assert await response.text() == whole
    assert [one and one.num_output_tokens for one in house.limiter.settled] == [7] * 4
    assert [one and one.num_input_tokens for one in house.limiter.settled] == [11] * 4


@pytest.mark.parametrize("path", NAMED)
async def test_an_interruption_is_told_in_the_endpoints_words(house: House, path: str) -> None:
    for replica in house.replicas:
        replica.always = Fault("cut", 3)
    body = {"model": "base", **BODIES[path], "stream": True}
    async with house.post(path, json=body) as response:
        *events, last, rest = (await response.text()).split("\n\n")
    assert rest == ""
    assert len(events) == 3
    assert word(1) in events[-1]
    name, data = last.split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert error["type"] == "error"
    if path == "/v1/messages":
        assert error["error"]["type"] == "api_error"
    else:
        assert error["code"] == "stream_interrupted"
        assert error["sequence_number"] == 3
        assert error["param"] is None
    assert house.last_log()["outcome"] == "interrupted"


async def test_kept_responses_are_a_tenants_own(house: House) -> None:
    house.tenants.callers = {name: Caller(tenant=name) for name in ("acme", "other")}
    house.replicas[1].kept["resp_1"] = "acme"
    path = "/v1/responses/resp_1"
    key = {"authorization": "Bearer acme"}
    for _ in range(4):
        async with house.get(f"{path}?include=a%5B%5D&x=1", headers=key) as response:
            told = await response.json()
            assert response.headers["x-request-id"]
        assert told == {"id": "resp_1", "method": "GET", "path": f"{path}?include=a%5B%5D&x=1"}
    async with house.session.delete(f"{house.url}{path}", headers=key) as response:
        assert (await response.json())["method"] == "DELETE"
    async with house.get(f"{path}/input_items", headers=key) as response:
        assert (await response.json())["path"] == f"{path}/input_items"
    async with house.post(f"{path}/cancel", headers=key) as response:
        assert response.status == 200
    async with house.get(path, headers={"authorization": "Bearer other"}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "response_not_found"
    async with house.get(path) as response:
        assert response.status == 401
    stolen = {**key, fleet.TENANT: "other", fleet.FLEET_SECRET: "guess"}
    async with house.get(path, headers=stolen) as response:
        assert response.status == 200
    await house.replicas[1].stop()
    async with house.get(path, headers=key) as response:
        assert response.status == 404  # the one that is left does not know it
    await house.replicas[0].stop()
    async with house.get(path, headers=key) as response:
        assert response.status == 503


async def test_kept_responses_are_limited_and_logged(house: House) -> None:
    house.replicas[0].kept["resp_1"] = "default"
    path = "/v1/responses/resp_1"
    async with house.get(path) as got:
        assert got.status == 200
        assert got.headers["x-ratelimit-limit-requests"] == "60"
        request_id = got.headers["x-request-id"]
    nothing = Usage(num_input_tokens=0, num_output_tokens=0)
    assert house.limiter.reserved == [Estimate(num_input_tokens=0, num_output_tokens=0)]
    assert house.limiter.settled == [nothing]
    await house.until(lambda: house.log)
    line = house.last_log()
    assert (line["request_id"], line["tenant"], line["status"]) == (request_id, "default", 200)
    assert (line["endpoint"], line["outcome"]) == ("/v1/responses/ID", "ok")
    house.limiter.refuses = True
    async with house.session.delete(f"{house.url}{path}") as got:
        assert got.status == 429
        assert got.headers["retry-after"] == "7"
        assert (await got.json())["error"]["code"] == "rate_limit_exceeded"
    await house.until(lambda: len(house.log) == 2)
    assert len(house.replicas[0].kept_peers) == 1
    metrics = house.services.metrics.render().decode()
    assert 'limits_hit_total{code="rate_limit_exceeded"} 1.0' in metrics
    named = 'endpoint="/v1/responses/ID",status="200",tenant="default"'
    assert f"requests_total{{{named}}} 1.0" in metrics
    house.limiter.refuses = False
    for replica in house.replicas:
        house.view.out[replica.replica_id] = "gone"
    async with house.get(path) as got:
        assert got.status == 503
    await house.until(lambda: len(house.log) == 3)
    assert house.limiter.settled == [nothing, None]


async def test_kept_responses_of_any_size_come_over_connections_that_last() -> None:
    async with gateway_house(1, limits=replace(LIMITS, max_body_bytes=1000)) as house:
        [replica] = house.replicas
        replica.kept["resp_1"] = "default"
        for num_bytes in (10, MAX_BUFFERED_BYTES, 3 << 20):
            replica.kept_text = "x" * num_bytes
            async with house.get("/v1/responses/resp_1") as got:
                assert got.status == 200
                assert (await got.json())["text"] == replica.kept_text
        assert len(set(replica.kept_peers)) == 1


async def test_a_kept_response_that_is_cut_is_asked_for_elsewhere_or_cut(house: House) -> None:
    cut, other = house.replicas
    cut.kept["resp_1"] = other.kept["resp_1"] = "default"
    cut.cuts_kept_after = 1000
    for _ in range(8):
        async with house.get("/v1/responses/resp_1") as got:
            assert (await got.json())["id"] == "resp_1"
    assert cut.kept_peers
    cut.cuts_kept_after = 1 << 20
    house.view.out[other.replica_id] = "gone"
    with pytest.raises(aiohttp.ClientError):
        async with house.get("/v1/responses/resp_1") as got:
            await got.read()
    await house.until(lambda: len(house.log) == 9)
    assert house.last_log()["outcome"] == "interrupted"


async def test_who_takes_no_kept_response_is_given_up() -> None:
    async with gateway_house(1, limits=replace(LIMITS, client_timeout=0.2)) as house:
        [replica] = house.replicas
        replica.kept["resp_1"], replica.kept_text = "default", "x" * (30 << 20)
        async with house.get("/v1/responses/resp_1") as got:
            assert got.status == 200
            await house.until(lambda: house.log)
            assert house.last_log()["outcome"] == "client_left"
        assert house.services.gate.num_inside == 0


async def test_without_redis_the_replica_that_keeps_it_goes_on(house: House) -> None:
    house.replicas[1].kept["resp_1"] = "default"
    for _ in range(4):
        status, _ = await ask(house, "/v1/responses", previous_response_id="resp_1")
        assert status == 200
    assert len(house.replicas[1].bodies) >= 4
    status, answer = await ask(house, "/v1/responses", previous_response_id="resp_2")
    assert (status, answer["error"]["code"]) == (400, "previous_response_not_found")


async def test_the_fleets_secret_opens_them_too(house: House) -> None:
    headers = {fleet.FLEET_SECRET: SECRET}
    status, _ = await ask(house, "/v1/responses", headers=headers)
    assert status == 200
    assert not house.limiter.reserved
