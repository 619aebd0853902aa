"""Strict functions where the model decides: what each family calls fits, and text stays free."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import tool_templates
from grammar_house import GrammarHouse, make_grammar_model, run_all
from jsonschema import Draft202012Validator
from output_parts import parse
from transformers import AutoTokenizer

from branchline.server.config import Limits
from branchline.server.openai import ChatRequest
from branchline.server.output.xml_rules import can_write
from branchline.server.output_plan import ChatOutputs, OutputPlan
from branchline.server.text.detokenizer import TextStream
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness
from .test_structured_wrapped import accepts, matcher
from .test_tools import serve, tools
from .test_tools_single import CODER

__all__ = ["tools"]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bonn", "Köln"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["days"],
    "additionalProperties": False,
}


def tool(schema: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    function = {"name": "f", "parameters": schema or SCHEMA, "strict": True, **fields}
    return {"type": "function", "function": function}


def in_tags(days: str, front: str = "") -> str:
    return f"<function=f>\n{front}<parameter=days>\n{days}\n</parameter>\n</function>"


OBJECT, LLAMA = (
    '{"name": "f", "arguments": {"days": %s}}',
    '{"name": "f", "parameters": {"days": %s}}',
)
CITY = "<parameter=city>\nKöln\n</parameter>\n"
GOOD = [
    ("hermes", f"Well.\n<tool_call>\n{OBJECT % 2}\n</tool_call>"),
    (BASE, f"<tool_call>\n{OBJECT % 2}\n</tool_call>"),
    (BASE, OBJECT % 2),
    (BASE, "[1] ```json\n{}\n```"),
    ("llama3", LLAMA % 2),
    ("llama3", f"\n{LLAMA % 2}; {LLAMA % 3}"),
    ("llama3", f"<|python_tag|>{LLAMA % 2}"),
    ("llama3", "Say {days}."),
    ("mistral", f"Well.[TOOL_CALLS] [{OBJECT % 2}, {OBJECT % 3}]"),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]a1[ARGS]{"days": 2}[TOOL_CALLS]f[ARGS]{"days": 3}'),
    ("mistral", '{"days": 0} [ARGS]'),
    ("coder", f"Well.\n<tool_call>\n{in_tags('2', CITY)}\n</tool_call>"),
    ("coder", in_tags("2")),
    ("coder", "if a <b> then <parameter=days> 0"),
    (
        "qwen3",
        f"<think>{OBJECT % 0} <tool_call></think>\n\n<tool_call>\n{OBJECT % 2}\n</tool_call>",
    ),
]
BAD = [
    ("hermes", f"<tool_call>\n{OBJECT % 0}"),
    (BASE, OBJECT % 0),
    (BASE, f"\n{OBJECT % 0}"),
    ("llama3", LLAMA % 0),
    ("llama3", f"{LLAMA % 2}; {LLAMA % 0}"),
    ("llama3", "<|python_tag|>print(1)"),
    ("mistral", f"[TOOL_CALLS][{OBJECT % 0}"),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"days": 0'),
    ("mistral", "[TOOL_CALLS]g[ARGS]{"),
    ("coder", in_tags("0")),
    ("coder", "<tool_call>\n<function=f>\n</function>"),
    ("coder", in_tags("2", CITY.replace("Köln", "Rome"))),
    ("qwen3", f"<think>hm</think>\n\n<tool_call>\n{OBJECT % 0}"),
]


@pytest.mark.parametrize(("model", "text"), GOOD)
async def test_calls_that_fit_and_texts(tools: Harness, model: str, text: str) -> None:
    serve(tools, "coder", CODER)
    assert await accepts(tools, text, model=model, tools=[tool()])


@pytest.mark.parametrize(("model", "text"), BAD)
async def test_no_other_call_can_be_begun(tools: Harness, model: str, text: str) -> None:
    serve(tools, "coder", CODER)
    found = await matcher(tools, model=model, tools=[tool()])
    data = list(text.encode())
    assert found.try_consume_tokens(data) < len(data)


async def test_a_form_of_the_answer_is_no_call(tools: Harness) -> None:
    """Where an answer may be JSON of the client's, only a mark begins a call."""
    form = {"type": "json_object"}
    fields: dict[str, Any] = {"model": "llama3", "tools": [tool()], "response_format": form}
    assert await accepts(tools, LLAMA % 0, **fields)
    assert await accepts(tools, f"<|python_tag|>{LLAMA % 2}", **fields)
    assert not await accepts(tools, f"<|python_tag|>{LLAMA % 0}", **fields)


