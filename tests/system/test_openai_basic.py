"""The OpenAI SDK against a real server: models, chats, text, streams, usage, logprobs."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess
from tiny_models import EOS_TOKEN_ID

pytestmark = pytest.mark.timeout(120)

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


def test_models_are_listed_with_their_parents(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"base", "tenant-4", "tenant-8", "tenant-16"}
    assert listed["base"].parent is None
    assert listed["tenant-8"].parent == "base"
    assert listed["tenant-8"].root.endswith("r8")
    assert listed["base"].max_model_len == 4096
    assert client.models.retrieve("tenant-16").id == "tenant-16"


def test_chat_answers_in_full(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=MESSAGES, **GREEDY)
    assert answer.object == "chat.completion"
    assert answer.model == "base"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > len("hello there")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    cached_tokens = answer.usage.prompt_tokens_details.cached_tokens
    assert cached_tokens in range(answer.usage.prompt_tokens), "other tests ask this too"


def counts(usage: Any) -> dict[str, Any]:
    """All of a usage but what was cached: that is more when a prompt comes again."""
    fields: dict[str, Any] = usage.model_dump()
    assert fields.pop("prompt_tokens_details")["cached_tokens"] < fields["prompt_tokens"]
    return fields


@pytest.mark.parametrize("model", ["base", "tenant-4", "tenant-16"])
def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, **GREEDY)
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == (
        whole.choices[0].finish_reason
    )
    assert chunks[-1].choices == []
    assert counts(chunks[-1].usage) == counts(whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_adapters_change_the_answer(client: openai.OpenAI) -> None:
    texts = {
        model.id: client.completions.create(model=model.id, prompt="once", **GREEDY).choices[0].text
        for model in client.models.list()
    }
    assert len(set(texts.values())) == 4


def test_text_streams_too(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tenant-8", prompt="abc", **GREEDY)
    stream = client.completions.create(model="tenant-8", prompt="abc", stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_prompts_as_text_ids_and_batches_agree(client: openai.OpenAI) -> None:
    ids, more = list(b"first"), list(b"second one")
    forms: list[Any] = ["first", ids, ["first", "second one"], [ids, more]]
    answers = [client.completions.create(model="base", prompt=p, **GREEDY) for p in forms]
    first = answers[0].choices[0].text
    assert answers[1].choices[0].text == first
    assert [choice.index for choice in answers[2].choices] == [0, 1]
    assert answers[2].choices[0].text == first
    assert [c.text for c in answers[2].choices] == [c.text for c in answers[3].choices]
    assert answers[3].usage is not None
    assert answers[3].usage.prompt_tokens == len(ids) + len(more)


def test_token_ids_come_back(client: openai.OpenAI) -> None:
    extra = {"return_token_ids": True}
    answer = client.completions.create(model="base", prompt="abc", extra_body=extra, **GREEDY)
    choice: Any = answer.choices[0]
    assert choice.prompt_token_ids == list(b"abc")
    assert len(choice.token_ids) == 12
    assert bytes(i for i in choice.token_ids if i < 256).decode("utf-8", "replace") == choice.text
    chat: Any = client.chat.completions.create(
        model="base", messages=MESSAGES, extra_body=extra, **GREEDY
    )
    rendered = "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert len(chat.prompt_token_ids) == len(rendered) - 12 * 2 - 10 + 3
    stream = client.chat.completions.create(
        model="base", messages=MESSAGES, extra_body=extra, stream=True, **GREEDY
    )
    chunks: list[Any] = list(stream)
    assert chunks[0].prompt_token_ids == chat.prompt_token_ids
    streamed = [i for c in chunks for i in getattr(c.choices[0], "token_ids", None) or []]
    assert streamed == chat.choices[0].token_ids


def test_echo_gives_the_prompt_back(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="base", prompt=["ab", "cd"], **GREEDY)
    echoed = client.completions.create(model="base", prompt=["ab", "cd"], echo=True, **GREEDY)
    for prompt, without, with_prompt in zip(
        ["ab", "cd"], plain.choices, echoed.choices, strict=True
    ):
        assert with_prompt.text == prompt + without.text


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tenant-4",
        messages=MESSAGES,
        logprobs=True,
        top_logprobs=3,
        extra_body={"skip_special_tokens": False, "ignore_eos": True},
        **GREEDY,
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert answer.usage is not None
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy takes the likeliest
        likely = [top.logprob for top in entry.top_logprobs]
        assert likely == sorted(likely, reverse=True)
        assert sum(map(math.exp, likely)) <= 1 + 1e-5
    raw = bytes(byte for entry in content for byte in entry.bytes or [])
    assert raw.decode("utf-8", "replace") == answer.choices[0].message.content


def test_text_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt="abc", logprobs=2, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 12
    assert logprobs.token_logprobs is not None
    assert all(-50 < value <= 0 for value in logprobs.token_logprobs)
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert logprobs.top_logprobs is not None
    assert all(1 <= len(top) <= 3 for top in logprobs.top_logprobs)


def test_streamed_logprobs_are_the_whole_answers(client: openai.OpenAI) -> None:
    fields = {"model": "base", "messages": MESSAGES, "logprobs": True, "top_logprobs": 1, **GREEDY}
    whole = client.chat.completions.create(**fields)
    streamed = [
        entry.token
        for chunk in client.chat.completions.create(stream=True, **fields)
        for entry in (chunk.choices[0].logprobs and chunk.choices[0].logprobs.content) or []
    ]
    assert whole.choices[0].logprobs is not None
    assert streamed == [entry.token for entry in whole.choices[0].logprobs.content or []]


def test_messages_in_parts_and_turns(client: openai.OpenAI) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}],
        },
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "again", "name": "ann"},
    ]
    in_parts = client.chat.completions.create(model="base", messages=turns, **GREEDY)
    turns[1] = {"role": "user", "content": "hello"}
    plain = client.chat.completions.create(model="base", messages=turns, **GREEDY)
    assert in_parts.choices[0].message.content == plain.choices[0].message.content
    assert counts(in_parts.usage) == counts(plain.usage)


def test_the_final_message_can_be_continued(client: openai.OpenAI) -> None:
    opened: list[Any] = [*MESSAGES, {"role": "assistant", "content": "well, "}]
    extra = {"continue_final_message": True, "return_token_ids": True}
    continued: Any = client.chat.completions.create(
        model="base", messages=opened, extra_body=extra, **GREEDY
    )
    assert bytes(continued.prompt_token_ids[-6:]) == b"well, "
    extra = {"add_generation_prompt": False, "return_token_ids": True}
    closed: Any = client.chat.completions.create(
        model="base", messages=opened, extra_body=extra, **GREEDY
    )
    assert closed.prompt_token_ids[-2:] == [EOS_TOKEN_ID, ord("\n")]


def test_request_ids_go_in_and_out(client: openai.OpenAI) -> None:
    answer = client.completions.with_raw_response.create(
        model="base", prompt="a", max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    answer = client.completions.with_raw_response.create(model="base", prompt="a", max_tokens=1)
    assert len(answer.headers["x-request-id"]) == 32


def test_the_operators_endpoints(openai_server: ServerProcess) -> None:
    for path in ("/health", "/ready", "/version", "/metrics", "/openapi.json"):
        assert httpx.get(f"{openai_server.base_url}{path}").status_code == 200, path
    schema = httpx.get(f"{openai_server.base_url}/openapi.json").json()
    assert json.dumps(schema).count("#/components/schemas/ChatRequest") == 1
    assert schema["components"]["schemas"]["ChatRequest"]["properties"]["top_k"]


async def test_the_async_client_streams(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="tenant-16", messages=MESSAGES, stream=True, **GREEDY
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    whole = await async_client.chat.completions.create(
        model="tenant-16", messages=MESSAGES, **GREEDY
    )
    assert text == whole.choices[0].message.content
