"""Streams of every endpoint and kind, their replica killed: each says what it would have."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from chaos_cases import BASE, SERVE_FLAGS, ChaosModels
from gateway_process import Fleet, fleet
from surface_streams import CHAT, MESSAGES, RESPONSES, TEXT, said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

NUM_TOKENS = 220
ASKED: list[Any] = [{"role": "user", "content": "Tell me of it, at length."}]
LONG_TEXT = {"type": "string", "minLength": 400}
SCHEMA = {
    "type": "object",
    "properties": {"story": LONG_TEXT, "tags": {"type": "array", "items": {"type": "integer"}}},
    "required": ["story", "tags"],
    "additionalProperties": False,
}
FUNCTION = {"name": "tell", "description": "Tells a story.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "story", "schema": SCHEMA, "strict": True}}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"messages": ASKED, "max_tokens": NUM_TOKENS, "seed": 7, "temperature": 0.9, **fields}
    return CHAT, body


def response(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"input": ASKED, "max_output_tokens": NUM_TOKENS, "seed": 7, **fields}
    return RESPONSES, body


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return MESSAGES, {"messages": ASKED, "max_tokens": NUM_TOKENS, "seed": 7, **fields}


FREE = {"ignore_eos": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": chat(temperature=0, **FREE),
    "three": chat(n=3, **FREE),
    "tools that may be called": chat(tools=TOOLS, **FREE),
    "a tool that must be": chat(tools=TOOLS, tool_choice="required"),
    "a named tool": chat(
        tools=TOOLS, tool_choice={"type": "function", "function": {"name": "tell"}}, n=2
    ),
    "schema": chat(response_format=FORMAT),
    "regex": (
        TEXT,
        {
            "prompt": "Once",
            "max_tokens": NUM_TOKENS,
            "seed": 7,
            "structured_outputs": {"regex": "([a-f0-9]{4}-){60}[0-9]{4}"},
        },
    ),
    "response": response(**FREE),
    "response with a tool": response(
        tools=[{"type": "function", **FUNCTION}], tool_choice="required"
    ),
    "message": message(),
    "message with a tool": message(
        tools=[{"name": "tell", "input_schema": SCHEMA}], tool_choice={"type": "any"}
    ),
}


@pytest.fixture(scope="module")
def house(chaos_models: ChaosModels) -> Iterator[Fleet]:
    with fleet(chaos_models.model, serve_flags=SERVE_FLAGS) as running:
        yield running


@dataclass
class Stream:
    """One client's: ``begun`` is set once ``num_bytes`` of it are there."""

    path: str
    body: dict[str, Any]
    begun: threading.Event
    num_bytes: int = 4000

    def read(self, url: str) -> tuple[str, str]:
        """All of it, and where it began."""
        parts: list[str] = []
        asked = {"model": BASE, "stream": True, **self.body}
        headers = {"x-branchline-route": "1"}
        try:
            with httpx.stream(
                "POST", f"{url}{self.path}", json=asked, headers=headers, timeout=90
            ) as got:
                assert got.status_code == 200, got.read()
                for text in got.iter_text():
                    parts.append(text)
                    if sum(map(len, parts)) > self.num_bytes:
                        self.begun.set()
        finally:
            self.begun.set()
        return "".join(parts), got.headers["x-branchline-route"]


def read_all(house: Fleet, victim: str | None = None) -> dict[str, tuple[str, str]]:
    """Every case at once; with a victim it is killed when all have begun."""
    streams = {name: Stream(*case, threading.Event()) for name, case in CASES.items()}
    with ThreadPoolExecutor(len(streams)) as pool:
        futures = {name: pool.submit(one.read, house.url) for name, one in streams.items()}
        if victim is not None:
            for one in streams.values():
                assert one.begun.wait(60)
            house.kill(victim)
        return {name: future.result() for name, future in futures.items()}


def test_each_kind_of_stream_survives_its_replica(house: Fleet) -> None:
    expected = {name: said(CASES[name][0], got) for name, (got, _) in read_all(house).items()}
    assert any(choice["calls"] for choice in expected["a tool that must be"].values())
    hit: set[str] = set()
    for victim in ("replica-1", "replica-2"):
        before = house.gateway.metric("branchline_gateway_resumes_total")
        for name, (got, route) in read_all(house, victim).items():
            assert said(CASES[name][0], got) == expected[name], name
            if f"replica={victim};" in route:
                hit.add(name)
        assert house.gateway.metric("branchline_gateway_resumes_total") > before
        house.start_replica(victim)
        house.replicas[victim].wait_until_ready(120)
        house.wait_until_up()
    # Routing is not ours to decide; most of them were cut in one of the rounds.
    assert len(hit) >= len(CASES) // 2, hit


@pytest.mark.parametrize("name", ["greedy", "response with a tool", "message"])
def test_where_none_is_left_the_stream_says_so(house: Fleet, name: str) -> None:
    path, body = CASES[name]
    stream = Stream(path, body, threading.Event())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(stream.read, house.url)
        assert stream.begun.wait(60)
        for victim in list(house.replicas):
            house.kill(victim)
        got, _ = future.result(90)
    last = [block for block in got.split("\n\n") if block and block != "data: [DONE]"][-1]
    if path == CHAT:
        assert "stream_interrupted" in last
        assert got.endswith("data: [DONE]\n\n")
    else:
        assert last.startswith('event: error\ndata: {"type":"error"')
        assert "[DONE]" not in got
    for victim in list(house.replicas):
        house.start_replica(victim)
    for victim in house.replicas:
        house.replicas[victim].wait_until_ready(120)
    house.wait_until_up()
