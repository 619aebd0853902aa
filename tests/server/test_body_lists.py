"""Bodies of very many bad or small things are refused soon: reading holds up others' streams."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel

from branchline.server import app, body_lists, pins  # noqa: F401 - the app knows all bodies
from branchline.server.body import parse_body
from branchline.server.config import Limits
from branchline.server.errors import ApiError
from branchline.server.messages.body import CountTokensRequest, MessagesRequest
from branchline.server.openai import Body, ChatRequest, CompletionRequest
from branchline.server.responses.body import ResponseRequest
from branchline.server.tokenize_api import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "hi"}
CHAT: dict[str, Any] = {"messages": [USER]}
MESSAGES: dict[str, Any] = {"messages": [USER], "max_tokens": 5}


def models(of: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    """Every model of ours, whether or not a body has it."""
    for model in of.__subclasses__():
        if model.__module__.startswith("branchline."):
            yield model
        yield from models(model)


def unbounded(schema: Any, is_counted: bool = False) -> Iterator[str]:
    """Lists that tell each bad entry, and tables whose entries nobody counts before."""
    if isinstance(schema, list | tuple):
        for entry in schema:
            yield from unbounded(entry)
    if not isinstance(schema, dict):
        return
    entries = schema.get("items_schema", schema.get("values_schema", {"type": "any"}))
    if schema.get("type") in ("list", "dict") and entries["type"] != "any":
        ends = schema.get("fail_fast") and schema.get("max_length")
        if not (ends if schema["type"] == "list" else is_counted):
            yield f"{schema}"
    for name, value in schema.items():
        yield from unbounded(value, name == "schema" and schema.get("type") == "function-before")


def test_each_list_in_a_body_ends_at_its_first_bad_entry() -> None:
    found = {model: list(unbounded(model.__pydantic_core_schema__)) for model in models()}
    assert {Body, ChatRequest, MessagesRequest, pins.PinRequest} <= found.keys()
    assert not {model.__name__: lists for model, lists in found.items() if lists}


def test_what_would_not_end_is_found() -> None:
    class Bad(BaseModel):
        texts: str | list[str]
        table: dict[str, int] | None

    class Good(BaseModel):
        texts: str | body_lists.Items[str]
        table: Annotated[dict[str, int], body_lists.entries_up_to(5)] | None
        others: list[Any]

    assert len(list(unbounded(Bad.__pydantic_core_schema__))) == 2
    assert not list(unbounded(Good.__pydantic_core_schema__))


def test_lists_end_far_over_the_limits_that_say_more() -> None:
    limits = Limits()
    assert 2 * max(limits.max_messages, limits.max_allowed_token_ids) <= body_lists.MAX_ITEMS
    assert limits.max_logit_bias < body_lists.MAX_BIAS
    assert limits.max_detokenized_tokens < body_lists.MAX_TOKENS


def many(entry: object, num: int = 120_000) -> list[object]:
    return [entry] * num


@pytest.mark.parametrize(
    ("model", "fields", "param", "words"),
    [
        (ResponseRequest, {"input": many({})}, "input[0].role", "is required"),
        (DetokenizeRequest, {"tokens": many("a", 10**6)}, "tokens[0]", "valid integer"),
        (DetokenizeRequest, {"tokens": many(5, 1_100_000)}, "tokens", "1048576 items"),
        (ChatRequest, {**CHAT, "stop_token_ids": many("a", 10**6)}, "stop_token_ids[0]", "integer"),
        (ChatRequest, {**CHAT, "stop_token_ids": many(5, 10**6)}, "stop_token_ids", "16384 items"),
        (CompletionRequest, {"prompt": "", "stop": many(5, 10**6)}, "stop[0]", "valid string"),
        (ChatRequest, {"messages": many({})}, "messages[0].role", "is required"),
        (ChatRequest, {"messages": many(USER)}, "messages", "at most 16384 items"),
        (
            ChatRequest,
            {**CHAT, "logit_bias": {str(index): "x" for index in range(200_000)}},
            "logit_bias",
            "has 200000 entries, the most is 8192",
        ),
        (
            ResponseRequest,
            {"input": "", "metadata": {str(index): 5 for index in range(200_000)}},
            "metadata",
            "has 200000 entries, the most is 16",
        ),
        (MessagesRequest, {**MESSAGES, "stop_sequences": many(5)}, "stop_sequences[0]", "string"),
        (TokenizeRequest, {"messages": many({}, 10**5)}, "messages[0].role", "is required"),
    ],
)
def test_very_many_bad_entries_are_refused_soon(
    model: type[Body], fields: dict[str, Any], param: str, words: str
) -> None:
    body = json.dumps({"model": "base", **fields}).encode()
    since = time.process_time()
    with pytest.raises(ApiError) as caught:
        parse_body(model, body)
    assert time.process_time() - since < 1
    assert caught.value.param == param
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (ChatRequest, {"messages": many(USER, 140_000)}, "131072 objects and lists"),
        (ResponseRequest, {"input": many({}, 140_000)}, "131072 objects and lists"),
        (CompletionRequest, {"prompt": many([1], 140_000)}, "131072 objects and lists"),
        (CountTokensRequest, {"messages": many({}, 140_000)}, "131072 objects and lists"),
        (ChatRequest, {"messages": [{str(n): 1 for n in range(300_000)}]}, "262144 fields"),
        (ChatRequest, {"messages": [{str(n): 1 for n in range(100_000)}]}, "faults, such as"),
    ],
)
def test_very_many_small_things_are_refused_soon(
    model: type[Body], fields: dict[str, Any], words: str
) -> None:
    body = json.dumps({"model": "base", **fields}).encode()
    since = time.process_time()
    with pytest.raises(ApiError, match=words):
        parse_body(model, body)
    assert time.process_time() - since < 1


def test_a_long_program_in_a_prompt_is_no_heap_of_objects() -> None:
    program = 'f({"a": [{"b": "c\\n"}]});' * 70_000
    text = parse_body(CompletionRequest, json.dumps({"model": "a", "prompt": program}).encode())
    assert text.prompt == program
