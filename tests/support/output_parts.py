"""Parts of an answer, put together for a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from branchline.server.output.parts import (
    ContentText,
    OutputParser,
    OutputPart,
    ReasoningText,
    ToolCallArguments,
    ToolCallBegin,
)


@dataclass
class Parsed:
    """All that a parser gave."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, parts: Iterable[OutputPart]) -> None:
        """Join what is new; calls have to come in order."""
        for part in parts:
            match part:
                case ContentText(text):
                    self.content += text
                case ReasoningText(text):
                    self.reasoning += text
                case ToolCallBegin(index, name):
                    assert index == len(self.calls)
                    self.calls.append([name, ""])
                case ToolCallArguments(index, text):
                    assert index == len(self.calls) - 1
                    self.calls[index][1] += text


def parse_pieces(new_parser: Callable[[], OutputParser], pieces: Sequence[str]) -> list[Parsed]:
    """What a new parser has given after each piece, and after the end."""
    parser, parsed, states = new_parser(), Parsed(), []
    for piece in [*pieces, None]:
        parsed.add(parser.finish() if piece is None else parser.push(piece))
        copy = [list(call) for call in parsed.calls]
        states.append(Parsed(parsed.content, parsed.reasoning, copy))
    return states


def parse(new_parser: Callable[[], OutputParser], text: str) -> Parsed:
    """What a new parser makes of a whole text."""
    return parse_pieces(new_parser, [text])[-1]
