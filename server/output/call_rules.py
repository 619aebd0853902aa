"""How each family writes calls, as rules of a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

Functions = Sequence[tuple[str, str]]
"""Names, each with the JSON schema of its arguments as text."""

CALL, CALL_END = "<tool_call>", "</tool_call>"
PYTHON_TAG, TOOL_CALLS = "<|python_tag|>", "[TOOL_CALLS]"


@dataclass(frozen=True, slots=True)
class CallRules:
    """Calls as they stand in an answer.

    ``openings`` are marks, each with what has to stand behind it; ``bare`` is what stands without
    one, where that may be: it begins with a brace, or with a bracket where calls are forced.
    """

    openings: Sequence[tuple[str, str]]
    bare: str
    rules: Sequence[str]


def quoted(text: str) -> str:
    """A text as a grammar has it."""
    return json.dumps(text, ensure_ascii=False)


def call_rules(family: str, functions: Functions, is_single: bool) -> CallRules:
    """The rules of a family that writes calls in JSON."""
    match family:
        case "llama3_json":
            return _llama3(functions, is_single)
        case "mistral":
            return _mistral(functions, is_single)
        case "hermes" | "json":
            return _hermes(functions, is_single)
    return CallRules((), "calls", [*_objects(functions), f"calls: {_list(is_single)}"])


def _hermes(functions: Functions, is_single: bool) -> CallRules:
    """Each between its marks; without them each on a line of its own."""
    more = "" if is_single else f" ({quoted(f'{chr(10)}{CALL}{chr(10)}')} marked)*"
    rules = [
        *_objects(functions),
        f"marked: call {quoted(f'{chr(10)}{CALL_END}')}",
        f"calls: marked{more}",
        "unmarked: call" + ("" if is_single else f" ({quoted(chr(10))} call)*"),
    ]
    return CallRules([(CALL, f"{quoted(chr(10))} calls")], "unmarked", rules)


def _llama3(functions: Functions, is_single: bool) -> CallRules:
    more = "" if is_single else ' ("; " call)*'
    kind = quoted('"type": "function", ')
    rules = [*_objects(functions, "parameters", f"({kind})? "), f"calls: call{more}"]
    return CallRules([(PYTHON_TAG, "calls")], "calls", rules)


def _mistral(functions: Functions, is_single: bool) -> CallRules:
    """A list, or each by its name behind a mark of its own."""
    more = "" if is_single else f" ({quoted(TOOL_CALLS)} named)*"
    rules = [
        *_objects(functions),
        f'calls: " "? {_list(is_single)} | named{more}',
        "named: "
        + " | ".join(
            f'{quoted(name)} identity? "[ARGS]"? args_{index}'
            for index, (name, _) in enumerate(functions)
        ),
        'identity: "[CALL_ID]" /[a-zA-Z0-9_-]{1,64}/',
    ]
    return CallRules([(TOOL_CALLS, "calls")], "", rules)


def _list(is_single: bool) -> str:
    return '"[" call "]"' if is_single else '"[" call (/, ?/ call)* "]"'


def _objects(functions: Functions, key: str = "arguments", front: str = "") -> list[str]:
    """``call`` is an object that has a name and arguments; ``front`` is what may stand first."""
    rules = []
    for index, (name, schema) in enumerate(functions):
        head = f'"name": {json.dumps(name)}, "{key}": '
        rules += [
            f'call_{index}: "{{" {front}{quoted(head)} args_{index} "}}"',
            f"args_{index}: %json {schema}",
        ]
    return [*rules, "call: " + " | ".join(f"call_{index}" for index in range(len(functions)))]
