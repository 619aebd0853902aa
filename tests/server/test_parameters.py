"""The three lists of parameters: every key that the openai SDK knows is in one of them."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

import pytest
from openai.types import completion_create_params as text_params
from openai.types import embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from branchline.server.embeddings import EmbeddingRequest
from branchline.server.openai import ACCEPTED, NEUTRAL, ChatRequest, CompletionRequest, ModelBody

from .conftest import Harness

DOCS = Path(__file__).resolve().parents[2] / "docs" / "api.md"

ENDPOINTS: list[tuple[Any, type[ModelBody]]] = [
    (chat_params.CompletionCreateParamsStreaming, ChatRequest),
    (text_params.CompletionCreateParamsStreaming, CompletionRequest),
    (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
]

VLLM = (
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "priority"),
    *("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "prompt_logprobs"),
    *("truncate_prompt_tokens", "allowed_token_ids", "bad_words", "structured_outputs"),
    *("cache_salt", "return_token_ids", "use_beam_search", "length_penalty"),
    "add_special_tokens",
)
VLLM_CHAT = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "echo")


def honoured(body: type[ModelBody]) -> set[str]:
    return {field.alias or name for name, field in body.model_fields.items()}


@pytest.mark.parametrize(("params", "body"), ENDPOINTS)
def test_every_key_of_the_sdk_is_in_one_list(params: Any, body: type[ModelBody]) -> None:
    keys = set(typing.get_type_hints(params))
    lists = (honoured(body), set(body.accepted), set(body.neutral))
    assert keys <= set().union(*lists), keys - set().union(*lists)
    for key in keys & honoured(body):
        assert key not in body.accepted, f"{key} is honoured and read past"


def test_vllms_extras_are_honoured() -> None:
    assert set(VLLM) <= honoured(ChatRequest) & honoured(CompletionRequest)
    assert set(VLLM_CHAT) <= honoured(ChatRequest)


def test_the_documentation_names_them_all() -> None:
    text = DOCS.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", text))
    every = ACCEPTED | set(NEUTRAL) | honoured(CompletionRequest) | honoured(ChatRequest)
    assert every | honoured(EmbeddingRequest) <= named, sorted(every - named)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, "x") for field in ("user", "safety_identifier", "prompt_cache_key")),
        ("metadata", {"a": "b"}),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {"ttl": "30m"}),
        ("store", False),
        ("service_tier", "auto"),
        ("modalities", ["text"]),
        ("moderation", None),
    ],
)
async def test_what_is_accepted_changes_nothing(harness: Harness, field: str, value: Any) -> None:
    plain = (await harness.chat("hi", seed=1)).json()
    given = await harness.chat("hi", seed=1, **{field: value})
    assert given.status_code == 200
    assert given.json()["choices"] == plain["choices"]
    first, second = harness.engine.requests
    assert first.params == second.params
    assert first.prompt_token_ids == second.prompt_token_ids


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("store", True),
        ("service_tier", "priority"),
        ("modalities", ["audio"]),
        ("audio", {"voice": "x"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("web_search_options", {}),
        ("moderation", {"model": "x"}),
        ("functions", [{"name": "x"}]),
        ("verbosity", "high"),
        ("no_such_thing", 1),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    harness: Harness, errors_of: Any, field: str, value: Any
) -> None:
    error = errors_of(await harness.chat("hi", **{field: value}), 400)
    assert error["param"] == field
    assert field in error["message"]
