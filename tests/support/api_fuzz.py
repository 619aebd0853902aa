"""schemathesis over a description of ours: what it makes up is sent, and each answer looked at.

A case may be *aimed*: names that a description cannot know (models, adapters) are put in and what
costs time is bounded, so that the case gets to where the work is done.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

Send = Callable[[schemathesis.Case], Any]

BASE = "base"
NAMES = (BASE, "tenant-4", "nobody")
CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

# What an answer costs: bounded where a case is aimed.
MOST = {"n": 3, "best_of": 3, "max_tokens": 8, "max_completion_tokens": 8, "max_output_tokens": 8}

LENGTHS = {
    "/v1/chat/completions": "max_tokens",
    "/v1/completions": "max_tokens",
    "/v1/messages": "max_tokens",
    "/v1/responses": "max_output_tokens",
}

# What stays in an aimed case: few other fields go together, so most are left out.
KEPT = {"model", "messages", "prompt", "input", "tokens", "max_tokens"}

_ANTHROPIC = "/v1/messages"


@dataclass
class Seen:
    """What came back: statuses of each operation, and how many cases there were."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, label: str, status: int) -> None:
        self.statuses.setdefault(label, Counter())[status] += 1

    @property
    def num_cases(self) -> int:
        return sum(counts.total() for counts in self.statuses.values())

    def report(self) -> str:
        lines = [f"{label}: {dict(sorted(c.items()))}" for label, c in self.statuses.items()]
        return "\n".join([*lines, f"{self.num_cases} cases"])


def operations(schema: Any) -> Iterator[Any]:
    """The operations of a description, all of which have to be readable."""
    for found in schema.get_all_operations():
        yield found.ok()


def fuzz(operation: Any, send: Send, seen: Seen, num_cases: int) -> None:
    """Send ``num_cases`` cases that fit the description and as many that don't, and look."""
    _fuzz(operation, send, seen, num_cases, GenerationMode.POSITIVE)
    with suppress(Unsatisfiable):  # what takes nothing can't be asked wrongly
        _fuzz(operation, send, seen, num_cases, GenerationMode.NEGATIVE)


def _fuzz(operation: Any, send: Send, seen: Seen, num_cases: int, mode: GenerationMode) -> None:
    strict = mode is GenerationMode.NEGATIVE

    @settings(
        max_examples=num_cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        aim=st.none() | st.integers(0, 2**32),
    )
    def run(case: schemathesis.Case, aim: int | None) -> None:
        if aim is not None:
            aimed(case, random.Random(aim))
        response = send(case)
        seen.add(operation.label, response.status_code)
        check(case, response, strict=strict and aim is None)

    run()


def aimed(case: schemathesis.Case, chance: random.Random) -> None:
    """Put in names that are served, and bound what makes an answer long."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = chance.choice(NAMES)
    body = case.body
    if not isinstance(body, dict) or "lora_adapter" in case.operation.path:
        return
    for name in body.keys() - KEPT:
        if chance.random() < 0.7:
            del body[name]
    body["model"] = BASE
    if case.operation.path in LENGTHS:
        body.setdefault(LENGTHS[case.operation.path], 8)
    for name, most in MOST.items():
        if isinstance(body.get(name), int):
            body[name] = min(body[name], most)
    if isinstance(body.get("messages"), list) and chance.random() < 0.8:
        body["messages"] = [{"role": "user", "content": "hi"}]
    for name in ("prompt", "input"):
        if name in body and chance.random() < 0.6:
            body[name] = "hi"


def check(case: schemathesis.Case, response: Any, strict: bool) -> None:
    """Raise for an answer that is none of ours; ``strict``: the request had to be refused."""
    content_type = "".join(response.headers.get("content-type", ()))
    if response.status_code >= 400:
        assert response.status_code < 500, f"{case.body!r}: {response.text[:500]}"
        error_shape(case.operation.path, response.json())
        return
    checks = [*CHECKS, negative_data_rejection] if strict else list(CHECKS)
    if content_type.startswith("text/event-stream"):
        checks.remove(response_schema_conformance)
        whole_stream(response.text)
    case.validate_response(response, checks=checks)


def error_shape(path: str, body: Any) -> None:
    """OpenAI's shape, or Anthropic's where its clients ask."""
    if path.startswith(_ANTHROPIC):
        assert set(body) <= {"type", "error", "request_id"}, body
        assert body["type"] == "error", body
        assert set(body["error"]) == {"type", "message"}, body
        assert body["error"]["message"], body
        return
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}, body
    assert isinstance(body["error"]["message"], str), body
    assert body["error"]["message"], body


def whole_stream(text: str) -> None:
    """A stream of whole events, none of which says that the server failed."""
    groups = [group for group in text.split("\n\n") if group]
    assert text.endswith("\n\n"), text[-200:]
    for group in groups:
        data = group.rpartition("data: ")[2]
        if data == "[DONE]":
            continue
        error = json.loads(data).get("error")
        server_fault = isinstance(error, dict) and error.get("type") in (
            "server_error",
            "api_error",
        )
        assert not server_fault, data
