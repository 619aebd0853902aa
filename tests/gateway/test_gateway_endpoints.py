"""Each endpoint at the gateway: what it reads, reserves and charges, and how its errors look."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_house import SECRET, House, gateway_house
from mock_replica import Fault, word
from mock_shapes import NUM_CACHED_TOKENS, NUM_PROMPT_TOKENS

from branchline.gateway.body import MAX_PROMPTS
from branchline.gateway.endpoints import ENDPOINTS, MAX_INPUTS
from branchline.gateway.fleet import headers as fleet
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


@pytest.mark.parametrize("path", BODIES)
async def test_without_a_model_the_base_counts_tokens_and_nothing_else(
    house: House, path: str
) -> None:
    async with house.post(path, json=BODIES[path]) as got:
        assert got.status == (200 if path in ("/tokenize", "/detokenize") else 404)
    if got.status == 200:
        [replica] = [one for one in house.replicas if one.bodies]
        assert json.loads(replica.bodies[0]) == BODIES[path]
        assert replica.headers[0][fleet.MODEL] == "base"


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
        if ENDPOINTS[path].has_default_model and body == b"{}":
            assert response.status == 200
        else:
            assert response.status in (400, 404)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"model": "\\ud800"}', "half of a surrogate pair"),
        (b'{"model": "ba', "it ends too early"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}]', "it ends too early"),
        (b'{"model": "\\ud83d\\ude00", "messages": ', "it ends too early"),
        (b'{"model": x}', "JSON is malformed"),
    ],
)
async def test_what_is_wrong_with_the_json_is_said(house: House, body: bytes, words: str) -> None:
    async with house.post("/v1/chat/completions", data=body) as response:
        assert response.status == 400
        assert words in (await response.json())["error"]["message"]


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


async def test_the_fleets_secret_opens_them_too(house: House) -> None:
    headers = {fleet.FLEET_SECRET: SECRET}
    status, _ = await ask(house, "/v1/responses", headers=headers)
    assert status == 200
    assert not house.limiter.reserved
