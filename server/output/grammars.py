"""Grammars around tool calls and thoughts, in llguidance's dialect of Lark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...engine.types import Grammar
from .call_rules import CallRules, quoted
from .reasoning import ThinkingMarks

_TO_ESCAPE = re.compile(r"\\.|[/\n]", re.DOTALL)
_ESCAPES = {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}

_BLANKS = r"[\s\x1c-\x1f]"  # of which Python has some more than the engine
_ANYTHING = r"/(.|\n)*/"
_UNBRACED = rf"/{_BLANKS}*([^\s\x1c-\x1f{{](.|\n)*)?/"


def forced_calls(calls: CallRules) -> list[str]:
    """Rules for an answer that is nothing but calls."""
    start = _openings(calls)[0] if calls.openings else calls.bare
    return [f"answer: {start}", *calls.rules]


def free_calls(calls: CallRules, may_be_bare: bool, thinking: str = "") -> list[str]:
    """Rules for an answer of text, in which what is called fits its function's schema.

    ``may_be_bare``: what begins with a brace is a call; ``thinking``: what begins with this mark is
    no text, since calls in thoughts are none.
    """
    is_bare = may_be_bare and bool(calls.bare)
    ways = ["text", *(f"to_{index} {rest}" for index, (_, rest) in enumerate(calls.openings))]
    if is_bare:
        ways.append(f"SPACE? {calls.bare}")
    without = rf" & ~/{_BLANKS}*{re.escape(thinking)}(.|\n)*/" if thinking else ""
    return [
        "answer: " + " | ".join(ways),
        *(f"to_{i}[lazy]: TEXT {quoted(mark)}" for i, (mark, _) in enumerate(calls.openings)),
        "text: TEXT",
        f"TEXT: {_UNBRACED if is_bare else _ANYTHING}{without}",
        r"SPACE: /[ \n]{1,8}/",
        *calls.rules,
    ]


def given_or_calls(given: Grammar, calls: CallRules) -> list[str]:
    """Rules for an answer by a grammar of the client's, or calls in its place, behind a mark.

    By a pattern what begins with a mark is a call; no other kind of grammar can be told so.
    """
    ways = " | ".join(["given", *_openings(calls)])
    marks = "|".join(_escaped(re.escape(mark)) for mark, _ in calls.openings)
    without = rf" & ~/{_BLANKS}*({marks})(.|\n)*/" if marks else ""
    return [f"answer: {ways}", *given_answer(given, "given", without), *calls.rules]


def _openings(calls: CallRules) -> list[str]:
    return [f"{quoted(mark)} {rest}" for mark, rest in calls.openings]


def given_answer(grammar: Grammar, name: str = "answer", without: str = "") -> list[str]:
    """Rules for an answer by a grammar of the client's, whose text stays as it is.

    ``name`` is the first one's; ``without`` is what a pattern does not match, beside its own.
    """
    if grammar.kind == "json_schema":
        return [f"{name}: %json {grammar.text}"]
    if grammar.kind == "regex":
        return [f"{name}: GIVEN", f"GIVEN: /{_escaped(grammar.text)}/{without}"]
    return [f"{name}: %lark {{", grammar.text, "}"]


def with_thoughts(rules: Sequence[str], marks: ThinkingMarks | None, is_inside: bool) -> Grammar:
    """The whole answer: thoughts are free, and may be left out where nothing opened them."""
    if marks is None:
        return Grammar("lark", "\n".join(["start: answer", *rules]))
    thoughts = [
        f"thoughts[lazy]: THOUGHTS {quoted(marks.end)}",
        r"THOUGHTS: /(.|\n)*/",
        r"BLANKS: /\n{0,2}/",
    ]
    if is_inside:
        start = ["start: thoughts BLANKS answer"]
    else:
        start = [
            "start: (OPENING thoughts BLANKS)? answer",
            f"OPENING: /{_BLANKS}*/ {quoted(marks.begin)}",
        ]
    return Grammar("lark", "\n".join([*start, *thoughts, *rules]))


def _escaped(regex: str) -> str:
    """A regular expression between slashes; what it has escaped itself stays so."""
    return _TO_ESCAPE.sub(lambda found: _ESCAPES.get(found[0], found[0]), regex)
