"""Calls as Qwen3-Coder writes them, as rules of a grammar: for schemas that fit into tags.

Between tags there is no JSON: a string is whatever stands there. So only schemas are written that
have plain strings and values without free text, each under a name of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .call_rules import CallRules, Functions, quoted
from .xml_calls import CALL, CALL_END, FUNCTION, FUNCTION_END, MAX_NAME, PARAMETER, PARAMETER_END

_NOTES = frozenset({"title", "description", "default", "examples"})
_OBJECT = _NOTES | {"type", "properties", "required", "additionalProperties", "$schema"}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_CLOSED = frozenset({"integer", "number", "boolean", "null"})
_MARKS = (PARAMETER, PARAMETER_END, FUNCTION_END)

MAX_PROPERTIES = 256
"""Each has a grammar of its own within the function's."""

MAX_INTEGER = 2**53
"""Beyond it not every reader of JSON tells neighbours apart."""

# A text that has none of the tags that end it, up to the one that does.
_TERMINALS = (
    r"BODY: /(.|\n)*/ & ~/(.|\n)*(<parameter=|<\/parameter>|<\/function>)(.|\n)*/",
    f"VALUE: BODY {quoted(PARAMETER_END)}",
    r"NAME: /[^<>\n]{1,64}/",
)


def can_write(schema: Mapping[str, Any]) -> bool:
    """Whether arguments that fit the schema can be told to a model in tags."""
    fields = schema.get("properties", {})
    required = schema.get("required", [])
    return (
        _OBJECT.issuperset(schema)
        and isinstance(fields, dict)
        and len(fields) <= MAX_PROPERTIES
        and isinstance(required, list)
        and all(isinstance(name, str) and name in fields for name in required)
        and _can_be_open(schema.get("additionalProperties", True), bool(fields))
        and all(_is_name(name) and _can_be(field) for name, field in fields.items())
    )


def xml_rules(functions: Functions, is_single: bool) -> CallRules:
    """The rules for functions whose schemas can be written."""
    rules = [*_TERMINALS]
    for index, (name, text) in enumerate(functions):
        rules += _function(index, name, json.loads(text))
    more = "" if is_single else f" ({quoted(f'{chr(10)}{CALL}{chr(10)}{FUNCTION}')} marked)*"
    rules += [
        "function: " + " | ".join(f"function_{index}" for index in range(len(functions))),
        f"marked: function {quoted(f'{chr(10)}{CALL_END}')}",
        f"calls: {quoted(f'{chr(10)}{FUNCTION}')} marked{more}",
    ]
    return CallRules([(CALL, "calls"), (FUNCTION, "function")], "", rules)


def _function(index: int, name: str, schema: dict[str, Any]) -> list[str]:
    """One function behind its tag's beginning; without ``properties`` its parameters are free."""
    fields, required = schema.get("properties"), frozenset(schema.get("required", []))
    rules, parts = [], []
    for place, (field, value) in enumerate((fields or {}).items()):
        rule = f"parameter_{index}_{place}"
        opening = quoted(f"{PARAMETER}{field}>\n")
        rules.append(f'{rule}: {opening} ({_value(value, schema["x-guidance"])}) "\\n"')
        parts.append(rule if field in required else f"{rule}?")
    if not fields and schema.get("additionalProperties") is not False:
        parts.append(f'({quoted(PARAMETER)} NAME ">" VALUE "\\n")*')
    head, end = quoted(f"{name}>\n"), quoted(FUNCTION_END)
    return [*rules, f"function_{index}: {head} {' '.join(parts)} {end}"]


def _value(field: dict[str, Any], options: object) -> str:
    """A parameter's value and what ends it."""
    end = quoted(f"\n{PARAMETER_END}")
    if field.get("type") != "string":
        return f"%json {json.dumps({**field, 'x-guidance': options}, ensure_ascii=False)} {end}"
    words = _words(field)
    return "VALUE" if words is None else " | ".join(f"{quoted(word)} {end}" for word in words)


def _can_be_open(others: object, is_listed: bool) -> bool:
    """Whether parameters that are not listed may be what ``others`` says.

    Beside listed ones none is written; without any all are free, whatever stands in them.
    """
    return isinstance(others, bool) or (isinstance(others, dict) and (is_listed or not others))


def _can_be(field: object) -> bool:
    if not isinstance(field, dict):
        return False
    words, keys = _words(field), field.keys() - _NOTES
    if words is not None:
        is_plain = keys <= {"type", "enum", "const"} and len(keys & {"enum", "const"}) == 1
        text = json.dumps(words, ensure_ascii=False)
        is_told = all(isinstance(word, str) and word for word in words)
        return (
            is_plain
            and bool(words)
            and _are_exact(words)
            and not any(mark in text for mark in _MARKS)
            and (is_told or field.get("type") != "string")
        )
    kinds = field.get("type")
    if kinds == "string":
        return keys == {"type"}
    kinds = kinds if isinstance(kinds, list) else [kinds]
    is_closed = all(isinstance(kind, str) and kind in _CLOSED for kind in kinds)
    return bool(kinds) and is_closed and keys <= _BOUNDS | {"type"}


def _words(field: Mapping[str, Any]) -> list[Any] | None:
    """The only values that a field may have, if it says so."""
    if "const" in field:
        return [field["const"]]
    values = field.get("enum")
    return values if isinstance(values, list) else None


def _are_exact(values: Iterable[object]) -> bool:
    """Whether all whole numbers in these are such that every reader of JSON takes them alike."""
    return all(_is_exact(value) for value in values)


def _is_exact(value: object) -> bool:
    if isinstance(value, dict):
        return _are_exact(value.values())
    if isinstance(value, list):
        return _are_exact(value)
    return not isinstance(value, int) or abs(value) <= MAX_INTEGER


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and not any(char in "<>\n" for char in name)
