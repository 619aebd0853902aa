"""What the SDK raises for each refusal, and that the server says why."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess

from .conftest import API_KEY

pytestmark = pytest.mark.timeout(120)

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


def refused(error: openai.APIStatusError) -> dict[str, Any]:
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    return error.body


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tenant-44", messages=MESSAGES)
    body = refused(caught.value)
    assert body["param"] == "model"
    assert "'tenant-4'" in body["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"extra_body": {"top_k": 1.5}}, "top_k"),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ],
)
def test_a_bad_field_is_named(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "base", "messages": MESSAGES, **fields})
    assert refused(caught.value)["param"] == param


def test_a_prompt_too_long_says_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"4096 tokens.*5000 tokens") as caught:
        client.completions.create(model="base", prompt="x" * 5000)
    assert refused(caught.value)["code"] == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"4096 tokens.*4100 .*3 .*4097"):
        client.completions.create(model="base", prompt="xxx", max_tokens=4097)


def test_a_token_outside_the_vocabulary(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="260"):
        client.completions.create(model="base", prompt=[1, 260])


def test_a_wrong_key_is_refused(openai_server: ServerProcess) -> None:
    with (
        openai.OpenAI(base_url=openai_server.api_url, api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert refused(caught.value)["code"] == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


def test_a_body_too_large(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model="base", prompt="x" * (17 << 20))
    assert caught.value.status_code == 413
    refused(caught.value)


def test_a_body_too_large_in_chunks(openai_server: ServerProcess) -> None:
    response = httpx.post(
        f"{openai_server.api_url}/completions",
        content=(b" " * (1 << 20) for _ in range(40)),
        headers={"authorization": f"Bearer {API_KEY}"},
        timeout=30,
    )
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert openai_server.is_ready()


def test_paths_and_methods_are_shaped_too(openai_server: ServerProcess) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    missing = httpx.get(f"{openai_server.api_url}/nothing", headers=headers)
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "not_found"
    wrong = httpx.get(f"{openai_server.api_url}/completions", headers=headers)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"
