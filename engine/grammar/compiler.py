"""From a grammar's text to a matcher, within limits of time and memory."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..types import Grammar
from .vocabulary import GrammarTokenizer

if TYPE_CHECKING:  # an engine may run without the library: then no request has a grammar
    from llguidance import LLMatcher, LLParserLimits

MAX_REASON = 500

_ANY_TOKENS = '%llguidance {"no_forcing": true}'
"""Where only one text can follow, any token of it may: the model has its own ways to spell it."""
_NOBODYS = re.compile(rf"\(in regex\)|<non-verbose/>|\d+ \| {re.escape(_ANY_TOKENS)}")
_OURS = re.compile(
    r"at 1\(8\): (?=invalid regex|failed to compile JSON)|1 \| start: (?:/|%json).*\n? *\^?"
)
"""What is ours in an error of a schema or regex, which is put into a grammar of one line."""


def compile_grammar(grammar: Grammar, tokenizer: GrammarTokenizer) -> LLMatcher:
    """A matcher at the grammar's beginning; raises RequestError where there can be none.

    Most of the time that it takes the GIL is free.
    """
    from llguidance import LLMatcher

    try:
        matcher = LLMatcher(tokenizer.ll, _source(grammar), log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # and the lexer's first states
    except BaseException as error:  # a panic in Rust is none of Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise RequestError("grammar", reason_of(str(error), grammar)) from error
    if matcher.is_error():
        raise RequestError("grammar", reason_of(matcher.get_error(), grammar))
    return matcher


def reason_of(error: str, grammar: Grammar | None = None) -> str:
    """What llguidance says of a grammar, in one line of bounded length."""
    line = _NOBODYS.sub("", error)
    if grammar is not None and grammar.kind != "lark":
        line = _OURS.sub("", line)
    line = " ".join(line.split())
    if line == "NoExtensionBias":
        return "nothing matches it"
    return line[:MAX_REASON] or "can't be compiled"


@cache
def _limits() -> LLParserLimits:
    """A step of a matcher takes about 15 ms at most, and its lexer about 60 MB."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2_000,
        max_lexer_states=32_768,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance takes it; JSON schemas carry their options (``x-guidance``)."""
    from llguidance import LLMatcher

    match grammar.kind:
        case "json_schema":
            schema = json.dumps(json.loads(grammar.text))  # nothing may stand behind it
            text = f"start: %json {schema}"
        case "regex":
            (rules,) = json.loads(LLMatcher.grammar_from_regex(grammar.text))["grammars"]
            text = rules["lark_grammar"]
        case "lark":
            text = grammar.text
            if text.lstrip().startswith("{"):
                raise ValueError("it is JSON, and must be rules of a grammar")
    # Behind the rest, so that lines keep their numbers in errors.
    return LLMatcher.grammar_from_lark(f"{text}\n{_ANY_TOKENS}")
