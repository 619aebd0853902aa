"""From a request's fields to the grammar of its answer."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ...engine.types import Grammar
from ..config import Limits
from ..errors import bad_field
from ..openai import SamplingFields
from .fields import StructuredOutputs
from .gbnf import Gbnf, is_gbnf
from .schema_text import schema_text

_FORMAT, _OUTPUTS = "response_format", "structured_outputs"


class FieldGrammar(NamedTuple):
    """A grammar, and the field that asks for it."""

    field: str
    grammar: Grammar | Gbnf


def read_grammar(body: SamplingFields, limits: Limits) -> FieldGrammar | None:
    """The grammar that a request asks for, not yet compiled; raises ApiError naming the field."""
    found = [
        grammar
        for grammar in (
            _response_format(body, limits),
            _structured_outputs(body, limits),
            *_guided(body, limits),
        )
        if grammar is not None
    ]
    if len(found) > 1:
        fields = " and ".join(grammar.field.partition(".")[0] for grammar in found)
        raise bad_field(found[1].field.partition(".")[0], f"give one of {fields}, not both")
    return found[0] if found else None


def _response_format(body: SamplingFields, limits: Limits) -> FieldGrammar | None:
    wanted = body.response_format
    if wanted is None:
        return None
    named, field = wanted.json_schema, f"{_FORMAT}.json_schema"
    if wanted.type != "json_schema":
        if named is not None:
            raise bad_field(field, "goes with type json_schema only")
        grammar = _any_object(_FORMAT, limits) if wanted.type == "json_object" else None
        return None if grammar is None else FieldGrammar(_FORMAT, grammar)
    if named is None:
        raise bad_field(field, "is required", code="missing_required_parameter")
    if named.schema_ is None and named.strict:
        raise bad_field(f"{field}.schema", "is required where strict is true")
    options = {"lenient": True, "coerce_one_of": True} if named.strict is False else {}
    schema = True if named.schema_ is None else named.schema_
    text = schema_text(f"{field}.schema", schema, limits, **options)
    return FieldGrammar(f"{field}.schema", Grammar("json_schema", text))


def _structured_outputs(body: SamplingFields, limits: Limits) -> FieldGrammar | None:
    wanted = body.structured_outputs
    if wanted is None:
        return None
    options = _whitespace(wanted)
    kinds = {
        "json": wanted.json_,
        "regex": wanted.regex,
        "choice": wanted.choice,
        "grammar": wanted.grammar,
        "json_object": wanted.json_object or None,
    }
    given = [name for name, value in kinds.items() if value is not None]
    if not given and not options:
        return None
    if len(given) != 1:
        what = "has " + (" and ".join(given) or "none")
        raise bad_field(_OUTPUTS, f"{what}; give exactly one of {', '.join(kinds)}")
    if options and given[0] not in ("json", "json_object"):
        raise bad_field(f"{_OUTPUTS}.{next(iter(_given_options(wanted)))}", "goes with JSON only")
    field = f"{_OUTPUTS}.{given[0]}"
    return _of_kind(field, given[0], kinds[given[0]], limits, options)


def _guided(body: SamplingFields, limits: Limits) -> list[FieldGrammar | None]:
    """vLLM's older names, a field each."""
    return [
        _of_kind("guided_json", "json", body.guided_json, limits),
        _of_kind("guided_regex", "regex", body.guided_regex, limits),
        _of_kind("guided_choice", "choice", body.guided_choice, limits),
        _of_kind("guided_grammar", "grammar", body.guided_grammar, limits),
    ]


def _of_kind(
    field: str, kind: str, value: Any, limits: Limits, options: dict[str, Any] | None = None
) -> FieldGrammar | None:
    if value is None:
        return None
    grammar: Grammar | Gbnf
    match kind:
        case "json":
            text = schema_text(field, _schema(field, value, limits), limits, **(options or {}))
            grammar = Grammar("json_schema", text)
        case "json_object":
            grammar = _any_object(field, limits, **(options or {}))
        case "regex":
            grammar = Grammar("regex", _bounded(field, value, limits.max_regex_characters))
        case "choice":
            grammar = _choice(field, value, limits)
        case _:
            text = _bounded(field, value, limits.max_grammar_characters)
            grammar = Gbnf(text) if is_gbnf(text) else Grammar("lark", text)
    return FieldGrammar(field, grammar)


def _any_object(field: str, limits: Limits, **options: Any) -> Grammar:
    return Grammar("json_schema", schema_text(field, {"type": "object"}, limits, **options))


def _schema(field: str, value: object, limits: Limits) -> object:
    """A schema, read where it is given as text."""
    if not isinstance(value, str):
        return value
    if len(value) > limits.max_schema_bytes:
        raise bad_field(field, f"has more than {limits.max_schema_bytes} bytes")
    try:
        schema: object = json.loads(value)
    except (ValueError, RecursionError):
        raise bad_field(field, "is no JSON") from None
    return schema


def _choice(field: str, choices: list[str], limits: Limits) -> Grammar:
    """One of several texts, as a grammar of their alternatives."""
    if len(choices) > limits.max_structured_choices:
        raise bad_field(
            field, f"has {len(choices)} entries, the most is {limits.max_structured_choices}"
        )
    if not all(choices):
        raise bad_field(field, "must not hold an empty string")
    quoted = (json.dumps(choice, ensure_ascii=False) for choice in dict.fromkeys(choices))
    # The engine's reader of grammars takes no bare DEL, which JSON lets be.
    quoted = (text.replace("\x7f", "\\u007f") for text in quoted)
    # One terminal: the parser, unlike its lexer, can't have thousands of ways open.
    text = "start: CHOICE\nCHOICE: " + " | ".join(quoted)
    return Grammar("lark", _bounded(field, text, limits.max_grammar_characters))


def _bounded(field: str, text: str, max_characters: int) -> str:
    if not text:
        raise bad_field(field, "must not be empty")
    if len(text) > max_characters:
        raise bad_field(field, f"has {len(text)} characters, the most is {max_characters}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_field(field, "has half of a surrogate pair, which is no character") from None
    return text


def _given_options(wanted: StructuredOutputs) -> dict[str, Any]:
    names = ("disable_any_whitespace", "whitespace_pattern")
    return {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}


def _whitespace(wanted: StructuredOutputs) -> dict[str, Any]:
    """llguidance's options for what may stand between two tokens of JSON."""
    given = _given_options(wanted)
    if len(given) == 2 and wanted.disable_any_whitespace:
        raise bad_field(f"{_OUTPUTS}.whitespace_pattern", "can't go with disable_any_whitespace")
    if wanted.disable_any_whitespace:
        return {"whitespace_flexible": False, "whitespace_pattern": None}
    if wanted.whitespace_pattern is not None:
        return {"whitespace_pattern": wanted.whitespace_pattern}
    return {}
