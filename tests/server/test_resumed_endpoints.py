"""Streams of /v1/responses and /v1/messages, and of chats with parts, cut anywhere and resumed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import tool_templates
from cut_streams import STATE_HEADERS, Group, split_groups
from surface_streams import said

from branchline.engine.types import GenerationRequest
from branchline.gateway.fleet.headers import RESUME
from branchline.gateway.proxy.record import StreamRecord
from branchline.gateway.proxy.sse import BlockReader
from branchline.server.catalog import ServedModel
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE
from .fleet_replica import END, Replica, ReplicaEngine

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "response": (RESPONSES, {"input": "hello", "store": False}),
    "response by an adapter": (RESPONSES, {"input": "hello", "max_output_tokens": 9, "seed": 3}),
    "message": (MESSAGES, {"max_tokens": 100}),
    "message with a stop": (MESSAGES, {"max_tokens": 100, "stop_sequences": ["the end"]}),
    "message cut short": (MESSAGES, {"max_tokens": 9, "system": "Be brief."}),
}


def body_of(path: str, fields: dict[str, Any]) -> bytes:
    given: dict[str, Any] = {"model": "m" if "tools" in fields else BASE, "stream": True, **fields}
    if path == MESSAGES:
        given.setdefault("messages", [{"role": "user", "content": "hello"}])
    return json.dumps(given).encode()


def events_of(groups: list[Group]) -> bytes:
    """But for when it was over, which may be in another second."""
    events = b"".join(event for group in groups for event in group.events)
    return re.sub(rb'("completed_at"):\d+', rb"\1:0", events)


@pytest.mark.parametrize("case", CASES)
async def test_any_cut_leaves_the_same_bytes(tokenizer: Tokenizer, case: str) -> None:
    path, fields = CASES[case]
    body = body_of(path, fields)
    whole = await Replica(tokenizer).stream(path, body)
    there = Replica(tokenizer, ReplicaEngine())
    assert len(whole) > 5
    for cut in range(1, len(whole) + 1):
        rest = await there.resume(path, body, whole[:cut])
        assert events_of([*whole[:cut], *rest]) == events_of(whole)


CHAT = "/v1/chat/completions"
THOUGHT = "I may look it up. <b>"
SAID = "<think>" + THOUGHT + "</think>\n\nLet me see 😀.\n"
CALLS = (
    '<tool_call>\n{"name": "get", "arguments": {"city": "Århus", "n": [1, 2]}}\n</tool_call>\n'
    '<tool_call>{"name": "get", "arguments": {"city": "x"}}</tool_call>'
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "get", "description": "d", "parameters": PARAMETERS}
TURN = {"messages": [{"role": "user", "content": "hello"}]}
WITH_TOOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {**TURN, "tools": [{"type": "function", "function": FUNCTION}]}),
    "three": (CHAT, {**TURN, "tools": [{"type": "function", "function": FUNCTION}], "n": 3}),
    "usage": (
        CHAT,
        {
            **TURN,
            "tools": [{"type": "function", "function": FUNCTION}],
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "logprobs": True,
        },
    ),
    "response": (RESPONSES, {"input": "hello", "tools": [{"type": "function", **FUNCTION}]}),
    "message": (
        MESSAGES,
        {"max_tokens": 400, "tools": [{"name": "get", "input_schema": PARAMETERS}]},
    ),
}


class CallingEngine(ReplicaEngine):
    """Thinks, speaks and calls two tools."""

    def _say(self, request: GenerationRequest) -> list[int]:
        return [*SAID.encode(), *(b"%d" % request.choice_index), *CALLS.encode(), END]


def calling(tokenizer: Tokenizer, num_joined: int = 1) -> Replica:
    replica = Replica(tokenizer, CallingEngine(num_joined))
    model = ServedModel("m", "/adapters/m", "digest-m", tool_templates.QWEN3, version=1)
    replica.services.catalog.put("m", {1: model}, 1)
    return replica


@pytest.mark.parametrize("case", ["chat", "response", "message"])
async def test_any_cut_of_thoughts_and_calls_leaves_the_same_bytes(
    tokenizer: Tokenizer, case: str
) -> None:
    path, fields = WITH_TOOLS[case]
    body = body_of(path, fields)
    whole = await calling(tokenizer).stream(path, body)
    told = events_of(whole).decode()
    assert told.count('"name":"get"') >= 2
    there = calling(tokenizer)
    for cut in range(1, len(whole) + 1):
        rest = await there.resume(path, body, whole[:cut])
        assert events_of([*whole[:cut], *rest]) == events_of(whole), cut


@pytest.mark.parametrize("case", WITH_TOOLS)
async def test_pieces_of_any_size_say_the_same(tokenizer: Tokenizer, case: str) -> None:
    """Where the first replica sent several tokens an event, and the next one single ones."""
    path, fields = WITH_TOOLS[case]
    body = body_of(path, fields)
    whole = await calling(tokenizer, num_joined=5).stream(path, body)
    done = "" if path in (RESPONSES, MESSAGES) else "data: [DONE]\n\n"
    expected = said(path, events_of(whole).decode() + done)
    for cut in range(1, len(whole) + 1, 3):
        rest = await calling(tokenizer).resume(path, body, whole[:cut])
        events = events_of([*whole[:cut], *rest]).decode()
        assert said(path, events + done) == expected, cut


@pytest.mark.parametrize("case", ["response", "message"])
async def test_a_gateway_takes_account_wherever_the_connection_breaks(
    tokenizer: Tokenizer, case: str
) -> None:
    path, fields = WITH_TOOLS[case]
    body = body_of(path, fields)
    here, there = calling(tokenizer), calling(tokenizer)
    sent = (await here.post(path, body, STATE_HEADERS)).content
    whole = said(path, events_of(split_groups(sent)).decode())
    for num_bytes in range(2500, len(sent), 997):
        account = StreamRecord(keeps_done=False)
        got = account.take(BlockReader().feed(sent[:num_bytes]))
        account.restart()
        record = account.resume_bytes()
        headers = {**STATE_HEADERS, RESUME: str(len(record))}
        rest = (await there.post(path, record + body, headers)).content
        got += account.take(BlockReader().feed(rest))
        assert account.is_done
        assert account.fault is None
        assert said(path, got.decode()) == whole
        assert account.num_output_tokens == len(SAID.encode()) + 1 + len(CALLS.encode()) + 1


async def test_log_probabilities_of_a_cut_response_are_in_its_deltas(tokenizer: Tokenizer) -> None:
    """What repeats those of the whole text has none: they are gone with the first replica."""
    include = ["message.output_text.logprobs"]
    body = body_of(RESPONSES, {"input": "hello", "include": include, "top_logprobs": 1})
    whole = await Replica(tokenizer).stream(RESPONSES, body)
    [expected, repeated] = logprobs_of(whole)
    assert len(expected) > 20
    assert repeated == expected
    there = Replica(tokenizer, ReplicaEngine())
    for cut in range(1, len(whole) - 1):
        rest = await there.resume(RESPONSES, body, whole[:cut])
        [told, repeated] = logprobs_of([*whole[:cut], *rest])
        if whole[cut - 1].events:  # else the tokens of what was held back are lost with it
            assert told == expected, cut
        else:
            assert len(told) < len(expected)
        assert repeated == []


def logprobs_of(groups: list[Group]) -> list[list[Any]]:
    """Of a response's deltas, and of the event that has its whole text."""
    events = [json.loads(event.partition(b"data: ")[2]) for g in groups for event in g.events]
    kind = "response.output_text"
    told = [entry for e in events if e["type"] == f"{kind}.delta" for entry in e["logprobs"]]
    [done] = [event for event in events if event["type"] == f"{kind}.done"]
    final = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert final == done["logprobs"]
    return [told, final]
