"""What nobody should send: refused, bounded, or over when they leave; at each endpoint."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from api_fuzz import error_shape
from server_process import ServerProcess, wait_for

from .conftest import API_KEY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KEY = {"authorization": f"Bearer {API_KEY}"}
LONG = 4000
USER = [{"role": "user", "content": "hello there"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
# A bias keeps these models from ending an answer; the last two endpoints have no such field.
ENDLESS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER, "max_tokens": LONG, "ignore_eos": True},
    TEXT: {"prompt": "hello", "max_tokens": LONG, "ignore_eos": True},
    RESPONSES: {"input": "hello", "max_output_tokens": LONG, "store": False},
    MESSAGES: {"messages": USER, "max_tokens": LONG},
}
PLAIN = {path: {**fields, "stream": False} for path, fields in ENDLESS.items()}
DEEP = b'{"a":' * 100_000
MAX_GROWTH = 64 << 20


def post(server: ServerProcess, path: str, **fields: Any) -> httpx.Response:
    body = json.dumps({"model": "base", **fields}).encode()
    return send(server, path, body)


def send(server: ServerProcess, path: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{server.base_url}{path}", content=body, headers=KEY, timeout=60)


def refused(path: str, response: httpx.Response, status: int = 400) -> str:
    assert response.status_code == status, response.text[:500]
    error_shape(path, response.json())
    return str(response.json()["error"]["message"])


def is_free(server: ServerProcess) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(server.metric(name) == 0 for name in names)


@pytest.mark.parametrize("path", ENDLESS)
def test_a_reader_that_leaves_frees_its_blocks(openai_server: ServerProcess, path: str) -> None:
    """Some answer may end by itself before: then another is asked for."""
    for seed in range(5):
        aborted = openai_server.metric("vllm:request_success_total", finished_reason="abort")
        body = {"model": "base", **ENDLESS[path], "stream": True}
        body |= {"seed": seed} if path in (CHAT, TEXT) else {}
        url = f"{openai_server.base_url}{path}"
        with httpx.stream("POST", url, json=body, headers=KEY, timeout=60) as response:
            assert response.status_code == 200, response.read()
            for _, _ in zip(range(12), response.iter_lines(), strict=False):
                pass
        wait_for(lambda: is_free(openai_server), 5)
        if openai_server.metric("vllm:request_success_total", finished_reason="abort") > aborted:
            return
    raise AssertionError("no request was ended by its reader's leaving")


@pytest.mark.parametrize("path", ENDLESS)
def test_who_does_not_wait_for_a_whole_answer_frees_its_blocks(
    openai_server: ServerProcess, path: str
) -> None:
    body = {"model": "base", **PLAIN[path]}
    with pytest.raises(httpx.ReadTimeout):
        impatient(f"{openai_server.base_url}{path}", body)
    wait_for(lambda: is_free(openai_server), 5)


def impatient(url: str, body: dict[str, Any]) -> None:
    """Asked several times, as an answer may end by itself in time."""
    for _ in range(5):
        httpx.post(url, json=body, headers=KEY, timeout=0.15)


def test_readers_that_do_not_read_cost_little(openai_server: ServerProcess) -> None:
    """What nobody takes waits as tokens, and is no more than was asked for."""
    server = psutil.Process(openai_server.process.pid)
    before = server.memory_info().rss
    sockets = [unread_stream(openai_server) for _ in range(32)]
    try:
        wait_for(lambda: openai_server.metric("vllm:num_requests_running") > 0, 10)
        grown, deadline = 0, time.monotonic() + 10
        while time.monotonic() < deadline:
            grown = max(grown, server.memory_info().rss - before)
            time.sleep(0.1)
        assert grown < MAX_GROWTH, f"{grown >> 20} MiB"
        assert post(openai_server, TEXT, prompt="a", max_tokens=2).status_code == 200
    finally:
        for one in sockets:
            one.close()
    wait_for(lambda: is_free(openai_server), 10)


def unread_stream(server: ServerProcess) -> socket.socket:
    """A stream that was asked for and is never read from, through a small window."""
    address = urlsplit(server.base_url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port))
    body = json.dumps({"model": "base", "stream": True, **ENDLESS[TEXT]}).encode()
    head = f"POST {TEXT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


@pytest.mark.parametrize("path", ENDLESS)
def test_a_prompt_too_long_says_both_numbers(openai_server: ServerProcess, path: str) -> None:
    text = "x" * 5000
    fields: dict[str, Any] = {"max_output_tokens" if path == RESPONSES else "max_tokens": 4}
    if path == TEXT:
        fields["prompt"] = text
    elif path == RESPONSES:
        fields |= {"input": text, "store": False}
    else:
        fields["messages"] = [{"role": "user", "content": text}]
    message = refused(path, post(openai_server, path, **fields))
    assert "4096" in message
    numbers = [int(word) for word in message.replace(",", " ").split() if word.isdecimal()]
    assert any(number >= 5000 for number in numbers), message


@pytest.mark.parametrize("path", [*ENDLESS, "/v1/embeddings", "/tokenize"])
def test_deep_json_and_large_bodies(openai_server: ServerProcess, path: str) -> None:
    for body in (DEEP, b'{"model":' + DEEP, b'{"messages":' + b"[" * 200_000):
        refused(path, send(openai_server, path, body))
    large = json.dumps({"model": "base", "input": "x" * (17 << 20)}).encode()
    assert "16777216" in refused(path, send(openai_server, path, large), 413)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def in_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


HUGE: list[tuple[str, Any]] = [
    ("n", 129),
    ("n", 10**30),
    ("top_logprobs", 10**6),
    ("stop", ["a"] * 1000),
    ("stop", "x" * 100_000),
    ("stop_token_ids", [1] * 100_000),
    ("logit_bias", {str(number): 1 for number in range(200)} | {"9" * 400: 1}),
    ("max_tokens", 10**12),
    ("bad_words", ["x"] * 100_000),
    ("allowed_token_ids", [1] * 100_000),
    ("response_format", in_format(nested(70))),
    ("response_format", in_format({"enum": [f"{number}" * 20 for number in range(100_000)]})),
    ("response_format", in_format({"type": "nonsense"})),
    ("structured_outputs", {"regex": "(" * 5000}),
    ("structured_outputs", {"choice": ["x" * 50] * 100_000}),
    ("structured_outputs", {"grammar": "start: " + "start | " * 20_000 + "start"}),
    ("tools", [{"type": "function", "function": {"name": "f"}}] * 5000),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": nested(70)}}]),
    ("messages", USER * 20_000),
]


@pytest.mark.parametrize(
    ("field", "value"), HUGE, ids=[f"{name}-{number}" for number, (name, _) in enumerate(HUGE)]
)
def test_huge_values_are_refused_by_name(
    openai_server: ServerProcess, field: str, value: Any
) -> None:
    fields: dict[str, Any] = {"messages": USER, "max_tokens": 4, "logprobs": True}
    fields |= {"tool_choice": "required"} if field == "tools" else {}
    began = time.monotonic()
    response = post(openai_server, CHAT, **{**fields, field: value})
    refused(CHAT, response)
    named = {field, "max_completion_tokens"} if field == "max_tokens" else {field}
    param = str(response.json()["error"]["param"])
    assert any(param.startswith(name) for name in named), response.text[:300]
    assert time.monotonic() - began < 20
    assert openai_server.is_ready()


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": in_format({"type": "string", "pattern": "(a{1,9999}){1,9999}"})},
        {"structured_outputs": {"regex": "((a{1,1000}){1,1000}){1,1000}"}},
        {"structured_outputs": {"grammar": 'start: a a\na: start | "x" a | "x"'}},
        {"response_format": in_format({"$ref": "#"})},
        {"response_format": in_format({"allOf": [{"type": "string"}, {"type": "number"}]})},
    ],
)
def test_costly_and_odd_grammars_end_in_time(
    openai_server: ServerProcess, fields: dict[str, Any]
) -> None:
    """Served or refused, but nobody else waits for them."""
    began = time.monotonic()
    response = post(openai_server, CHAT, messages=USER, max_tokens=8, **fields)
    if response.status_code != 200:
        refused(CHAT, response)
    assert time.monotonic() - began < 20
    assert post(openai_server, TEXT, prompt="a", max_tokens=2).status_code == 200
