"""Which family's marks an answer has: as the operator says, else by template and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .beside_form import BesideFormParser
from .json_calls import BARE_FORM, HERMES, JSON, LLAMA3, MISTRAL, JsonCallsParser
from .parts import OutputParser
from .plain import PlainParser
from .reasoning import ReasoningParser, ThinkingMarks
from .xml_calls import CALL, FUNCTION, XmlCallsParser

AUTO, NONE = "auto", "none"
XML = "qwen3_coder"

BARE = "bare"
"""The name of what the other families are forced into; not for operators."""

JSON_FORMS = {"hermes": HERMES, "llama3_json": LLAMA3, "mistral": MISTRAL, "json": JSON}
TOOL_PARSERS = (AUTO, NONE, *JSON_FORMS, XML)

THINK = ThinkingMarks("<think>", "</think>")
BRACKETS = ThinkingMarks("[THINK]", "[/THINK]")
THINKING = {"qwen3": THINK, "deepseek_r1": THINK, "mistral": BRACKETS}
REASONING_PARSERS = (AUTO, NONE, *THINKING)

# A word that shows that a template or a tokenizer was made for a form of calls.
_SIGNS = (("[TOOL_CALLS]", "mistral"), ("<|python_tag|>", "llama3_json"))
_MARKS = {
    "hermes": HERMES.marks,
    "llama3_json": LLAMA3.marks,
    "mistral": (*MISTRAL.marks, "[ARGS]", "[CALL_ID]"),
    "json": JSON.marks,
    XML: (CALL, "</tool_call>"),
}


@dataclass(frozen=True, slots=True)
class OutputFamily:
    """The names of a model's two parsers, ``none`` where it has none.

    ``bare``: by which characters a call without a mark may begin; None: as its form has it.
    """

    tools: str
    reasoning: str
    bare: str | None = None

    @property
    def thinking(self) -> ThinkingMarks | None:
        """What stands around its thoughts."""
        return THINKING.get(self.reasoning)

    @property
    def tool_marks(self) -> Sequence[str]:
        """What a parser has to see of calls, even where it is a special token."""
        return _MARKS.get(self.tools, ())

    def held_to_grammar(self) -> OutputFamily:
        """The same where a grammar knows its calls: an answer that begins with a brace is one."""
        form = JSON_FORMS.get(self.tools)
        return self if form is None or not form.bare else replace(self, bare="{")

    def opens_thinking(self, prompt: str) -> bool:
        """Whether an answer to this prompt begins inside of the thoughts."""
        thinking = self.thinking
        if thinking is None:
            return False
        end = prompt.rstrip()
        if self.reasoning == "deepseek_r1":  # whose templates leave that to the model
            return not end.endswith(thinking.end)
        return end.endswith(thinking.begin)

    def new_parser(
        self,
        tools: Mapping[str, Mapping[str, Any]] | None,
        is_inside: bool,
        is_single: bool = False,
        *,
        is_closed: bool = False,
        is_beside_form: bool = False,
    ) -> OutputParser:
        """A parser for an answer; ``tools``: the parameters' schemas of those that it may call.

        With ``is_single`` it may call once, with ``is_closed`` these alone; ``is_beside_form``: the
        answer may have a form of the client's instead.
        """
        parser: OutputParser = PlainParser()
        if tools and self.tools == XML:
            parser = XmlCallsParser(tools, is_single, is_closed)
            marks: Sequence[str] = (CALL, FUNCTION)
        elif tools and self.tools != NONE:
            form = JSON_FORMS.get(self.tools, BARE_FORM)
            if self.bare is not None:
                form = replace(form, bare=self.bare)
            parser = JsonCallsParser(form, tools, is_single, is_closed)
            marks = form.marks
        else:
            marks = ()
        if is_beside_form:
            parser = BesideFormParser(marks, parser)
        thinking = self.thinking
        return parser if thinking is None else ReasoningParser(thinking, is_inside, parser)


PLAIN = OutputFamily(NONE, NONE)


def find_family(
    template: str,
    has_token: Callable[[str], bool],
    knows_tools: bool,
    tools: str = AUTO,
    reasoning: str = AUTO,
) -> OutputFamily:
    """The family by its chat template and its tokenizer's tokens, where not told otherwise.

    A template that doesn't know tools is told of them in words, which ask for JSON.
    """
    if tools == AUTO:
        tools = _find_tools(template, has_token) if knows_tools else "json"
    if reasoning == AUTO:
        reasoning = _find_reasoning(template)
    return OutputFamily(tools, reasoning)


def _find_tools(template: str, has_token: Callable[[str], bool]) -> str:
    if CALL in template:
        return XML if FUNCTION in template else "hermes"
    for sign, name in _SIGNS:
        if sign in template:
            return name
    if has_token(CALL):
        return "hermes"
    return next((name for sign, name in _SIGNS if has_token(sign)), "json")


def _find_reasoning(template: str) -> str:
    if THINK.end in template:
        return "qwen3"
    return "mistral" if BRACKETS.end in template else NONE
