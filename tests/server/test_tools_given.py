"""Tools beside a form of the answer that the client gave: what is a call, and what the form."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tool_templates
from fake_engine import FakeEngine, say
from hypothesis import given, settings
from hypothesis import strategies as st
from output_parts import Parsed, parse, parse_pieces

from branchline.server.catalog import ServedModel
from branchline.server.output.families import XML, OutputFamily
from branchline.server.output.parts import OutputParser
from branchline.server.output_plan import OutputPlan
from branchline.server.text.tokenizer import Tokenizer

from .conftest import Harness
from .fleet_replica import CHAT, Replica, body_of
from .test_structured_wrapped import STRICT, accepts
from .test_tools import TIME, WEATHER, chosen, serve, tools
from .test_tools_allowed import CALLS, allowed
from .test_tools_parsers import TEXTS
from .test_tools_single import CODER

__all__ = ["tools"]

LARK = 'start: answer\nanswer: "yes" | "no"'
ANSWERS = [
    ({"guided_choice": ["answer: yes", "answer: no"]}, "answer: yes", "given: yes"),
    ({"guided_regex": r"(.|\n)*answer: \d+"}, "so\nanswer: 4", "so\ngiven: 4"),
    ({"guided_grammar": LARK}, "yes", "maybe"),
    ({"guided_grammar": 'start: "answer: " /[0-9]+/'}, "answer: 4", "given: 4"),
    ({"guided_grammar": 'root ::= "answer: " [0-9]+'}, "answer: 4", "given: 4"),
    ({"guided_json": {"const": "answer: x"}}, '"answer: x"', '"given: x"'),
]


@pytest.mark.parametrize("model", ["hermes", "qwen3"])
async def test_a_form_with_our_own_words_in_it_stays_as_it_is(tools: Harness, model: str) -> None:
    for form, good, bad in ANSWERS:
        fields = {"model": model, "tools": [STRICT], **form}
        assert await accepts(tools, good, **fields), form
        assert not await accepts(tools, bad, **fields), form


MARKED = ("hermes", "mistral", "coder")
ANY = r"(.|\n)*"
HELD = {
    "mistral": "x [TOOL_CALLS]get_time{} y",
    "coder": "<function=get_time></function> <tool_call><function=get_weather></function>",
    "hermes": 'x <tool_call>{\\"name\\": \\"get_time\\", \\"arguments\\": {}}</tool_call>',
    "llama3": '<|python_tag|>{\\"name\\": \\"get_time\\", \\"arguments\\": {}}',
}


def choosing(strict: bool) -> dict[str, Any]:
    if strict:
        return {"tools": [STRICT]}
    return {"tools": [WEATHER, TIME], "tool_choice": allowed("auto", "get_weather")}


@pytest.mark.parametrize("strict", [True, False])
async def test_marks_inside_of_a_form_are_content(tools: Harness, strict: bool) -> None:
    serve(tools, "coder", CODER)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    forms: list[dict[str, Any]] = [{"guided_json": schema}, {"guided_regex": ANY}]
    for model, form in itertools.product(HELD, forms):
        text = f'{{"a": "{HELD[model]}"}}'
        tools.engine.script = say(text)
        choice = await chosen(tools, model=model, **choosing(strict), **form)
        assert choice["message"]["content"] == text
        assert not choice["message"].get("tool_calls")


async def test_a_call_behind_a_mark_is_one_of_what_may_be_called(tools: Harness) -> None:
    serve(tools, "coder", CODER)
    forms: list[dict[str, Any]] = [{"guided_regex": ANY}, {}]
    for model, form in itertools.product(MARKED, forms):
        fields = {"model": model, **choosing(strict=False), **form}
        tools.engine.script = say(CALLS[model] % "get_weather")
        [call] = (await chosen(tools, **fields))["message"]["tool_calls"]
        assert call["function"]["name"] == "get_weather"
        tools.engine.script = say(text := CALLS[model] % "get_time")
        choice = await chosen(tools, **fields)
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == "stop"


async def test_beside_a_pattern_a_mark_in_front_begins_a_call_only(tools: Harness) -> None:
    serve(tools, "coder", CODER)
    for model in MARKED:
        fields = {"model": model, "guided_regex": ANY, **choosing(strict=False)}
        assert await accepts(tools, CALLS[model] % "get_weather", **fields)
        assert not await accepts(tools, CALLS[model] % "get_time", **fields)
        assert await accepts(tools, f"So: {CALLS[model] % 'get_time'}", **fields)


async def test_an_answer_of_the_form_is_no_call_without_strict(tools: Harness) -> None:
    tools.engine.script = say(text := '{"name": "get_weather", "parameters": {}}')
    form = {"type": "json_object"}
    choice = await chosen(tools, model="llama3", tools=[WEATHER], response_format=form)
    assert choice["message"]["content"] == text


def beside(tools_: str, reasoning: str = "none", is_inside: bool = False) -> OutputParser:
    family = OutputFamily(tools_, reasoning)
    return family.new_parser({"f": {}}, is_inside, is_closed=True, is_beside_form=True)


PARSERS = {
    **{name: partial(beside, name) for name in ("hermes", "llama3_json", "mistral", "json", XML)},
    "thinking": partial(beside, "hermes", "qwen3"),
    "inside": partial(beside, "mistral", "qwen3", True),
}


@pytest.mark.parametrize("name", PARSERS)
@given(text=TEXTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_change_nothing(name: str, text: str, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, len(text)), max_size=8))
    cuts = sorted(places | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    states = parse_pieces(PARSERS[name], pieces)
    assert states[-1] == parse(PARSERS[name], text)
    assert all(called == "f" for called, _ in states[-1].calls)
    for cut, state in zip(cuts, states, strict=False):
        assert state == parse_pieces(PARSERS[name], [text[:cut]])[0]


def test_behind_thoughts_the_mark_is_in_front() -> None:
    text = "hm\n</think>\n\n[TOOL_CALLS]f{}[TOOL_CALLS]g{}"
    expected = Parsed("[TOOL_CALLS]g{}", "hm", [["f", "{}"]])
    assert parse(PARSERS["inside"], text) == expected
    assert parse(PARSERS["inside"], "hm</think>[TOOL") == Parsed("[TOOL", "hm")


def test_each_way_of_reading_has_a_name_of_its_own() -> None:
    plan = OutputPlan(OutputFamily("hermes", "none"), {"f": {}})
    ways = ("is_single", "is_closed", "is_beside_form")
    plans = [plan, *(replace(plan, **{way: True}) for way in ways)]
    assert len({plan.key for plan in plans}) == len(plans)


@pytest.mark.parametrize("text", ['{"a": "x [TOOL_CALLS]f{} y"}', '[TOOL_CALLS]f{"a": 1}'])
async def test_a_cut_anywhere_changes_no_byte(tokenizer: Tokenizer, text: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    form = {"type": "json_object"}
    body = body_of(CHAT, model="m", tools=[tool], response_format=form)

    def replica() -> Replica:
        made = Replica(tokenizer, FakeEngine(say(text)))
        model = ServedModel("m", "/adapters/m", "digest-m", tool_templates.MISTRAL, version=1)
        made.services.catalog.put("m", {1: model}, 1)
        return made

    here, there = replica(), replica()
    whole = await here.stream(CHAT, body)
    for cut in range(1, len(whole) + 1, 3):
        rest = await there.resume(CHAT, body, whole[:cut])
        assert [e for g in [*whole[:cut], *rest] for e in g.events] == [
            e for g in whole for e in g.events
        ]
    deltas = [json.loads(e[6:])["choices"][0]["delta"] for g in whole for e in g.events]
    assert any("tool_calls" in delta for delta in deltas) == text.startswith("[")
