"""Errors of ``/v1/messages`` and below at the gateway: Anthropic's shape, whoever they are of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_house import House, gateway_house
from mock_replica import Fault

BODY: dict[str, Any] = {
    "model": "base",
    "max_tokens": 7,
    "messages": [{"role": "user", "content": "hello"}],
}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with gateway_house() as house:
        yield house


NOT_OURS = [
    ("POST", "/v1/messages/nothing", 404),
    ("GET", "/v1/messages/batches", 404),
    ("POST", "/v1/messages/", 404),
    ("DELETE", "/v1/messages/batches/b_1", 404),
    ("GET", "/v1/messages", 405),
    ("PUT", "/v1/messages/count_tokens", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), NOT_OURS)
async def test_paths_below_messages_have_anthropics_errors(
    house: House, method: str, path: str, status: int
) -> None:
    async with house.session.request(method, f"{house.url}{path}") as got:
        answer = await got.json()
        assert got.status == status
        assert got.headers["request-id"] == answer["request_id"]
        assert ("allow" in got.headers) == (status == 405)
    assert set(answer) == {"type", "error", "request_id"}
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    assert (answer["type"], answer["error"]["type"]) == ("error", kind)
    assert path in answer["error"]["message"]


@pytest.mark.parametrize("status", [400, 404, 409, 413, 429, 500, 503])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_replicas_error_has_the_clients_id(house: House, path: str, status: int) -> None:
    for replica in house.replicas:
        replica.always = Fault("status", status=status)
    async with house.post(path, json=BODY, headers={"x-request-id": "mine"}) as got:
        answer = await got.json()
    assert got.status == status
    assert answer["request_id"] == got.headers["request-id"] == "mine"
    assert answer["type"] == "error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_an_adapter_that_a_replica_has_lost_is_brought_again(house: House, path: str) -> None:
    """Also where the body of an error has no place for the code that says so."""
    house.adapters.adapters["voice"] = "d" * 8
    for replica in house.replicas:
        replica.faults.append(Fault("status", status=404, code="adapter_not_here"))
    async with house.post(path, json={**BODY, "model": "voice"}) as got:
        assert got.status == 200
    assert [anew for _, _, anew in house.adapters.ensured].count(True) == 1
