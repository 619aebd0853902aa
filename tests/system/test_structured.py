"""Answers of a given form from a whole server: streamed, several, of base and adapters at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from server_process import ServerProcess, serve

from .conftest import SERVE_FLAGS, Models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green", "blå"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["color", "n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA, "strict": True}}
DATE = "[0-9]{4}-[0-9]{2}"
KINDS: list[dict[str, Any]] = [
    {"extra_body": {"structured_outputs": {"regex": DATE}}},
    {"response_format": FORMAT},
    {"extra_body": {"structured_outputs": {"choice": ["yes", "no"]}}},
    {},
]
MODELS = ("base", "tenant-4", "tenant-8")


@pytest.fixture(scope="module", params=["--async-scheduling", "--no-async-scheduling"])
def server(request: pytest.FixtureRequest, models: Models) -> Iterator[ServerProcess]:
    flags = (*SERVE_FLAGS, "--max-num-batched-tokens", "48", request.param)
    with serve(models.model, *flags, lora=models.lora) as running:
        yield running


def client_of(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api_url, api_key="none", max_retries=0)


def requests() -> list[dict[str, Any]]:
    return [
        {"model": model, "seed": 7, "n": 2, "max_tokens": 240, "temperature": 0.9, **kind}
        for model in MODELS
        for kind in KINDS
    ]


def ask(server: ServerProcess, request: dict[str, Any], stream: bool) -> list[str]:
    """The text of each choice."""
    messages: Any = [{"role": "user", "content": "Say something."}]
    with client_of(server) as client:
        answer: Any = client.chat.completions.create(messages=messages, stream=stream, **request)
        if not stream:
            return [choice.message.content for choice in answer.choices]
        texts = ["", ""]
        for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        return texts


def is_of_its_form(text: str, kind: dict[str, Any]) -> bool:
    if "response_format" in kind:
        value = json.loads(text)
        return value["color"] in ("red", "green", "blå") and 0 <= value["n"] <= 99
    wanted = kind["extra_body"]["structured_outputs"]
    pattern = wanted.get("regex") or "|".join(wanted["choice"])
    return re.fullmatch(pattern, text) is not None


def test_every_answer_is_of_its_form_and_the_same_alone_and_at_once(server: ServerProcess) -> None:
    alone = [ask(server, request, stream=False) for request in requests()]
    for request, texts in zip(requests(), alone, strict=True):
        if any(name in request for name in ("response_format", "extra_body")):
            assert all(is_of_its_form(text, request) for text in texts), (request, texts)
    with ThreadPoolExecutor(len(alone)) as pool:
        together = list(pool.map(lambda r: ask(server, r, stream=True), requests()))
    assert together == alone


def test_the_server_says_what_compiling_cost(server: ServerProcess) -> None:
    ask(server, requests()[0], stream=False)
    ask(server, requests()[0], stream=False)
    assert server.metric("branchline:grammars_compiled_total") >= 1
    assert server.metric("branchline:grammar_cache_hits_total") >= 3
    assert server.metric("branchline:grammar_compile_seconds_total") > 0


def test_a_hostile_schema_is_refused_and_others_go_on(server: ServerProcess) -> None:
    body = {"structured_outputs": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#"}}}}}
    with client_of(server) as client, pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt="x", extra_body=body)
    assert caught.value.param == "structured_outputs.json"
    assert all(is_of_its_form(text, KINDS[2]) for text in ask(server, requests()[2], stream=True))
