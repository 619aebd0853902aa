"""Nothing that a client sends gives a 500: bad bodies get a 4xx in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st

from branchline.server.app import create_app
from branchline.server.openai import NEUTRAL, ChatRequest, CompletionRequest
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, Harness, make_client, make_services

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]
HUGE = 10**400
DEEP = "[" * 100_000


def chat_with(**fields: Any) -> bytes:
    return json.dumps({"model": BASE, "messages": USER, **fields}).encode()


def text_with(**fields: Any) -> bytes:
    return json.dumps({"model": BASE, "prompt": "hi", **fields}).encode()


# Not JSON, or not an object.
RAW: list[bytes] = [
    *(b"", b" ", b"{", b"}", b"null", b"true", b"1", b'"x"', b"[]", b"[{}]", b"{}x", b"{}{}"),
    *(b"\x00", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{'model': 'base'}", b"<xml/>", b"NaN", b"-"),
    DEEP.encode(),
    b'{"model":' + DEEP.encode(),
    b'{"model":' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
    b'{"model":"base","prompt":"\xff"}',
    b'{"model":"base","prompt":"\xed\xa0\x80"}',
    rb'{"model":"base","prompt":"\ud800"}',
    rb'{"model":"base","prompt":"\udc00\ud800"}',
    rb'{"model":"\ud83d","prompt":"x"}',
    rb'{"model":"base","prompt":"\x"}',
    b'{"model":"base","prompt":"a\nb"}',
    b'{"model":"base","prompt":"x","temperature":NaN}',
    b'{"model":"base","prompt":"x","temperature":Infinity}',
    b'{"model":"base","prompt":"x","temperature":-Infinity}',
    b'{"model":"base","prompt":"x","temperature":1e999}',
    b'{"model":"base","prompt":"x","max_tokens":1e5}',
    b'{"model":"base","prompt":"x","max_tokens":' + b"9" * 5000 + b"}",
    b'{"model":"base","prompt":"x","seed":0x10}',
    b'{"model":"base","prompt":[' + b"1," * 100 + b"]}",
    b'{"model":"base","prompt":"x",}',
    b'{"model":"base"/*c*/,"prompt":"x"}',
]

# One bad value for one field; the error has to name that field.
SAMPLING: list[tuple[str, Any]] = [
    *(("model", value) for value in (None, 1, True, [], {}, ["base"])),
    *(("temperature", value) for value in (-0.1, 2.1, "1", True, [], {}, HUGE, -HUGE)),
    *(("top_p", value) for value in (0, -1, 1.1, "x", [1])),
    *(("top_k", value) for value in (-2, 1.5, "5", HUGE, 2**31, True)),
    *(("min_p", value) for value in (-0.1, 1.1, "0")),
    *(("n", value) for value in (0, -1, 129, HUGE, 1.5, "2", True, [])),
    *(("max_tokens", value) for value in (0, -1, 1.5, "9", HUGE, 10**9, True, {})),
    *(("min_tokens", value) for value in (-1, 1.5, "9", HUGE, 10**6, False)),
    *(("presence_penalty", value) for value in (-2.1, 2.1, "x", HUGE)),
    *(("frequency_penalty", value) for value in (-2.1, 2.1, [], "x")),
    *(("repetition_penalty", value) for value in (0, -1, 101, "x", HUGE)),
    *(("logit_bias", value) for value in ([], "x", 1, {"a": 1}, {"-1": 1}, {"1.5": 1}, {"": 1})),
    *(("logit_bias", value) for value in ({"260": 1}, {"9" * 50: 1}, {"1": 101}, {"1": "x"})),
    ("logit_bias", {"1": HUGE}),
    ("logit_bias", {"²": 1}),
    ("logit_bias", {str(index): 0 for index in range(2000)}),
    *(("seed", value) for value in (1.5, "1", HUGE, 2**63, -(2**63) - 1, True)),
    *(("stop", value) for value in (1, "", [""], [1], ["a"] * 17, "x" * 1025, {}, [["a"]])),
    *(
        ("stop_token_ids", value)
        for value in (1, "1", [-1], [260], [1.5], ["1"], [1] * 300, [True])
    ),
    *(("stream", value) for value in ("true", 1, [])),
    *(("stream_options", value) for value in ([], "x", {"a": 1}, {"include_usage": 1})),
    ("stream_options", {"include_usage": True}),
    *(("ignore_eos", value) for value in (1, "true")),
    *(("skip_special_tokens", value) for value in (0, [])),
    *(("include_stop_str_in_output", value) for value in (1, "x")),
    *(("return_token_ids", value) for value in (1, "x")),
    *(("add_special_tokens", value) for value in (1, "x")),
    *(("store", True), ("service_tier", "flex")),
    *(("priority", value) for value in (False, 1.5, "1", 2**31, -(2**31) - 1, HUGE, [])),
    *(("cache_salt", value) for value in ("", "x" * 257, 1, [], {}, True)),
    *(("best_of", value) for value in (0, "x", 1.5, HUGE)),
    *(("use_beam_search", value) for value in (1, "x", [])),
    *(("prompt_logprobs", value) for value in (-1, 21, "x", 1.5)),
    *(("response_format", {"type": "xml"}), ("tools", [{}]), ("tool_choice", "required")),
    *(("unheard_of", 1), ("unheard_of", None), ("__class__", 1), ("x" * 200, 1), ("", 1)),
]
PROMPTS: list[Any] = [
    *(None, 1, 1.5, True, {}, [], [[]], [None], [True], [1.5], ["a", 1], [1, "a"], [[1], "a"]),
    *([["a"]], [[1.5]], [[[1]]], [-1], [260], [HUGE], [[260]], [[1], []], "", [""], ["a", ""]),
    *(["a"] * 300, "x" * 600, [1] * 600, [{}], {"a": "b"}),
]
MESSAGES: list[Any] = [
    *(None, "hi", {}, [], [None], ["hi"], [[]], [{}], [{"role": "user"} | {"x": 1}]),
    *([{"content": "x"}], [{"role": "robot", "content": "x"}], [{"role": 1, "content": "x"}]),
    *([{"role": "tool", "content": "x"}], [{"role": "user", "content": 1}]),
    *([{"role": "user", "content": {}}], [{"role": "user", "content": [1]}]),
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": "text", "text": None}]}],
    [{"role": "user", "content": [{"text": "x"}]}],
    [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
    [{"role": "user", "content": "x", "name": 1}],
    [{"role": "user", "content": "x" * 600}],
    USER * 9000,
]
CHAT_ONLY: list[tuple[str, Any]] = [
    *(("logprobs", value) for value in (1, "x", [])),
    *(("top_logprobs", value) for value in (1, -1, 21, 1.5, "x")),
    *(("max_completion_tokens", value) for value in (0, -1, "x", HUGE)),
    *(("add_generation_prompt", value) for value in (1, "x")),
    *(("continue_final_message", value) for value in (1, "x")),
    *(("chat_template_kwargs", value) for value in (1, [], "x", {"messages": []}, {"tools": []})),
    *(("chat_template_kwargs", value) for value in ({"tokenize": True}, {"chat_template": "x"})),
    *(("prompt", "hi"), ("echo", 1), ("chat_template", "{{ 1 }}"), ("functions", [{}])),
]
TEXT_ONLY: list[tuple[str, Any]] = [
    *(("logprobs", value) for value in (True, -1, 21, "x", 1.5)),
    *(("echo", value) for value in (1, "x")),
    *(("messages", USER), ("top_logprobs", 1), ("suffix", "x"), ("max_completion_tokens", 1)),
]
FIELDS = [
    *((CHAT, name, value) for name, value in SAMPLING + CHAT_ONLY),
    *((TEXT, name, value) for name, value in SAMPLING + TEXT_ONLY),
    *((TEXT, "prompt", value) for value in PROMPTS),
    *((CHAT, "messages", value) for value in MESSAGES),
]


def assert_refused(response: httpx.Response, status: range = range(400, 500)) -> dict[str, Any]:
    assert response.status_code in status, (response.status_code, response.text)
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 2000
    return dict(error)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_what_is_no_request_is_refused(harness: Harness, path: str) -> None:
    for body in RAW:
        response = await harness.client.post(path, content=body)
        assert response.status_code == 400, body[:80]
        assert_refused(response)
    assert harness.engine.requests == []


async def test_bad_fields_are_refused_by_name(harness: Harness) -> None:
    assert len(FIELDS) > 300
    for path, name, value in FIELDS:
        body = chat_with(**{name: value}) if path == CHAT else text_with(**{name: value})
        response = await harness.client.post(path, content=body)
        where = f"{path} {name}={str(value)[:60]}: {response.text[:200]}"
        assert response.status_code == 400, where
        param = assert_refused(response)["param"]
        if value is HUGE or value == -HUGE:
            continue  # JSON that is out of every range is refused as JSON or as a field
        named = name[:50] if len(name) > 100 else name
        assert (param or "").startswith(named), where
    assert harness.engine.requests == []


async def test_unlikely_bodies_that_are_fine(harness: Harness) -> None:
    for fields in (
        {"prompt": "\x00", "user": "u", "metadata": {"a": [1]}, "store": False},
        {"prompt": "😀" * 50, "temperature": 0, "top_p": 1, "stop": None, "n": None},
        {"prompt": [0], "seed": -(2**63), "logit_bias": {}, "stop_token_ids": []},
        {"prompt": "x", "max_tokens": 511, "service_tier": "auto", "prompt_cache_key": "k"},
        {
            "prompt": "x",
            "safety_identifier": "s",
            "response_format": {"type": "text"},
        },
    ):
        response = await harness.complete(**fields)
        assert response.status_code == 200, response.text


async def test_what_is_neutral_is_taken_at_its_neutral_values(harness: Harness) -> None:
    for name, values in NEUTRAL.items():
        for value in (None, *values):
            response = await harness.chat(**{name: value})
            assert response.status_code == 200, (name, value, response.text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *NEUTRAL})
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from([BASE, ADAPTER]) | JSON,
        "prompt": st.text(max_size=20) | st.lists(st.integers(-1, 300)) | JSON,
        "messages": st.lists(
            st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]) | JSON})
            | st.fixed_dictionaries({"role": st.just("user"), "content": st.text() | JSON})
            | JSON
        ),
    },
)


@given(body=BODIES, extra=st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=4))
async def test_no_json_gives_a_500(
    tokenizer: Tokenizer, body: dict[str, Any], extra: dict[str, Any]
) -> None:
    app = create_app(make_services(tokenizer, FakeEngine()))
    async with make_client(app) as client:
        for path in (CHAT, TEXT):
            content = json.dumps({**body, **extra})
            response = await client.post(path, content=content.encode("utf-8", "replace"))
            if response.status_code != 200:
                assert_refused(response)


@given(body=st.binary(max_size=200))
async def test_no_bytes_give_a_500(tokenizer: Tokenizer, body: bytes) -> None:
    app = create_app(make_services(tokenizer, FakeEngine()))
    async with make_client(app) as client:
        assert_refused(await client.post(TEXT, content=body))


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "multipart/form-data"},
        {"content-encoding": "gzip"},
        {"x-request-id": "x" * 1000},
        {"authorization": "Bearer"},
        {"accept": "image/png"},
    ],
)
async def test_odd_headers_do_no_harm(harness: Harness, headers: dict[str, str]) -> None:
    response = await harness.client.post(CHAT, content=chat_with(), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models/" + "x" * 5000, "/v1/models/%00", "/v1/models/%ff", "/v1//", "/%2e%2e/etc"]
)
async def test_odd_paths_are_not_found(harness: Harness, path: str) -> None:
    assert_refused(await harness.client.get(path))
