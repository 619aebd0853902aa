"""A client's grammar behind thoughts and beside tools: taken as it is without them."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher

from branchline.engine.grammar.compiler import compile_grammar
from branchline.engine.grammar.vocabulary import GrammarTokenizer

from .conftest import Harness
from .test_tools import WEATHER, chosen, tools

__all__ = ["tools"]

STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
SAYING = {"type": "function", "function": STRICT["function"] | {"description": "x ::= y"}}
PATTERN = {"type": "object", "properties": {"x": {"description": "root ::= y"}}}
MENTIONED = {
    "type": "function",
    "function": {"name": "f", "strict": True, "parameters": PATTERN},
}


async def matcher(house: Harness, **fields: Any) -> LLMatcher:
    """Of the grammar that the engine gets."""
    await chosen(house, **fields)
    grammar = house.engine.requests[-1].params.grammar
    assert grammar is not None
    return compile_grammar(grammar, GrammarTokenizer.of_bytes())


async def accepts(house: Harness, text: str, **fields: Any) -> bool:
    found = await matcher(house, **fields)
    data = list(text.encode())
    return found.try_consume_tokens(data) == len(data) and found.is_accepting()


GIVEN = [
    ({"guided_grammar": 'root ::= "a" | "b"'}, "b"),
    ({"guided_choice": ["a ::= b"]}, "a ::= b"),
    ({"guided_grammar": 'start: "a ::= b"'}, "a ::= b"),
    ({"guided_regex": r"a\/b"}, "a/b"),
    ({"guided_regex": "a/b"}, "a/b"),
    ({"guided_regex": r"a\\/b"}, "a\\/b"),
    ({"guided_regex": r"[/]\\\/"}, "/\\/"),
    ({"guided_regex": "a\nb"}, "a\nb"),
]


@pytest.mark.parametrize(("given", "text"), GIVEN)
async def test_behind_thoughts(tools: Harness, given: dict[str, Any], text: str) -> None:
    assert await accepts(tools, f"<think>hm</think>\n\n{text}", model="qwen3", **given)


@pytest.mark.parametrize(("given", "text"), GIVEN)
async def test_beside_strict_tools(tools: Harness, given: dict[str, Any], text: str) -> None:
    fields = given | {"model": "hermes", "tools": [STRICT]}
    assert await accepts(tools, text, **fields)
    assert not await accepts(tools, f"{text}?", **fields)


async def test_what_tools_say_of_themselves_makes_no_gbnf(tools: Harness) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert await accepts(
        tools, call, model="hermes", tools=[SAYING, MENTIONED], tool_choice="required"
    )


async def test_a_broken_gbnf_is_a_400_of_its_field(tools: Harness) -> None:
    response = await tools.chat(model="qwen3", guided_grammar="root ::= (")
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "guided_grammar"
