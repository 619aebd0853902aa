"""The fields that ask for a form of the answer: what they make, and every way to be refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from llguidance import LLMatcher
from structured_cases import BAD, GOOD, HOSTILE

from branchline.engine.grammar.compiler import compile_grammar
from branchline.engine.grammar.vocabulary import GrammarTokenizer
from branchline.engine.types import Grammar
from branchline.server.body import parse_body
from branchline.server.config import Limits
from branchline.server.errors import ApiError
from branchline.server.openai import ChatRequest
from branchline.server.structured.check_worker import check
from branchline.server.structured.checks import GrammarChecks
from branchline.server.structured.read import FieldGrammar, read_grammar
from branchline.server.structured.vocabularies import Vocabularies, read_vocabulary
from branchline.server.text.tokenizer import Tokenizer

from .conftest import Harness

LIMITS = Limits()
CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}


def read(fields: dict[str, Any], limits: Limits = LIMITS) -> FieldGrammar | None:
    return read_grammar(parse_body(ChatRequest, json.dumps(CHAT | fields).encode()), limits)


def matcher_of(grammar: Grammar) -> LLMatcher:
    return compile_grammar(grammar, GrammarTokenizer.of_bytes())


@pytest.mark.parametrize("choice", ["\x7f", 'a\x7f"\\', "\x00\n\x1f", "\x80\u2028\U0001f600"])
def test_any_character_may_be_in_a_choice(choice: str) -> None:
    found = read({"structured_outputs": {"choice": [choice, "b"]}})
    assert found is not None
    matcher = matcher_of(found.grammar)
    assert matcher.consume_tokens(list(choice.encode()))
    assert matcher.is_accepting()


def accepts(grammar: Grammar, text: str) -> bool:
    """Whether a grammar matches the whole of a text."""
    matcher = matcher_of(check(grammar)[0])
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


@pytest.mark.parametrize(("fields", "matching", "other"), GOOD)
def test_what_a_field_asks_for(
    fields: dict[str, Any], matching: list[str], other: list[str]
) -> None:
    found = read(fields)
    assert found is not None
    assert found.field.partition(".")[0] == next(iter(fields))
    assert check(found.grammar)[1] is None
    assert [text for text in matching if not accepts(found.grammar, text)] == []
    assert [text for text in other if accepts(found.grammar, text)] == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": None},
        {"structured_outputs": {"json_object": False}},
        {"guided_json": None},
    ],
)
def test_what_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert read(fields) is None


def refusal_of(fields: dict[str, Any]) -> tuple[str | None, str]:
    """The field that is at fault, and why."""
    try:
        found = read(fields)
    except ApiError as error:
        return error.param, error.message
    return (None, "") if found is None else (found.field, check(found.grammar)[1] or "")


@pytest.mark.parametrize(("fields", "param", "says"), BAD)
def test_what_is_refused_by_its_field(fields: dict[str, Any], param: str, says: str) -> None:
    field, reason = refusal_of(fields)
    assert field == param
    assert reason
    assert says in reason
    assert len(reason) < 1000


@pytest.mark.parametrize(
    ("limit", "value", "fields"),
    [
        ("max_schema_bytes", 200, {"guided_json": {"enum": ["x" * 300]}}),
        ("max_schema_bytes", 200, {"guided_json": json.dumps({"enum": ["x" * 300]})}),
        ("max_schema_depth", 3, {"guided_json": {"a": {"b": {"c": {}}}}}),
        ("max_schema_nodes", 10, {"guided_json": {"enum": list(range(12))}}),
        ("max_regex_characters", 5, {"guided_regex": "abcdef"}),
        ("max_grammar_characters", 11, {"guided_grammar": 'start: "abc"'}),
        ("max_grammar_characters", 12, {"guided_choice": ["abc", "def"]}),
        ("max_structured_choices", 2, {"guided_choice": ["a", "b", "c"]}),
    ],
)
def test_limits(limit: str, value: int, fields: dict[str, Any]) -> None:
    assert read(fields) is not None
    tight = Limits(**{limit: value})  # type: ignore[arg-type]
    with pytest.raises(ApiError) as caught:
        read(fields, tight)
    assert caught.value.param == next(iter(fields))


@pytest_asyncio.fixture
async def checks() -> AsyncIterator[GrammarChecks]:
    made = GrammarChecks()
    yield made
    await made.close()


async def taken_in(checks: GrammarChecks, fields: dict[str, Any]) -> str | None:
    """None if a grammar is taken, else the field that is refused; every error is a 400."""
    try:
        assert await checks.checked(read(fields)) is not None
    except ApiError as error:
        status, param = error.status, error.param
    else:
        return None
    assert status == 400
    return param or "body"


async def test_hostile_grammars_end_in_bounded_time(checks: GrammarChecks) -> None:
    """Each is taken or refused, and the next harmless one is checked as if nothing had been."""
    slowest, num_taken = 0.0, 0
    for fields in HOSTILE:
        started = time.perf_counter()
        refused = await taken_in(checks, fields)
        slowest = max(slowest, time.perf_counter() - started)
        num_taken += refused is None
        assert refused is None or refused == "body" or refused.startswith(next(iter(fields)))
    assert slowest < 30
    assert 0 < num_taken < len(HOSTILE)
    assert await checks.checked(read({"guided_regex": "a"})) == Grammar("regex", "a")


async def test_what_hangs_is_refused_and_remembered() -> None:
    checks = GrammarChecks("branchline.tests.support.structured_cases:hang", max_seconds=0.2)
    try:
        for limit in (20.0, 0.05):
            async with asyncio.timeout(limit):
                with pytest.raises(ApiError, match="too complex"):
                    await checks.checked(read({"guided_regex": "a"}))
    finally:
        await checks.close()


async def test_one_check_serves_all_that_ask_alike(checks: GrammarChecks) -> None:
    first = await checks.checked(read({"guided_grammar": 'root ::= "a" | "b"'}))
    assert first is not None
    assert first.text.startswith("%llguidance") or "start:" in first.text
    await checks.close()  # what is known needs no process
    assert await checks.checked(read({"guided_grammar": 'root ::= "a" | "b"'})) is first


def test_a_vocabulary_is_what_the_tokens_say(tokenizer: Tokenizer) -> None:
    vocabulary = read_vocabulary(tokenizer)
    assert vocabulary.tokens[:256] == [bytes([byte]) for byte in range(256)]
    assert len(vocabulary.tokens) == 260
    assert vocabulary.special_ids == [256, 257, 258, 259]
    vocabularies = Vocabularies()
    path = vocabularies.path_of(tokenizer)
    assert vocabularies.path_of(tokenizer) == path
    read_back = GrammarTokenizer.read(path, [258])
    assert read_back.ll.vocab_size == 261
    assert read_back.end_id == 260


async def test_the_engine_gets_the_grammar_and_the_vocabulary(harness: Harness) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    chat = await harness.post("/v1/chat/completions", CHAT | {"response_format": wanted, "n": 2})
    assert chat.status_code == 200, chat.text
    text = {"model": "base", "prompt": "x", "structured_outputs": {"choice": ["a", "b"]}}
    assert (await harness.post("/v1/completions", text)).status_code == 200
    assert (await harness.post("/v1/chat/completions", CHAT)).status_code == 200
    first, second, third, plain = harness.engine.requests
    assert first.params.grammar is not None
    assert first.params.grammar == second.params.grammar
    assert json.loads(first.params.grammar.text)["properties"] == schema["properties"]
    assert third.params.grammar == Grammar("lark", 'start: CHOICE\nCHOICE: "a" | "b"')
    assert first.vocabulary is not None
    assert first.vocabulary == third.vocabulary
    assert GrammarTokenizer.read(first.vocabulary, ()).end_id == 260
    assert plain.params.grammar is None
    assert plain.vocabulary is None
    await harness.services.grammars.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bad_schema_is_a_400_before_the_first_byte(harness: Harness, stream: bool) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}
    answer = await harness.post(
        "/v1/chat/completions", CHAT | {"response_format": bad, "stream": stream}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "response_format.json_schema.schema"
    assert error["code"] == "invalid_grammar"
    assert error["type"] == "invalid_request_error"
    assert not harness.engine.requests
    await harness.services.grammars.close()


async def test_beams_can_not_have_a_grammar(harness: Harness) -> None:
    body = {"model": "base", "prompt": "x", "use_beam_search": True, "best_of": 2}
    answer = await harness.post("/v1/completions", body | {"guided_choice": ["a"]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "use_beam_search"
