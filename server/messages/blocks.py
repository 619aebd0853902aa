"""An answer's parts as content blocks: one open at a time, numbered as they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

from pydantic_core import from_json

from ..output.parts import (
    ContentText,
    OutputPart,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
    call_id,
)
from .wire import AnswerBlock, AnswerText, AnswerThinking, AnswerToolUse

BlockKind = Literal["text", "thinking", "tool_use"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins; ``block`` is what it is while nothing is in it."""

    index: int
    block: AnswerBlock


@dataclass(frozen=True, slots=True)
class Grown:
    """The open block has more ``text``: for a tool, JSON of its input."""

    index: int
    kind: BlockKind
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The open block is whole."""

    index: int
    block: AnswerBlock


BlockChange = Opened | Grown | Closed


@dataclass(slots=True)
class _Open:
    kind: BlockKind
    index: int
    block: AnswerBlock
    texts: list[str] = field(default_factory=list)


class Blocks:
    """Turns parts into changes of blocks, the same however the parts were cut.

    Text of nothing but white space between two other blocks makes none. ``shows_thinking`` False
    leaves the text of thinking out.
    """

    def __init__(self, answer_id: str, *, shows_thinking: bool = True) -> None:
        self._answer_id = answer_id
        self._shows_thinking = shows_thinking
        self._open: _Open | None = None
        self._num_blocks = 0
        self._blank = ""
        self.num_calls = 0

    def take(self, parts: Iterable[OutputPart]) -> list[BlockChange]:
        """What these parts change."""
        changes: list[BlockChange] = []
        for part in parts:
            changes += self._take(part)
        return changes

    def close(self) -> list[BlockChange]:
        """The answer is over."""
        self._blank = ""
        if self._open is None:
            return []
        closed, self._open = self._open, None
        return [Closed(closed.index, _whole(closed))]

    def _take(self, part: OutputPart) -> list[BlockChange]:
        match part:
            case ContentText(text):
                return self._content(text)
            case ReasoningText(text):
                changes = self._in("thinking")
                return [*changes, *self._grow(text)] if self._shows_thinking else changes
            case ToolCallBegin(index, name):
                self.num_calls += 1
                block = AnswerToolUse(tool_use_id(self._answer_id, index), name, {})
                return [*self.close(), self._begin("tool_use", block)]
            case ToolCallArguments(text=text):
                return self._grow(text)

    def _content(self, text: str) -> list[BlockChange]:
        if self._open is None or self._open.kind != "text":
            self._blank += text
            if not self._blank.strip():
                return []
            text, self._blank = self._blank, ""
        return [*self._in("text"), *self._grow(text)]

    def _in(self, kind: Literal["text", "thinking"]) -> list[BlockChange]:
        """Have a block of this kind open."""
        if self._open is not None and self._open.kind == kind:
            return []
        signature = _signature(self._answer_id, self._num_blocks)
        block = AnswerText("") if kind == "text" else AnswerThinking("", signature)
        return [*self.close(), self._begin(kind, block)]

    def _begin(self, kind: BlockKind, block: AnswerBlock) -> BlockChange:
        self._open = _Open(kind, self._num_blocks, block)
        self._num_blocks += 1
        return Opened(self._open.index, block)

    def _grow(self, text: str) -> list[BlockChange]:
        assert self._open is not None
        if not text:
            return []
        self._open.texts.append(text)
        return [Grown(self._open.index, self._open.kind, text)]


def tool_use_id(answer_id: str, call_index: int) -> str:
    """The id of a call, in Anthropic's dress."""
    return f"toolu_{call_id(answer_id, 0, call_index).removeprefix('call_')}"


def _signature(answer_id: str, index: int) -> str:
    """Anthropic's clients send thinking back only with one; here nobody checks it."""
    return blake2b(f"{answer_id}/{index}".encode(), digest_size=16).hexdigest()


def _whole(opened: _Open) -> AnswerBlock:
    text, block = "".join(opened.texts), opened.block
    if isinstance(block, AnswerToolUse):
        return AnswerToolUse(block.id, block.name, _input(text))
    if isinstance(block, AnswerThinking):
        return AnswerThinking(text, block.signature)
    return AnswerText(text)


def _input(text: str) -> dict[str, object]:
    """A tool's input; of JSON that was cut off, what is there, as Anthropic's SDK reads it."""
    try:
        value = from_json(text, allow_partial=True, allow_inf_nan=False) if text.strip() else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
