"""What goes on from a kept response is read with its conversation, where that can be had."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from branchline.gateway.endpoints import RESPONSES, endpoint_of
from branchline.gateway.fleet.kept_responses import KeptResponse
from branchline.gateway.fleet.redis_errors import RedisDown
from branchline.gateway.kept_history import read_request
from branchline.gateway.prefix_keys import request_text

QUESTION = {"type": "message", "role": "user", "content": "Why is the sky blue?"}
ANSWER = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "It scatters.", "annotations": []}],
}
KEPT = KeptResponse(response={"id": "resp_1", "output": [ANSWER]}, items=[QUESTION])
FOLLOW: dict[str, Any] = {"model": "base", "input": "And red at dusk?", "instructions": "Be brief."}


class Kept:
    """Stands in for what Redis holds; counts how often it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.num_asked = 0
        self._error = error

    async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
        self.num_asked += 1
        if self._error is not None:
            raise self._error
        return KEPT if (tenant, response_id) == ("acme", "resp_1") else None


async def text_of(body: dict[str, Any], tenant: str = "acme", kept: Any = None) -> bytes:
    request = await read_request(RESPONSES, msgspec.json.encode(body), tenant, kept)
    return request_text(request.messages, request.prompt)


def alone(body: dict[str, Any]) -> bytes:
    request = endpoint_of(RESPONSES).parse(msgspec.json.encode(body))
    return request_text(request.messages, request.prompt)


async def test_it_is_the_conversation_that_a_client_could_have_sent_itself() -> None:
    whole = {**FOLLOW, "input": [QUESTION, ANSWER, {"role": "user", "content": FOLLOW["input"]}]}
    given = await text_of({**FOLLOW, "previous_response_id": "resp_1"}, kept=Kept())
    assert given == alone(whole)
    assert given != alone(FOLLOW)


@pytest.mark.parametrize(
    ("tenant", "response_id", "kept"),
    [
        ("other", "resp_1", Kept()),
        ("acme", "resp_2", Kept()),
        ("acme", "resp_1", Kept(RedisDown("gone"))),
        ("acme", "resp_1", None),
    ],
)
async def test_where_it_is_not_to_be_had_it_is_read_alone(
    tenant: str, response_id: str, kept: Kept | None
) -> None:
    body = {**FOLLOW, "previous_response_id": response_id}
    assert await text_of(body, tenant, kept) == alone(FOLLOW)


async def test_nobody_else_waits_for_redis() -> None:
    kept: Any = Kept()
    await text_of(FOLLOW, kept=kept)
    body = msgspec.json.encode({"messages": [], "previous_response_id": "resp_1"})
    await read_request("/v1/chat/completions", body, "acme", kept)
    assert kept.num_asked == 0
