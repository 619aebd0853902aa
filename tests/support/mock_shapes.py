"""What a mock replica says at each endpoint: whole answers, and the events of streams."""

from __future__ import annotations

from typing import Any

import msgspec

NUM_PROMPT_TOKENS, NUM_CACHED_TOKENS = 11, 3
NAMED = ("/v1/responses", "/v1/messages")


def usage_at(path: str, num_tokens: int) -> dict[str, Any] | None:
    """The usage of an answer of so many tokens."""
    if path == "/v1/messages":
        return {
            "input_tokens": NUM_PROMPT_TOKENS - NUM_CACHED_TOKENS,
            "cache_read_input_tokens": NUM_CACHED_TOKENS,
            "cache_creation_input_tokens": 0,
            "output_tokens": num_tokens,
        }
    if path == "/v1/responses":
        details = {"cached_tokens": NUM_CACHED_TOKENS}
        return {
            "input_tokens": NUM_PROMPT_TOKENS,
            "input_tokens_details": details,
            "output_tokens": num_tokens,
            "total_tokens": NUM_PROMPT_TOKENS + num_tokens,
        }
    if path.endswith("completions"):
        return {
            "prompt_tokens": NUM_PROMPT_TOKENS,
            "completion_tokens": num_tokens,
            "total_tokens": NUM_PROMPT_TOKENS + num_tokens,
            "prompt_tokens_details": {"cached_tokens": NUM_CACHED_TOKENS},
        }
    if path == "/v1/embeddings":
        return {"prompt_tokens": NUM_PROMPT_TOKENS, "total_tokens": NUM_PROMPT_TOKENS}
    return None


def whole_at(path: str, text: str, num_tokens: int) -> dict[str, Any]:
    """A whole answer."""
    usage = usage_at(path, num_tokens)
    if path == "/v1/embeddings":
        return {"data": [{"index": 0, "embedding": [1.0]}], "usage": usage}
    if path in NAMED:
        return {"id": "mock", "output": text, "usage": usage}
    if usage is None:
        return {"count": 2, "tokens": [1, 2]}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    return {"id": "mock", "choices": [choice], "usage": usage}


def event_at(path: str, number: int, value: dict[str, Any]) -> bytes:
    """One event of a stream; at some paths it has a name, and responses' are numbered."""
    if path not in NAMED:
        return b"data: " + msgspec.json.encode(value) + b"\n\n"
    named = {"type": "mock.event", "sequence_number": number, **value}
    return b"event: mock.event\ndata: " + msgspec.json.encode(named) + b"\n\n"
