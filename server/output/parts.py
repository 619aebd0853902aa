"""What an answer's text is made of, piece by piece: reasoning, content, tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of what it says."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """The ``index``-th call of a tool begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of the ``index``-th call's arguments: JSON, in pieces."""

    index: int
    text: str


OutputPart = ReasoningText | ContentText | ToolCallBegin | ToolCallArguments


class OutputParser(Protocol):
    """Sorts one choice's text into parts as it comes.

    All that it has given after some text depends on that text alone, however it was cut into
    pieces: a stream that goes on elsewhere feeds in one piece what was sent in many. What may still
    be the beginning of a mark is held back.
    """

    @property
    def is_over(self) -> bool:
        """Whether nothing can come of more text: the one call that may be has been."""

    def push(self, text: str) -> list[OutputPart]:
        """The parts that become certain with ``text``."""

    def finish(self) -> list[OutputPart]:
        """What was held back; the choice is over."""


def call_id(answer_id: str, choice_index: int, call_index: int) -> str:
    """The id of a tool call: the same on each replica that carries an answer on."""
    name = f"{answer_id}/{choice_index}/{call_index}".encode()
    return f"call_{blake2b(name, digest_size=12).hexdigest()}"
