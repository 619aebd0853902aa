"""What leaves under ``/v1/messages``: whole answers, their blocks, usage, events."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

_ENCODER = msgspec.json.Encoder()


class AnswerText(Struct, frozen=True, tag_field="type", tag="text"):
    """Text."""

    text: str
    citations: None = None


class AnswerThinking(Struct, frozen=True, tag_field="type", tag="thinking"):
    """What the model thought; ``signature`` only tells one such block from another."""

    thinking: str
    signature: str


class AnswerToolUse(Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A tool that the model calls."""

    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = AnswerText | AnswerThinking | AnswerToolUse
StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class MessagesUsage(Struct, frozen=True):
    """Token counts; the prompt's are those that were computed and those that were cached."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0

    @classmethod
    def of(cls, num_prompt: int, num_cached: int, num_output: int) -> MessagesUsage:
        """The counts in Anthropic's way: ``input_tokens`` are those that were not cached."""
        return cls(num_prompt - num_cached, num_output, num_cached)


class MessagesAnswer(Struct, frozen=True, kw_only=True):
    """The body of an answer, and what opens a stream."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessagesUsage


class CountedTokens(Struct, frozen=True):
    """The body of ``/v1/messages/count_tokens``."""

    input_tokens: int


class MessagesErrorDetail(Struct, frozen=True):
    """The inside of an error body."""

    type: str
    message: str


class MessagesError(Struct, frozen=True):
    """The body of an error, as ``gateway.fleet.messages_errors`` makes it."""

    error: MessagesErrorDetail
    type: Literal["error"] = "error"
    request_id: str | None = None


def event(kind: str, **fields: object) -> bytes:
    """One event of a stream, whose name is also its data's ``type``."""
    data = _ENCODER.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"