FREE = {"type": "string"}
WRITABLE = [
    (SCHEMA, True),
    ({"type": "object"}, True),
    ({"properties": {"a": FREE, "b": {"type": ["number", "null"]}}}, True),
    ({"properties": {"a": {"enum": [1, "x", None]}}}, True),
    ({"properties": {"a": {"type": "array", "items": FREE}}}, False),
    ({"properties": {"a": {**FREE, "pattern": "x"}}}, False),
    ({"properties": {"a": {"enum": ["</parameter>"]}}}, False),
    ({"properties": {"a>": FREE}}, False),
    ({"properties": {"a": True}}, False),
    ({"properties": {"a": {"anyOf": [FREE]}}}, False),
    ({"anyOf": [{"required": ["a"]}]}, False),
    ({"properties": {}, "required": ["a"]}, False),
]


@pytest.mark.parametrize(("schema", "expected"), WRITABLE)
def test_what_tags_can_hold(schema: dict[str, Any], expected: bool) -> None:
    assert can_write(schema) == expected


async def test_what_tags_can_not_hold_is_called_in_json(tools: Harness) -> None:
    serve(tools, "coder", CODER)
    lists = {"type": "object", "properties": {"days": {"type": "array", "items": FREE}}}
    call = OBJECT % '["</parameter>"]'
    text = f"<tool_call>\n{call}\n</tool_call>"
    assert await accepts(tools, text, model="coder", tools=[tool(lists)])
    tagged = f"<tool_call>\n{in_tags('[]')}\n</tool_call>"
    assert not await accepts(tools, tagged, model="coder", tools=[tool(lists)])


MARKS = ["<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"]
TEMPLATES = {
    "HERMES": "<tool_call>",
    "LLAMA3": "<|python_tag|>",
    "MISTRAL": "[TOOL_CALLS]",
    "CODER": "<tool_call>",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> GrammarHouse:
    """A random model whose marks are special tokens, as many models have them."""
    model = make_grammar_model(tmp_path_factory.mktemp("marked"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.save_pretrained(model)
    return GrammarHouse.of(model)


def planned(tokenizer: Tokenizer, template: str, **fields: Any) -> tuple[OutputPlan, Any]:
    """How the server would read an answer, and the grammar that it would have."""
    config: Any = SimpleNamespace(tool_call_parser="auto", reasoning_parser="auto")
    outputs = ChatOutputs(config, Limits())
    chat = {"messages": [{"role": "user", "content": "x"}], "tools": [tool()], **fields}
    body = ChatRequest.model_validate(chat)
    terms = outputs.read(body)
    text = CODER if template == "CODER" else getattr(tool_templates, template)
    plan = outputs.plan(body, terms, text, tokenizer, "")
    found = outputs.grammar(None, terms, plan)
    assert found is not None
    return plan, found.grammar


@pytest.mark.slow
def test_a_random_model_calls_what_fits(house: GrammarHouse) -> None:
    """It is only told to begin: the mark, or a brace, is all that is made likely."""
    engine, requests, plans = house.engine(), [], {}
    for template, mark in TEMPLATES.items():
        plan, grammar = planned(house.tokenizer, template, parallel_tool_calls=False)
        brace = house.tokenizer.encode("{", add_special_tokens=False)[0]
        starts = [house.tokenizer.id_of(mark)] + [brace] * (template == "LLAMA3")
        for start in starts:
            assert start is not None
            for seed in range(3):
                name = f"{template}/{start}/{seed}"
                plans[name] = plan
                vocabulary = house.vocabularies.path_of(house.tokenizer, plan.shown_token_ids)
                options = {"logit_bias": {start: 100.0}, "temperature": 1.0, "seed": seed}
                requests.append(house.request(name, grammar, vocabulary=vocabulary, **options))
    for name, ended in run_all(engine, requests).items():
        assert (ended.reason, ended.error) == ("stop", None), name
        stream = TextStream(house.tokenizer, [], True, plans[name].shown_token_ids)
        text = "".join(map(stream.push, ended.token_ids[:-1])) + stream.flush()
        parsed = parse(plans[name].new_parser, text)
        [[function, arguments]] = parsed.calls
        assert (function, parsed.content) == ("f", ""), text
        Draft202012Validator(SCHEMA).validate(json.loads(arguments))


def test_marks_are_text_for_whom_they_are_shown(house: GrammarHouse) -> None:
    shown = house.tokenizer.special_ids_of(["[TOOL_CALLS]"])
    plain, marked = (
        house.vocabularies.path_of(house.tokenizer),
        house.vocabularies.path_of(house.tokenizer, shown),
    )
    assert plain != marked
    assert house.vocabularies.path_of(house.tokenizer, shown) == marked
