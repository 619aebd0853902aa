"""How one chat's answer is read, and what it has to match: by model, prompt and request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..engine.types import Grammar
from .chat_messages import knows_tools
from .config import Limits, ServeConfig
from .errors import bad_field
from .generation import ChoiceRequest
from .openai import ChatRequest
from .output.call_rules import CallRules, call_rules
from .output.families import BARE, NONE, PLAIN, XML, OutputFamily, find_family
from .output.grammars import (
    forced_calls,
    free_calls,
    given_answer,
    given_or_calls,
    with_thoughts,
)
from .output.parts import OutputParser
from .output.reasoning import ThinkingMarks
from .output.thought_tokens import ThinkingIds
from .output.xml_rules import can_write, xml_rules
from .structured.read import FieldGrammar
from .structured.schema_text import schema_text
from .text.detokenizer import Watch
from .text.tokenizer import Tokenizer
from .tool_choice import ToolTerms, read_tools

# What is forced is forced into a form that every parser but a family's own reads.
_MARKED = ("hermes", "json")  # between <tool_call> and </tool_call>

MAX_GRAMMAR_CHARACTERS = 4 << 20
"""Of all tools together, as rules."""


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How an answer is read: ``schemas`` are of the tools that it may call, by name.

    ``shown_token_ids`` are special tokens that the parser has to see. ``is_inside``: the answer
    begins in the midst of thoughts. ``is_single``: it ends with its first call. ``is_closed``: no
    other names are calls. ``is_beside_form``: it may have a form of the client's, which no call is.
    """

    family: OutputFamily = PLAIN
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    is_inside: bool = False
    shown_token_ids: frozenset[int] = frozenset()
    thinking: ThinkingIds | None = None
    is_single: bool = False
    is_closed: bool = False
    is_beside_form: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether an answer is all content."""
        family = self.family
        return family.thinking is None and (family.tools == "none" or not self.schemas)

    @property
    def key(self) -> str:
        """A name for the way of reading: replicas that go on with an answer have the same."""
        tools = self.family.tools if self.schemas else "none"
        ways = {
            "single": self.is_single,
            "closed": self.is_closed,
            "beside": self.is_beside_form,
        }
        words = [tools, self.family.reasoning, *(word for word, is_so in ways.items() if is_so)]
        return "" if self.is_plain else "/".join(words)

    @property
    def opening_of_thoughts(self) -> str:
        """The mark that an answer may begin with to think; "" where it can't, or has already."""
        marks = self.family.thinking
        return "" if marks is None or self.is_inside else marks.begin

    def new_parser(self) -> OutputParser:
        """A parser for one choice."""
        return self.family.new_parser(
            self.schemas,
            self.is_inside,
            self.is_single,
            is_closed=self.is_closed,
            is_beside_form=self.is_beside_form,
        )

    def new_watch(self) -> Watch:
        """Tells of one choice's text whether its one call has been."""
        parser = self.new_parser()

        def is_over(text: str) -> bool:
            parser.push(text)
            return parser.is_over

        return is_over

    def of_choice(self, choice: ChoiceRequest) -> ChoiceRequest:
        """A choice whose text has what the parser needs, and which ends where the parser does."""
        watches = self.is_single and not self.is_plain
        return replace(
            choice,
            shown_token_ids=self.shown_token_ids,
            new_watch=self.new_watch if watches else None,
        )

    def beside(self, given: FieldGrammar | None) -> OutputPlan:
        """The plan where an answer may have a form of the client's."""
        return self if given is None else replace(self, is_beside_form=True)


