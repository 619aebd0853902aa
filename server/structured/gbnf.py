"""GBNF: grammars as llama.cpp and xgrammar have them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...engine.errors import RequestError
from ...engine.types import Grammar

_RULE = re.compile(r"^[ \t]*[A-Za-z_][\w-]*[ \t]*::=", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gbnf:
    """A grammar that the engine can have in Lark only."""

    text: str


def is_gbnf(text: str) -> bool:
    """Whether a client's grammar has a rule of GBNF; Lark has ``::=`` inside of texts only."""
    return _RULE.search(text) is not None


def in_lark(grammar: Gbnf) -> Grammar:
    """The same in Lark; raises RequestError. May take long: for a process of its own."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return Grammar("lark", gbnf_to_lark(grammar.text))
    except Exception as error:  # whatever a broken text makes it raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError("grammar", f"is no GBNF: {reason}") from error
