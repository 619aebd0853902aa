"""Parsers of answers: each family's calls, whole, cut anywhere, and broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_parts import Parsed, parse, parse_pieces

from branchline.server.output.families import THINK
from branchline.server.output.json_calls import (
    HERMES,
    JSON,
    LLAMA3,
    MISTRAL,
    CallFormat,
    JsonCallsParser,
)
from branchline.server.output.parts import OutputParser
from branchline.server.output.plain import PlainParser
from branchline.server.output.reasoning import ReasoningParser
from branchline.server.output.xml_calls import XmlCallsParser

NewParser = Callable[[], OutputParser]
NAMES = ("f", "get_weather")
SCHEMAS = {"f": {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}}


def of(form: CallFormat) -> NewParser:
    return partial(JsonCallsParser, form, NAMES)


def xml() -> OutputParser:
    return XmlCallsParser(SCHEMAS)


def thinking(is_inside: bool, rest: NewParser = PlainParser) -> NewParser:
    return lambda: ReasoningParser(THINK, is_inside, rest())


PARSERS: dict[str, NewParser] = {
    "plain": PlainParser,
    "hermes": of(HERMES),
    "llama3": of(LLAMA3),
    "mistral": of(MISTRAL),
    "json": of(JSON),
    "xml": xml,
    "thinking": thinking(False, of(HERMES)),
    "inside": thinking(True, of(JSON)),
}

CALL = '{"name": "f", "arguments": {"a": [1, {"b": "}</tool_call>"}]}}'
F = ["f", '{"a": [1, {"b": "}</tool_call>"}]}']

ANSWERS: list[tuple[NewParser, str, Parsed]] = [
    (of(HERMES), f"Sure.\n<tool_call>\n{CALL}\n</tool_call>", Parsed("Sure.", calls=[F])),
    (
        of(HERMES),
        f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\n Done.",
        Parsed("Done.", calls=[F, F]),
    ),
    (of(HERMES), f"<tool_call>\n{CALL}\n<tool_call>\n{CALL}", Parsed(calls=[F, F])),
    (of(HERMES), f"<tool_call>[{CALL}, {CALL}]</tool_call>", Parsed(calls=[F, F])),
    (of(HERMES), '<tool_call>{"name":"f"}</tool_call>', Parsed(calls=[["f", "{}"]])),
    (
        of(HERMES),
        '<tool_call>{"arguments": {"x": 1}, "name": "other"}</tool_call>',
        Parsed(calls=[["other", '{"x": 1}']]),
    ),
    (
        of(HERMES),
        '<tool_call>{"name": "f", "arguments": "{\\"x\\": \\"ü\\"}"}</tool_call>',
        Parsed(calls=[["f", '{"x": "ü"}']]),
    ),
    (
        of(HERMES),
        '<tool_call>{"type":"function","function":{"name":"f","arguments":{"x":1}}}</tool_call>',
        Parsed(calls=[["f", '{"x": 1}']]),
    ),
    (
        of(HERMES),
        '<tool_call>{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>',
        Parsed(calls=[["f", '{"x": "a\\nb"}']]),
    ),
    (of(HERMES), "a  <b> <tool_cal", Parsed("a  <b> <tool_cal")),
    (of(HERMES), CALL, Parsed(CALL)),
    (
        of(LLAMA3),
        '{"name": "f", "parameters": {"x": 1}}; {"name": "get_weather", "parameters": {}}',
        Parsed(calls=[["f", '{"x": 1}'], ["get_weather", "{}"]]),
    ),
    (
        of(LLAMA3),
        ' {"type": "function", "name": "f", "parameters": {"x": 1}}',
        Parsed(calls=[["f", '{"x": 1}']]),
    ),
    (of(LLAMA3), f"<|python_tag|>{CALL}", Parsed(calls=[F])),
    (of(LLAMA3), "<|python_tag|>print(1)", Parsed("<|python_tag|>print(1)")),
    (of(LLAMA3), '{"name": "Bob", "arguments": {}}', Parsed('{"name": "Bob", "arguments": {}}')),
    (of(LLAMA3), '{"answer": {"a": 1}}', Parsed('{"answer": {"a": 1}}')),
    (of(MISTRAL), f"[TOOL_CALLS] [{CALL}]", Parsed(calls=[F])),
    (of(MISTRAL), f"Hm.[TOOL_CALLS][{CALL},{CALL}] ", Parsed("Hm.", calls=[F, F])),
    (
        of(MISTRAL),
        '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS]{}',
        Parsed(calls=[["f", '{"x": 1}'], ["get_weather", "{}"]]),
    ),
    (of(MISTRAL), '[TOOL_CALLS]f{"x": 1}', Parsed(calls=[["f", '{"x": 1}']])),
    (of(MISTRAL), "[TOOL_CALLS]no call", Parsed("[TOOL_CALLS]no call")),
    (of(JSON), f"```json\n[{CALL}]\n```", Parsed(calls=[F])),
    (of(JSON), f"```\n{CALL}\n```\nThere.", Parsed("There.", calls=[F])),
    (of(JSON), f"<tool_call>\n{CALL}\n</tool_call>", Parsed(calls=[F])),
    (of(JSON), "```python\nprint(1)\n```", Parsed("```python\nprint(1)\n```")),
    (of(JSON), "[1, 2]", Parsed("[1, 2]")),
    (
        xml,
        "Ok.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=n>\n2\n"
        "</parameter>\n</function>\n</tool_call>",
        Parsed("Ok.", calls=[["f", '{"a": "1", "n": 2}']]),
    ),
    (xml, "<function=f>\n</function>", Parsed(calls=[["f", "{}"]])),
    (xml, "<tool_call>\n<function=f g>", Parsed("<tool_call>\n<function=f g>")),
    (thinking(False), "<think>\nhm\n</think>\n\nYes.", Parsed("Yes.", "hm")),
    (thinking(False), "Yes.</think>", Parsed("Yes.</think>")),
    (thinking(False), "<think>\n\n</think>\n\nYes.", Parsed("Yes.")),
    (thinking(False), " <thin", Parsed(" <thin")),
    (thinking(True), "hm\n</think>\nYes.", Parsed("Yes.", "hm")),
    (thinking(True), "<think>hm</think>Yes.", Parsed("Yes.", "hm")),
    (thinking(True), "hm </thin", Parsed("", "hm </thin")),
    (
        thinking(True, of(HERMES)),
        f"call it\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
        Parsed("", "call it", [F]),
    ),
]


@pytest.mark.parametrize(("new_parser", "text", "expected"), ANSWERS)
def test_an_answer_is_told_apart_and_the_same_letter_by_letter(
    new_parser: NewParser, text: str, expected: Parsed
) -> None:
    assert parse(new_parser, text) == expected
    assert parse_pieces(new_parser, list(text))[-1] == expected


@pytest.mark.parametrize(
    ("new_parser", "text", "expected"),
    [
        (of(HERMES), '<tool_call>{"name": "f"', Parsed('<tool_call>{"name": "f"')),
        (
            of(HERMES),
            ' <tool_call>{"name": 3}</tool_call>',
            Parsed(' <tool_call>{"name": 3}</tool_call>'),
        ),
        (of(HERMES), "<tool_call>{]", Parsed("<tool_call>{]")),
        (
            of(HERMES),
            '<tool_call>{"name": "f", "arguments": {"a": oops}}',
            Parsed("oops}}", calls=[["f", '{"a": ']]),
        ),
        (
            of(HERMES),
            '<tool_call>{"name": "f", "arguments": {"a": "x',
            Parsed(calls=[["f", '{"a": "x']]),
        ),
        (
            of(HERMES),
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            Parsed('<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ),
        (of(LLAMA3), '{"name": "f", "param', Parsed('{"name": "f", "param')),
        (of(MISTRAL), "[TOOL_CALLS]f[ARGS]", Parsed("[TOOL_CALLS]f[ARGS]")),
        (xml, "<tool_call>\n<function=f", Parsed("<tool_call>\n<function=f")),
    ],
)
def test_what_never_becomes_a_call_is_content(
    new_parser: NewParser, text: str, expected: Parsed
) -> None:
    assert parse(new_parser, text) == expected
    assert parse_pieces(new_parser, list(text))[-1] == expected


def test_arguments_come_before_the_call_is_whole() -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'
    states = parse_pieces(of(HERMES), [text, 'is"}}\n</tool_call>'])
    assert states[0].calls == [["get_weather", '{"city": "Par']]
    assert states[-1].calls == [["get_weather", '{"city": "Paris"}']]


FRAGMENTS = [
    *(CALL, CALL[:30], CALL[20:], '{"name": "f", ', '"arguments": {', "}", "{", "[", "]", ",", ";"),
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "f", "<|python_tag|>", "```json\n"),
    *("```", "<think>", "</think>", "<function=", "f>", "<parameter=a>", "</parameter>"),
    *("</function>", " ", "\n", "x", '"', "\\", ":", "1", "true", "-", "é", "\x01", "\ud800"),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@pytest.mark.parametrize("name", PARSERS)
@given(text=TEXTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_change_nothing_at_any_point(name: str, text: str, data: st.DataObject) -> None:
    """What was given after each beginning of the text is the same in one piece and in many."""
    places = data.draw(st.sets(st.integers(0, len(text)), max_size=8))
    cuts = sorted(places | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    states = parse_pieces(PARSERS[name], pieces)
    assert states[-1] == parse(PARSERS[name], text)
    for cut, state in zip(cuts, states, strict=False):
        assert state == parse_pieces(PARSERS[name], [text[:cut]])[0]


@pytest.mark.parametrize("name", ["hermes", "llama3", "mistral", "json"])
@given(text=TEXTS)
@settings(max_examples=60, deadline=None)
def test_text_without_a_call_is_all_there(name: str, text: str) -> None:
    parsed = parse(PARSERS[name], text)
    if not parsed.calls:
        assert parsed.content == text


@given(arguments=st.dictionaries(st.text(), st.recursive(st.text() | st.integers(), st.lists)))
@settings(max_examples=60, deadline=None)
def test_arguments_are_what_the_model_meant(arguments: dict[str, object]) -> None:
    written = json.dumps({"name": "f", "arguments": arguments}, ensure_ascii=False)
    parsed = parse(of(HERMES), f"<tool_call>\n{written}\n</tool_call>")
    [[name, text]] = parsed.calls
    assert (name, json.loads(text), parsed.content) == ("f", arguments, "")