class ChatOutputs:
    """Makes plans, for the parsers that the operator named."""

    def __init__(self, config: ServeConfig, limits: Limits) -> None:
        self._tools = config.tool_call_parser
        self._reasoning = config.reasoning_parser
        self._limits = limits

    def read(self, body: ChatRequest) -> ToolTerms:
        """What may be called; raises ApiError 400 naming the field."""
        return read_tools(body, self._limits)

    def plan(
        self,
        body: ChatRequest,
        terms: ToolTerms,
        template: str,
        tokenizer: Tokenizer,
        prompt: str | None,
    ) -> OutputPlan:
        """The plan for an answer to ``prompt``, as ``template`` rendered it."""
        family = find_family(
            template, tokenizer.has_token, knows_tools(template), self._tools, self._reasoning
        )
        if terms.is_forced and family.tools not in _MARKED:
            family = OutputFamily(BARE, family.reasoning)
        elif terms.is_checked and not terms.is_forced:
            family = _checked(family, terms)
        marks = family.thinking
        shown = list(family.tool_marks) if terms.functions else []
        if marks is not None:
            shown += [marks.begin, marks.end]
        is_inside = family.opens_thinking(_opening(body, prompt or ""))
        return OutputPlan(
            family,
            {function.name: function.parameters or {} for function in terms.functions},
            is_inside,
            tokenizer.special_ids_of(shown),
            _thinking_ids(marks, tokenizer, is_inside),
            is_single=terms.is_single and not terms.is_forced,
            is_closed=terms.is_checked or terms.is_forced,
        )

    def grammar(
        self, given: FieldGrammar | None, terms: ToolTerms, plan: OutputPlan
    ) -> FieldGrammar | None:
        """What an answer has to match, not yet compiled, with what the client has ``given`` inside;
        raises ApiError 400 naming the field."""
        if not terms.is_forced and not (terms.is_checked and plan.family.tools != NONE):
            return _thinking_first(given, plan)
        if terms.is_forced and given is not None:
            raise bad_field("tool_choice", f"can't be had together with {_field(given)}")
        calls = self._calls(terms, plan)
        if terms.is_forced:
            rules = forced_calls(calls)
        elif given is None:
            rules = free_calls(calls, bool(plan.family.bare), plan.opening_of_thoughts)
        else:
            rules = given_or_calls(_own(given), calls)
        num_characters = sum(map(len, rules))
        if num_characters > MAX_GRAMMAR_CHARACTERS:
            raise bad_field(
                "tools",
                f"need a grammar of {num_characters} characters, "
                f"the most is {MAX_GRAMMAR_CHARACTERS}: have fewer parameters",
            )
        grammar = with_thoughts(rules, plan.family.thinking, plan.is_inside)
        return FieldGrammar("tools" if given is None else given.field, grammar)

    def _calls(self, terms: ToolTerms, plan: OutputPlan) -> CallRules:
        functions = []
        for function in terms.functions:
            schema: dict[str, Any] = {"type": "object"}
            if terms.is_forced or function.strict:
                schema |= function.parameters or {}
            options = {} if function.strict else {"lenient": True}
            text = schema_text("tools", schema, self._limits, **options)
            functions.append((function.name, text))
        if plan.family.tools == XML:
            return xml_rules(functions, terms.is_single)
        return call_rules(plan.family.tools, functions, terms.is_single)


def _checked(family: OutputFamily, terms: ToolTerms) -> OutputFamily:
    """The family in which a grammar can hold calls to their schemas.

    Where tags can't hold arguments they come as JSON between the same marks.
    """
    strict = [function.parameters or {} for function in terms.functions if function.strict]
    if family.tools == XML and not all(map(can_write, strict)):
        return replace(family, tools="hermes")
    return family.held_to_grammar()


def _thinking_ids(
    marks: ThinkingMarks | None, tokenizer: Tokenizer, is_inside: bool
) -> ThinkingIds | None:
    if marks is None:
        return None
    begin, end = tokenizer.id_of(marks.begin), tokenizer.id_of(marks.end)
    return None if begin is None or end is None else ThinkingIds(begin, end, is_inside)


def _opening(body: ChatRequest, prompt: str) -> str:
    """The end of a prompt; of one that goes on with an answer only what that has."""
    if not body.continue_final_message:
        return prompt
    content = body.messages[-1].content
    return content if isinstance(content, str) else ""


def _thinking_first(given: FieldGrammar | None, plan: OutputPlan) -> FieldGrammar | None:
    """The client's grammar, behind the thoughts of a model that has some."""
    marks = plan.family.thinking
    if given is None or marks is None:
        return given
    rules = given_answer(_own(given))
    return FieldGrammar(given.field, with_thoughts(rules, marks, plan.is_inside))


def _own(given: FieldGrammar) -> Grammar:
    assert isinstance(given.grammar, Grammar), "others have been turned into the engine's dialect"
    return given.grammar


def _field(given: FieldGrammar) -> str:
    return given.field.partition(".")[0]
