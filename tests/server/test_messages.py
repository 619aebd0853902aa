"""``/v1/messages`` through Anthropic's own SDK: answers, streams, refusals, each of its fields."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from fake_engine import say

from branchline.server.messages.body import CountTokensRequest, MessagesRequest

from .conftest import ADAPTER, BASE, Harness

USER: list[Any] = [{"role": "user", "content": "hi"}]
KEY = "sk-one"


def sdk(app: Any, **options: Any) -> anthropic.AsyncAnthropic:
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return anthropic.AsyncAnthropic(
        base_url="http://test",
        api_key=KEY,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
        **options,
    )


@pytest.fixture
async def client(harness: Harness) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with sdk(harness.app) as client:
        yield client


def prompt_of(harness: Harness) -> str:
    return harness.services.tokenizer.decode(harness.engine.requests[-1].prompt_token_ids)


async def test_an_answer(harness: Harness, client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(
        model=BASE, max_tokens=100, messages=USER, system="be kind"
    )
    [block] = message.content
    assert (block.type, block.text) == ("text", "hello")
    assert (message.type, message.role, message.model) == ("message", "assistant", BASE)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    usage = message.usage
    num_prompt = len(harness.engine.requests[0].prompt_token_ids)
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (num_prompt - 3, 3)
    assert (usage.output_tokens, usage.cache_creation_input_tokens) == (6, 0)
    assert prompt_of(harness) == (
        "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert message._request_id


async def test_a_stream_builds_the_same_message(
    harness: Harness, client: anthropic.AsyncAnthropic
) -> None:
    fields: dict[str, Any] = {"model": BASE, "max_tokens": 100, "messages": USER}
    whole = await client.messages.create(**fields)
    async with client.messages.stream(**fields) as stream:
        kinds = [event.type async for event in stream]
        streamed = await stream.get_final_message()
    assert [block.text for block in streamed.content] == ["hello"]  # type: ignore[union-attr]
    assert streamed.usage == whole.usage
    assert (streamed.stop_reason, streamed.stop_sequence) == ("end_turn", None)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert kinds.count("text") == len("hello")


async def test_a_streams_bytes(harness: Harness) -> None:
    body = {"model": BASE, "max_tokens": 2, "messages": USER, "stream": True}
    response = await harness.post("/v1/messages", body)
    events = [part.split("\n") for part in response.text.split("\n\n") if part]
    names = [name.removeprefix("event: ") for name, _ in events]
    assert names == [
        *("message_start", "ping", "content_block_start", "content_block_delta"),
        *("content_block_delta", "content_block_stop", "message_delta", "message_stop"),
    ]
    assert all(f'"type":"{name}"' in data for name, (_, data) in zip(names, events, strict=True))
    assert "[DONE]" not in response.text


async def test_held_back_text_is_a_ping(harness: Harness) -> None:
    harness.engine.script = lambda request: [*"é".encode(), 258]
    body = {"model": BASE, "max_tokens": 9, "messages": USER, "stream": True}
    text = (await harness.post("/v1/messages", body)).text
    assert text.count("event: ping") == 2 - 1, "the opening has one, and stands for the first token"
    assert '"text":"é"' in text


async def test_why_an_answer_ends(harness: Harness, client: anthropic.AsyncAnthropic) -> None:
    fields: dict[str, Any] = {"model": BASE, "messages": USER}
    cut = await client.messages.create(max_tokens=2, **fields)
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "he")  # type: ignore[union-attr]
    stopped = await client.messages.create(max_tokens=20, stop_sequences=["zz", "ll"], **fields)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "ll")
    assert stopped.content[0].text == "he"  # type: ignore[union-attr]
    async with client.messages.stream(max_tokens=20, stop_sequences=["ll"], **fields) as stream:
        streamed = await stream.get_final_message()
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "ll")


async def test_max_tokens_over_the_context_are_what_there_is_room_for(
    harness: Harness, client: anthropic.AsyncAnthropic
) -> None:
    harness.engine.script = say("x" * 600)
    message = await client.messages.create(model=BASE, max_tokens=20_000, messages=USER)
    assert message.stop_reason == "model_context_window_exceeded"
    request = harness.engine.requests[0]
    assert message.usage.output_tokens == 512 - len(request.prompt_token_ids)


async def test_no_tokens_at_all_compute_the_prompt(harness: Harness) -> None:
    """As Anthropic has it: what warms the cache."""
    body = {"model": BASE, "max_tokens": 0, "messages": USER}
    whole = (await harness.post("/v1/messages", body)).json()
    assert (whole["content"], whole["stop_reason"]) == ([], "max_tokens")
    assert whole["usage"]["output_tokens"] == 0
    text = (await harness.post("/v1/messages", {**body, "stream": True})).text
    names = [line for line in text.split("\n") if line.startswith("event: ")]
    assert names == [f"event: {name}" for name in ENDS]


ENDS = ("message_start", "ping", "message_delta", "message_stop")

SAMPLING: list[tuple[str, Any, str, Any]] = [
    ("temperature", 0.5, "temperature", 0.5),
    ("top_p", 0.5, "top_p", 0.5),
    ("top_k", 5, "top_k", 5),
    ("seed", 7, "seed", 7),
    ("stop_sequences", ["x"], "stop", ("x",)),
    ("max_tokens", 7, "max_tokens", 7),
]


@pytest.mark.parametrize(("field", "value", "name", "expected"), SAMPLING)
async def test_fields_reach_the_engine(
    harness: Harness, field: str, value: Any, name: str, expected: Any
) -> None:
    body = {"model": BASE, "max_tokens": 100, "messages": USER, field: value}
    assert (await harness.post("/v1/messages", body)).status_code == 200
    assert getattr(harness.engine.requests[-1].params, name) == expected


async def test_what_is_ours_reaches_the_engine(harness: Harness) -> None:
    body = {"model": ADAPTER, "max_tokens": 9, "messages": USER, "priority": 3, "cache_salt": "s"}
    assert (await harness.post("/v1/messages", body)).status_code == 200
    request = harness.engine.requests[-1]
    assert (request.adapter, request.priority, request.cache_salt) == ("digest-a", 3, "s")


async def test_an_assistants_last_turn_is_gone_on_with(
    harness: Harness, client: anthropic.AsyncAnthropic
) -> None:
    messages = [*USER, {"role": "assistant", "content": "I think"}]
    await client.messages.create(model=BASE, max_tokens=9, messages=messages)
    assert prompt_of(harness).endswith("<|im_start|>assistant\nI think")


async def test_tokens_are_counted(harness: Harness, client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model=BASE, messages=USER, system="be kind")
    await client.messages.create(model=BASE, max_tokens=9, messages=USER, system="be kind")
    [request] = harness.engine.requests
    assert counted.input_tokens == len(request.prompt_token_ids)


HONOURED_ELSEWHERE = {"betas"}  # a header of the SDK's


def keys_of(params: Any) -> set[str]:
    """All keys of a TypedDict, those that are sent as headers left out."""
    headers = {"user_profile_id", "workspace_id"}
    return set(typing.get_type_hints(params)) - headers - HONOURED_ELSEWHERE


@pytest.mark.parametrize(
    ("params", "model"),
    [
        (message_create_params.MessageCreateParamsNonStreaming, MessagesRequest),
        (message_create_params.MessageCreateParamsStreaming, MessagesRequest),
        (message_count_tokens_params.MessageCountTokensParams, CountTokensRequest),
    ],
)
def test_every_field_of_the_sdk_is_in_a_list(params: Any, model: type[CountTokensRequest]) -> None:
    listed = set(model.model_fields) | model.accepted | set(model.neutral)
    assert keys_of(params) <= listed


ACCEPTED: list[dict[str, Any]] = [
    {"cache_control": {"type": "ephemeral"}},
    {"diagnostics": {"previous_message_id": None}},
    {"metadata": {"user_id": "u"}},
    {"service_tier": "standard_only"},
    {"speed": "standard"},
    {"container": None},
    {"inference_geo": None},
    {"thinking": {"type": "adaptive"}},
    {"tools": [], "tool_choice": {"type": "auto"}},
]


@pytest.mark.parametrize("fields", ACCEPTED)
async def test_what_changes_nothing_is_taken(harness: Harness, fields: dict[str, Any]) -> None:
    response = await harness.post(
        "/v1/messages", {"model": BASE, "max_tokens": 9, "messages": USER, **fields}
    )
    assert response.status_code == 200, response.text
