"""Looks at a grammar in a process of its own: what hangs or crashes it there harms nobody."""

from __future__ import annotations

from functools import cache

from ...engine.errors import RequestError
from ...engine.grammar.compiler import compile_grammar
from ...engine.grammar.vocabulary import GrammarTokenizer
from ...engine.types import Grammar
from .gbnf import Gbnf, in_lark


def check(wanted: Grammar | Gbnf) -> tuple[Grammar | Gbnf, str | None]:
    """The grammar as the engine is to have it, and why it can't be had, if it can't."""
    grammar = wanted
    try:
        grammar = in_lark(wanted) if isinstance(wanted, Gbnf) else wanted
        matcher = compile_grammar(grammar, _bytes())
    except RequestError as error:
        return grammar, error.message
    num_allowed = sum(byte.bit_count() for byte in matcher.compute_bitmask())
    return grammar, None if num_allowed else "nothing matches it"


@cache
def _bytes() -> GrammarTokenizer:
    return GrammarTokenizer.of_bytes()
