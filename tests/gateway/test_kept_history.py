"""What goes on from a kept response is read with its conversation, where that can be had."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from redis_server import redis_server

from branchline.gateway import kept_history
from branchline.gateway.config import GatewayConfig
from branchline.gateway.endpoints import RESPONSES, endpoint_of
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.fleet.kept_items import item_id
from branchline.gateway.fleet.kept_limits import KeptLimits
from branchline.gateway.fleet.kept_picking import FoundItems, pick
from branchline.gateway.fleet.kept_redis import RedisResponses
from branchline.gateway.fleet.kept_responses import KeptResponse, Sealer
from branchline.gateway.fleet.redis_errors import RedisDown
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.fleet_parts import open_fleet_parts
from branchline.gateway.kept_history import KeptHistory, read_request
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

    async def find_items(
        self, tenant: str, response_id: str, names: Collection[str]
    ) -> FoundItems | None:
        kept = await self.find(tenant, response_id)
        return None if kept is None else pick(msgspec.json.encode(kept), names)


async def text_of(body: dict[str, Any], tenant: str = "acme", kept: Any = None) -> bytes:
    request = (await read_request(RESPONSES, msgspec.json.encode(body), tenant, kept)).request
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
        ("acme", "resp_1", Kept(TimeoutError())),
        ("acme", "resp_1", None),
    ],
)
async def test_where_it_is_not_to_be_had_it_is_read_alone(
    tenant: str, response_id: str, kept: Kept | None
) -> None:
    body = {**FOLLOW, "previous_response_id": response_id}
    assert await text_of(body, tenant, kept) == alone(FOLLOW)


async def test_references_are_read_as_what_they_stand_for() -> None:
    name = item_id("msg", f"resp_{1:032x}", "output", 0)
    answer = {**ANSWER, "id": name}
    kept = KeptResponse(response={"id": f"resp_{1:032x}", "output": [answer]}, items=[QUESTION])

    class Holding(Kept):
        async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
            return kept if (tenant, response_id) == ("acme", kept.id) else None

    last = {"role": "user", "content": FOLLOW["input"]}
    referring = [QUESTION, {"type": "item_reference", "id": name}, last]
    whole = alone({**FOLLOW, "input": [QUESTION, answer, last]})
    assert await text_of({**FOLLOW, "input": referring}, kept=Holding()) == whole
    assert whole != alone({**FOLLOW, "input": referring})
    twice = {**FOLLOW, "previous_response_id": kept.id, "input": referring[1:]}
    assert await text_of(twice, kept=Holding()) == whole
    for tenant, held in (("other", Holding()), ("acme", Kept(RedisDown("gone"))), ("acme", Kept())):
        given = await text_of({**FOLLOW, "input": referring}, tenant, held)
        assert given == alone({**FOLLOW, "input": referring}), "a replica says what is wrong"


@pytest.mark.parametrize(
    "item",
    [
        '{"id": "%s"}',
        '{"type": null, "id": "%s"}',
        '{"type": "item\\u005freference", "id": "%s"}',
        '{"\\u0074ype": "item_reference", "\\u0069d": "%s"}',
    ],
)
async def test_a_reference_is_one_however_it_is_written(item: str) -> None:
    name = item_id("msg", f"resp_{1:032x}", "output", 0)
    answer = {**ANSWER, "id": name}
    held = KeptResponse(response={"id": f"resp_{1:032x}", "output": [answer]}, items=[QUESTION])

    class Holding(Kept):
        async def find(self, tenant: str, response_id: str) -> KeptResponse | None:
            return held if response_id == held.id else None

    holding: Any = Holding()
    body = b'{"model": "base", "input": [%s]}' % (item % name).encode()
    reading = await read_request(RESPONSES, body, "acme", holding)
    whole = alone({"model": "base", "input": [answer]})
    assert request_text(reading.request.messages, None) == whole
    assert reading.is_whole
    for kept in (Kept(), Kept(RedisDown("gone")), Kept(TimeoutError()), None):
        other: Any = kept
        reading = await read_request(RESPONSES, body, "acme", other)
        assert not reading.is_whole


async def test_nobody_else_waits_for_redis() -> None:
    kept: Any = Kept()
    await text_of(FOLLOW, kept=kept)
    body = msgspec.json.encode({"messages": [], "previous_response_id": "resp_1"})
    assert (await read_request("/v1/chat/completions", body, "acme", kept)).is_whole
    assert kept.num_asked == 0


class Stuck:
    """Stands in for a Redis that is slow; counts the most that wait for it at a time."""

    is_up = True

    def __init__(self) -> None:
        self.num_waiting = self.most_waiting = 0

    async def run(self, call: Any) -> None:
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        try:
            await asyncio.Event().wait()
        finally:
            self.num_waiting -= 1


async def test_few_are_fetched_at_once_and_none_is_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_history, "WAIT_SECONDS", 0.05)
    link: Any = Stuck()
    kept = KeptHistory(link, RedisNames("test"), "secret")
    body = {**FOLLOW, "previous_response_id": "resp_1"}
    texts = await asyncio.gather(*(text_of(body, kept=kept) for _ in range(10)))
    assert texts == [alone(FOLLOW)] * 10
    assert link.most_waiting == kept_history.MAX_FINDS_OF_TENANT


async def test_a_slow_redis_for_one_tenant_leaves_turns_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_history, "WAIT_SECONDS", 0.05)
    link: Any = Stuck()
    kept = KeptHistory(link, RedisNames("test"), "secret")
    body = {**FOLLOW, "previous_response_id": "resp_1"}
    tenants = ["acme"] * 8 + ["other"] * 2
    await asyncio.gather(*(text_of(body, tenant, kept) for tenant in tenants))
    assert link.most_waiting == kept_history.MAX_FINDS


async def test_large_ones_leave_the_gateways_own_link_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    links: list[RedisLink] = []
    open_link = RedisLink.open

    def opened(url: str, *, timeout: float) -> RedisLink:
        links.append(open_link(url, timeout=timeout))
        return links[-1]

    monkeypatch.setattr(RedisLink, "open", opened)
    large = KeptResponse({"id": "resp_1", "output": [{"text": os.urandom(2_000_000).hex()}]}, [])
    with redis_server() as server:
        async with AsyncExitStack() as stack:
            config = GatewayConfig(redis=server.url, replicas=(), fleet_secret="s")
            parts = await open_fleet_parts(config, "gateway-1", "http://127.0.0.1:1", stack)
            for work in parts.works.values():
                work.close()
            patient = opened(server.url, timeout=10.0)
            names, sealer = RedisNames(config.fleet_name), Sealer(digest_key("s"))
            writer = RedisResponses(patient, names, sealer, KeptLimits())
            assert await writer.keep("acme", large)
            assert parts.kept is not None
            with monkeypatch.context() as patch:
                patch.setattr(links[0], "run", None)
                found = await asyncio.gather(*(parts.kept.find("acme", "resp_1") for _ in range(4)))
            assert found == [large] * 4
            await patient.close()
        assert [link.is_up for link in links] == [False] * 3
