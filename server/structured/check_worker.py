"""Looks at a grammar in a process of its own: what hangs or crashes it there harms nobody."""

from __future__ import annotations

from functools import cache

from ...engine.errors import RequestError
from ...engine.grammar.compiler import compile_grammar
from ...engine.grammar.vocabulary import GrammarTokenizer
from ...engine.types import Grammar


def check(grammar: Grammar) -> tuple[Grammar, str | None]:
    """The grammar as the engine is to have it, and why it can't be had, if it can't."""
    try:
        grammar = _without_gbnf(grammar)
        matcher = compile_grammar(grammar, _bytes())
    except RequestError as error:
        return grammar, error.message
    num_allowed = sum(byte.bit_count() for byte in matcher.compute_bitmask())
    return grammar, None if num_allowed else "nothing matches it"


@cache
def _bytes() -> GrammarTokenizer:
    return GrammarTokenizer.of_bytes()


def _without_gbnf(grammar: Grammar) -> Grammar:
    """GBNF, as llama.cpp and xgrammar have it, in Lark; told by its ``::=``."""
    if grammar.kind != "lark" or "::=" not in grammar.text:
        return grammar
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return Grammar("lark", gbnf_to_lark(grammar.text))
    except Exception as error:  # whatever a broken text makes it raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError("grammar", f"is no GBNF: {reason}") from error
