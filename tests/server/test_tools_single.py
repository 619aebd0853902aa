"""One call at most: answers end with their first call, in every family's form."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import tool_templates
from cut_streams import Group
from fake_engine import FakeEngine, say
from hypothesis import given, settings
from hypothesis import strategies as st
from output_parts import Parsed, parse, parse_pieces

from branchline.server.catalog import ServedModel
from branchline.server.output.families import THINK, XML, OutputFamily
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, events
from .fleet_replica import CHAT, Replica, body_of
from .test_tools import WEATHER, joined, serve, tools
from .test_tools_parsers import TEXTS

__all__ = ["tools"]

CODER = tool_templates.HERMES.replace("<tool_call>\n{", "<tool_call>\n<function=")
HEAD, REST = '{"name": "get_weather", "%s": {"city": "Köln"}}', '{"name": "get_time", "%s": {}}'
OBJECT, MORE = HEAD % "arguments", REST % "arguments"
FUNCTION = "<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n</function>"

# A first call as far as it is one, and what no client must see of the rest.
FAMILIES = {
    "hermes": (f"<tool_call>\n{OBJECT}", f"\n</tool_call>\n<tool_call>\n{MORE}\n</tool_call>"),
    "llama3": (HEAD % "parameters", f"; {REST % 'parameters'}"),
    "mistral": (f"[TOOL_CALLS][{OBJECT}", f", {MORE}]"),
    "coder": (f"<tool_call>\n{FUNCTION}", f"\n</tool_call>\n<tool_call>\n{FUNCTION}"),
    BASE: (f"[{OBJECT}", f", {MORE}] Well."),
}
NAMED = ('[TOOL_CALLS]get_weather[ARGS]{"city": "Köln"}', "[TOOL_CALLS]get_time[ARGS]{}")
CASES = [*((model, *texts) for model, texts in FAMILIES.items()), ("mistral", *NAMED)]


async def ask(house: Harness, model: str, **fields: Any) -> Any:
    serve(house, "coder", CODER)
    fields = {"tools": [WEATHER], "parallel_tool_calls": False, **fields}
    response = await house.chat(model=model, **fields)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(("model", "first", "rest"), CASES)
async def test_an_answer_ends_with_its_first_call(
    tools: Harness, model: str, first: str, rest: str
) -> None:
    tools.engine.script = say(f"{first}{rest}")
    body = (await ask(tools, model, n=2, logprobs=True)).json()
    for choice in body["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        [call] = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
        assert len(choice["logprobs"]["content"]) == len(first.encode())
    assert body["usage"]["completion_tokens"] == 2 * len(first.encode())
    assert len(tools.engine.aborted) == 2
    assert all(request.params.grammar is None for request in tools.engine.requests)


@pytest.mark.parametrize(("model", "first", "rest"), CASES)
async def test_a_stream_ends_with_its_first_call(
    tools: Harness, model: str, first: str, rest: str
) -> None:
    tools.engine.script = say(f"{first}{rest}")
    options = {"include_usage": True}
    chunks = events(await ask(tools, model, stream=True, stream_options=options))
    message = joined(chunks[:-1])
    assert not message["content"]
    assert message["finish_reason"] == "tool_calls"
    [call] = message["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Köln"}
    assert chunks[-1]["usage"]["completion_tokens"] == len(first.encode())


async def test_a_call_that_fills_max_tokens_is_whole(tools: Harness) -> None:
    first, rest = FAMILIES["hermes"]
    tools.engine.script = say(f"{first}{rest}")
    body = (await ask(tools, "hermes", max_tokens=len(first.encode()))).json()
    assert body["choices"][0]["finish_reason"] == "tool_calls"


async def test_text_alone_is_as_it_was(tools: Harness) -> None:
    tools.engine.script = say("No {call} [here].")
    for model in ("hermes", "llama3", "mistral", "coder", BASE):
        [choice] = (await ask(tools, model)).json()["choices"]
        assert choice["message"]["content"] == "No {call} [here]."
        assert choice["finish_reason"] == "stop"
    assert tools.engine.aborted == []


async def test_anthropics_word_for_it(tools: Harness) -> None:
    first, rest = FAMILIES["llama3"]
    tools.engine.script = say(f"{first}{rest}")
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
    body = {
        "model": "llama3",
        "max_tokens": 200,
        "messages": [{"role": "user", "content": "x"}],
        "tools": [tool],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    answer = (await tools.post("/v1/messages", body)).json()
    assert answer["stop_reason"] == "tool_use"
    [block] = answer["content"]
    assert (block["type"], block["input"]) == ("tool_use", {"city": "Köln"})
    assert answer["usage"]["output_tokens"] == len(first.encode())


@pytest.mark.parametrize("model", ["hermes", "llama3"])
async def test_responses_end_with_their_first_call(tools: Harness, model: str) -> None:
    first, rest = FAMILIES[model]
    tools.engine.script = say(f"{first}{rest}")
    tool = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    body = {"model": model, "input": "x", "tools": [tool], "parallel_tool_calls": False}
    answer = (await tools.post("/v1/responses", body)).json()
    assert [item["type"] for item in answer["output"]] == ["function_call"]
    assert answer["usage"]["output_tokens"] == len(first.encode())


@pytest.mark.parametrize("template", ["QWEN3", "LLAMA3", "MISTRAL"])
async def test_a_cut_anywhere_changes_no_byte(tokenizer: Tokenizer, template: str) -> None:
    first, rest = FAMILIES[template.lower() if template != "QWEN3" else "hermes"]
    short = [json.loads(json.dumps(WEATHER))]
    body = body_of(CHAT, model="m", tools=short, n=2, parallel_tool_calls=False)

    def replica() -> Replica:
        answers = (f"{first}{rest}", "No call.")
        made = Replica(
            tokenizer, FakeEngine(lambda request: say(answers[request.choice_index])(request))
        )
        text = getattr(tool_templates, template)
        model = ServedModel("m", "/adapters/m", "digest-m", text, version=1)
        made.services.catalog.put("m", {1: model}, 1)
        return made

    here, there = replica(), replica()
    whole = await here.stream(CHAT, body)
    for cut in range(1, len(whole) + 1, 3):
        rest_of_it = await there.resume(CHAT, body, whole[:cut])
        assert of_choices([*whole[:cut], *rest_of_it]) == of_choices(whole)


def of_choices(groups: list[Group]) -> list[list[bytes]]:
    by_index: list[list[bytes]] = [[], []]
    for group in groups:
        for event in group.events:
            [choice] = json.loads(event.removeprefix(b"data: "))["choices"]
            by_index[choice["index"]].append(event)
    return by_index


PARSERS = {
    name: partial(family.new_parser, {"f": {}, "get_weather": {}}, inside, True)
    for name, family, inside in (
        *((name, OutputFamily(name, "none"), False) for name in ("hermes", "llama3_json", "json")),
        ("mistral", OutputFamily("mistral", "none"), False),
        ("xml", OutputFamily(XML, "none"), False),
        ("thinking", OutputFamily("hermes", "qwen3"), False),
        ("inside", OutputFamily("json", "qwen3"), True),
    )
}
assert THINK.begin == "<think>"


@pytest.mark.parametrize("name", PARSERS)
@given(text=TEXTS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_change_nothing_and_one_call_is_all(name: str, text: str, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, len(text)), max_size=8))
    cuts = sorted(places | {len(text)})
    pieces = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    states = parse_pieces(PARSERS[name], pieces)
    assert states[-1] == parse(PARSERS[name], text)
    assert len(states[-1].calls) <= 1
    parser = PARSERS[name]()
    for place in range(len(text)):
        parser.push(text[place])
        if parser.is_over:
            assert parse(PARSERS[name], text[: place + 1]) == states[-1]
            return
    assert parse(PARSERS[name], f"{text}") == states[-1]


def test_what_follows_a_broken_call_is_gone() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": oops}} <tool_call>'
    assert parse(PARSERS["hermes"], text) == Parsed(calls=[["f", '{"a": ']])
    text = "<function=f>\n<parameter=a>1</parameter> oops </function>"
    assert parse(PARSERS["xml"], text) == Parsed(calls=[["f", '{"a": 1']])
