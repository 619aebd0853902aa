"""Requests for responses, as tests make them."""

from __future__ import annotations

from typing import Any

from .conftest import BASE, Harness

PATH = "/v1/responses"

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "4"}


async def respond(harness: Harness, given: Any = "hi", **fields: Any) -> dict[str, Any]:
    response = await harness.post(PATH, {"model": BASE, "input": given, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def prompt_of(harness: Harness, index: int = -1) -> str:
    ids = harness.engine.requests[index].prompt_token_ids
    return harness.services.tokenizer.decode(ids)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}
