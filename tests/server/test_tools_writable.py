"""Schemas of strict functions that tags can't hold: called in JSON, or refused, in little time."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from output_parts import Parsed, parse

from branchline.server import output_plan
from branchline.server.output.xml_rules import MAX_PROPERTIES, can_write

from .conftest import Harness
from .test_structured_wrapped import accepts
from .test_tools import serve, tools
from .test_tools_checked import FREE, OBJECT, in_tags, tool
from .test_tools_parsers import xml
from .test_tools_single import CODER

__all__ = ["tools"]

LARGE = 2**53 + 1
ODD: list[dict[str, Any]] = [
    {"required": [["a"]], "properties": {"a": FREE}},
    {"required": [{}], "properties": {"a": FREE}},
    {"required": [1], "properties": {"a": FREE}},
    {"properties": {"a": {"type": [["x"]]}}},
    {"properties": {"a": {"type": [{"x": 1}]}}},
    {"properties": {"a": {"type": {"x": 1}}}},
    {"additionalProperties": "x"},
]
TOO_MUCH: list[dict[str, Any]] = [
    {"additionalProperties": {"type": "integer"}},
    {"properties": {}, "additionalProperties": {"type": "integer"}},
    {"properties": {"a": {"enum": [1, LARGE]}}},
    {"properties": {"a": {"const": -LARGE}}},
    {"properties": {"a": {"enum": [[LARGE]]}}},
    {"properties": {"a": {"enum": [{"x": LARGE}]}}},
    {"properties": {f"a{n}": FREE for n in range(MAX_PROPERTIES + 1)}},
]
WRITABLE: list[dict[str, Any]] = [
    {"additionalProperties": True},
    {"additionalProperties": {}},
    {"additionalProperties": False},
    {"properties": {"a": FREE}, "additionalProperties": {"type": "integer"}},
    {"properties": {"a": {"enum": [1, 2**53]}}},
    {"properties": {f"a{n}": FREE for n in range(MAX_PROPERTIES)}},
]


@pytest.mark.parametrize("schema", [*ODD, *TOO_MUCH])
def test_what_tags_can_not_hold(schema: dict[str, Any]) -> None:
    assert not can_write({"type": "object", **schema})


@pytest.mark.parametrize("schema", WRITABLE)
def test_what_they_can(schema: dict[str, Any]) -> None:
    assert can_write({"type": "object", **schema})


async def test_no_schema_is_an_error_of_the_servers(tools: Harness) -> None:
    serve(tools, "coder", CODER)
    for schema in ODD:
        response = await tools.chat(model="coder", tools=[tool({"type": "object", **schema})])
        assert response.status_code == 400, schema
        assert response.json()["error"]["param"].startswith("tools")


async def test_open_objects_keep_their_types(tools: Harness) -> None:
    serve(tools, "coder", CODER)
    numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
    fields: dict[str, Any] = {"model": "coder", "tools": [tool(numbers)]}
    assert not await accepts(tools, f"<tool_call>\n{in_tags('x')}\n</tool_call>", **fields)
    assert not await accepts(tools, f"<tool_call>\n{OBJECT % '[]'}\n</tool_call>", **fields)
    assert await accepts(tools, f"<tool_call>\n{OBJECT % 2}\n</tool_call>", **fields)


def test_a_parameter_that_comes_twice_counts_once() -> None:
    a, n = (f"<parameter={p}>\n{v}\n</parameter>\n" for p, v in (("a", "x"), ("n", "1")))
    text = f"<function=f>\n{a}{n}{a.replace('x', 'y')}{n}</function>"
    expected = Parsed(calls=[["f", '{"a": "x", "n": 1}']])
    assert parse(xml, text) == expected
    again = Parsed(calls=[*expected.calls, ["f", '{"a": "y"}']])
    assert parse(xml, f"{text}<function=f>{a.replace('x', 'y')}</function>") == again


def test_a_large_schema_is_seen_through_at_once() -> None:
    many = {f"a{n}": {"type": "integer"} for n in range(4900)}
    start = time.process_time()
    for _ in range(6):
        can_write({"type": "object", "properties": many, "required": ["a0"] * 9900})
    fields = {f"a{n}": {"type": "integer"} for n in range(MAX_PROPERTIES)}
    schema = {"type": "object", "properties": fields, "required": ["a255"] * 9900}
    assert can_write(schema)
    output_plan.xml_rules([("f", json.dumps({**schema, "x-guidance": {}}))] * 6, False)
    assert time.process_time() - start < 0.3


async def test_schemas_are_gone_through_outside_of_the_event_loop(
    tools: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    for name in ("can_write", "xml_rules"):
        work = getattr(output_plan, name)

        def noted(*args: Any, work: Any = work) -> Any:
            threads.append(threading.current_thread())
            return work(*args)

        monkeypatch.setattr(output_plan, name, noted)
    serve(tools, "coder", CODER)
    assert (await tools.chat(model="coder", tools=[tool()])).status_code == 200
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_grammar_of_tools_has_an_end(
    tools: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tools, "coder", CODER)
    monkeypatch.setattr(output_plan, "MAX_GRAMMAR_CHARACTERS", 2000)
    fields = {f"a{n}": {"type": "integer"} for n in range(50)}
    wide = tool({"type": "object", "properties": fields})
    response = await tools.chat(model="coder", tools=[wide])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "tools"
    assert "2000" in error["message"]
