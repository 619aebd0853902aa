"""Streamed responses, read as OpenAI's SDK reads them, and taken up where they were cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from cut_streams import SECRET, Group, record_of
from fake_engine import say
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from branchline.gateway.fleet.headers import FLEET_SECRET
from branchline.server.output.parts import (
    ContentText,
    OutputPart,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
)
from branchline.server.responses.output import OutputBuilder
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness
from .fleet_replica import Replica, ReplicaEngine

PATH = "/v1/responses"
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def parse(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the SDK's types."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines or lines == ["data: [DONE]"]:
            continue
        name, data = lines
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        found.append(event)
    return found


async def stream(harness: Harness, given: Any = "hi", **fields: Any) -> list[dict[str, Any]]:
    body = {"model": BASE, "input": given, "stream": True, **fields}
    response = await harness.post(PATH, body)
    assert response.status_code == 200, response.text
    assert "[DONE]" not in response.text
    return parse(response.text)


async def test_the_events_of_a_text(harness: Harness) -> None:
    events = await stream(harness)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 5,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(e["delta"] for e in events if e["type"].endswith("text.delta")) == "hello"
    final = events[-1]["response"]
    assert events[0]["response"]["status"] == "in_progress"
    assert {event["response"]["id"] for event in events if "response" in event} == {final["id"]}
    assert final["output"] == [events[-2]["item"]]
    assert final["usage"]["output_tokens"] == 6
    kept = await harness.client.get(f"{PATH}/{final['id']}")
    assert kept.json() == final, "it was kept before its end was told"


async def test_a_cut_stream_ends_incomplete(harness: Harness) -> None:
    events = await stream(harness, max_output_tokens=2)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"


async def test_logprobs_come_with_their_text(harness: Harness) -> None:
    include = ["message.output_text.logprobs"]
    events = await stream(harness, include=include, top_logprobs=1)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[entry["token"] for entry in e["logprobs"]] for e in deltas] == [[c] for c in "hello"]
    [done] = [event for event in events if event["type"] == "response.output_text.done"]
    assert done["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]
    whole = await harness.post(
        PATH, {"model": BASE, "input": "hi", "include": include, "top_logprobs": 1}
    )
    assert whole.json()["output"][0]["content"][0]["logprobs"] == done["logprobs"]


async def test_a_stream_that_fails_says_so(harness: Harness) -> None:
    harness.engine.fail_after = 3
    events = await stream(harness)
    assert events[-1]["type"] == "response.failed"
    failed = events[-1]["response"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "server_error"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (await harness.client.get(f"{PATH}/{failed['id']}")).status_code == 404


async def test_what_fails_at_once_is_an_ordinary_error(harness: Harness) -> None:
    harness.engine.fail_after = 0
    response = await harness.post(PATH, {"model": BASE, "input": "hi", "stream": True})
    assert response.status_code == 503
    assert "error" in response.json()


async def test_the_sdk_reads_it(harness: Harness) -> None:
    async with AsyncOpenAI(
        base_url="http://test/v1", api_key="none", http_client=harness.client, max_retries=0
    ) as client:
        async with client.responses.stream(model=BASE, input="hi") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.output_text == "hello"
        made = await client.responses.create(
            model=BASE, input="more", previous_response_id=final.id
        )
        got = await client.responses.retrieve(made.id)
        assert got.output_text == made.output_text == "hello"
        items = await client.responses.input_items.list(made.id, order="asc", limit=2)
        assert [item.type async for item in items] == ["message"] * 3
        await client.responses.delete(made.id)


PARTS: list[OutputPart] = [
    ReasoningText("let me "),
    ReasoningText("think"),
    ContentText("I'll "),
    ContentText("look"),
    ToolCallBegin(0, "find"),
    ToolCallArguments(0, '{"a":'),
    ToolCallArguments(0, "1}"),
    ToolCallBegin(1, "none"),
]


def test_items_of_all_kinds() -> None:
    builder = OutputBuilder("resp_1")
    events = [event for part in PARTS for event in builder.feed([part])]
    events += builder.finish(is_cut=False)
    kinds = [str(type(event).__struct_config__.tag).removeprefix("response.") for event in events]
    assert kinds == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert builder.reasoning == "let me think"
    assert [type(item).__struct_config__.tag for item in builder.items] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]


def test_items_do_not_depend_on_how_the_text_was_cut() -> None:
    one, many = OutputBuilder("resp_1"), OutputBuilder("resp_1")
    one.feed(PARTS)
    for part in PARTS:
        many.feed([part])
    one.finish(is_cut=True)
    many.finish(is_cut=True)
    assert one.items == many.items
    assert one.items != OutputBuilder("resp_2").items
    assert len({item.id for item in one.items}) == 4
    assert [item.status for item in one.items] == ["completed"] * 3 + ["incomplete"]


def events_of(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return parse(b"".join(event for group in groups for event in group.events).decode())


def body_of(**fields: Any) -> bytes:
    return json.dumps({"model": BASE, "input": "hello", "stream": True, **fields}).encode()


@pytest.mark.parametrize("num_joined", [1, 3])
async def test_a_stream_is_taken_up_at_every_event(tokenizer: Tokenizer, num_joined: int) -> None:
    one, two = (Replica(tokenizer, ReplicaEngine(num_joined)) for _ in range(2))
    body = body_of()
    groups = await one.stream(PATH, body)
    events = events_of(groups)
    final = events[-1]["response"]
    for cut in range(1, len(groups)):
        before = events_of(groups[:cut])
        if not record_of(groups[:cut]).choices:
            continue
        after = await two.resume(PATH, body, groups[:cut])
        rest = events_of(after)
        numbers = [event["sequence_number"] for event in before + rest]
        assert numbers == list(range(len(events))), cut
        assert [e["type"] for e in before + rest] == [e["type"] for e in events], cut
        ended = rest[-1]["response"]
        same = ("id", "created_at", "output", "usage", "status")
        assert [ended[name] for name in same] == [final[name] for name in same], cut
        kept = await two.client.get(f"{PATH}/{final['id']}", headers={FLEET_SECRET: SECRET})
        assert kept.json()["output"] == final["output"], "who ends it keeps it"


async def test_the_script_can_be_anything(harness: Harness) -> None:
    harness.engine.script = say("naïve 😀")
    events = await stream(harness)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "naïve 😀"
