"""Grammars around tool calls and thoughts, in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...engine.types import Grammar
from .reasoning import ThinkingMarks

CALL, CALL_END = "<tool_call>", "</tool_call>"

_TO_ESCAPE = re.compile(r"\\.|[/\n]", re.DOTALL)
_ESCAPES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """The calls that an answer may have: each function's name, with its arguments' schema."""

    functions: Sequence[tuple[str, str]]
    is_single: bool
    with_marks: bool

    def rules(self) -> list[str]:
        """Rules by which ``calls`` is what is behind the first mark, or the JSON without one."""
        rules = []
        for index, (name, schema) in enumerate(self.functions):
            head = f'{{"name": {json.dumps(name)}, "arguments": '
            rules += [
                f'call_{index}: {_quoted(head)} args_{index} "}}"',
                f"args_{index}: %json {schema}",
            ]
        rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(self.functions))))
        if self.with_marks:
            more = "" if self.is_single else f" ({_quoted(f'{chr(10)}{CALL}{chr(10)}')} marked)*"
            rules += [f"marked: call {_quoted(f'{chr(10)}{CALL_END}')}", f"calls: marked{more}"]
        else:
            rules.append(
                'calls: "[" call "]"' if self.is_single else 'calls: "[" call (", " call)* "]"'
            )
        return rules


def forced_calls(calls: CallGrammar) -> list[str]:
    """Rules for an answer that is nothing but calls."""
    start = f"{_quoted(f'{CALL}{chr(10)}')} calls" if calls.with_marks else "calls"
    return [f"answer: {start}", *calls.rules()]


def free_calls(calls: CallGrammar) -> list[str]:
    """Rules for an answer of text, in which what is called fits its function's schema."""
    assert calls.with_marks
    return [
        f"answer: text | to_call {_quoted(chr(10))} calls",
        f"to_call[lazy]: TEXT {_quoted(CALL)}",
        "text: TEXT",
        r"TEXT: /(.|\n)*/",
        *calls.rules(),
    ]


def given_or_calls(given: Sequence[str], calls: CallGrammar) -> list[str]:
    """Rules for an answer by a grammar of the client's, or calls in its place."""
    assert calls.with_marks
    renamed = [rule.replace("answer:", "given:", 1) for rule in given]
    return [
        f"answer: given | {_quoted(f'{CALL}{chr(10)}')} calls",
        *renamed,
        *calls.rules(),
    ]


def given_answer(grammar: Grammar) -> list[str]:
    """Rules for an answer by a grammar of the client's."""
    if grammar.kind == "json_schema":
        return [f"answer: %json {grammar.text}"]
    if grammar.kind == "regex":
        return ["answer: GIVEN", f"GIVEN: /{_escaped(grammar.text)}/"]
    return ["answer: %lark {", grammar.text, "}"]


def with_thoughts(rules: Sequence[str], marks: ThinkingMarks | None, is_inside: bool) -> Grammar:
    """The whole answer: thoughts are free, and may be left out where nothing opened them."""
    if marks is None:
        return Grammar("lark", "\n".join(["start: answer", *rules]))
    thoughts = [
        f"thoughts[lazy]: THOUGHTS {_quoted(marks.end)}",
        r"THOUGHTS: /(.|\n)*/",
        r"BLANKS: /\n{0,2}/",
    ]
    if is_inside:
        start = ["start: thoughts BLANKS answer"]
    else:
        start = [f"start: ({_quoted(marks.begin)} thoughts BLANKS)? answer"]
    return Grammar("lark", "\n".join([*start, *thoughts, *rules]))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _escaped(regex: str) -> str:
    """A regular expression between slashes; what it has escaped itself stays so."""
    return _TO_ESCAPE.sub(lambda found: _ESCAPES.get(found[0], found[0]), regex)
