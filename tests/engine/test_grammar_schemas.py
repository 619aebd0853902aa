"""Random JSON schemas: every answer that ends by itself validates."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest
from grammar_house import COMPACT, GrammarHouse, make_grammar_model, run_all
from jsonschema import Draft202012Validator

from branchline.engine.grammar.cache import Compiled
from branchline.engine.grammar.compiler import compile_grammar
from branchline.engine.grammar.matching import RequestGrammar
from branchline.engine.grammar.vocabulary import GrammarTokenizer
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, Grammar, SamplingParams

NUM_QUICK, NUM_ALL = 12, 200
END = 300


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> GrammarHouse:
    return GrammarHouse.of(make_grammar_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module", params=[False, True], ids=["step by step", "ahead"])
def loop(request: pytest.FixtureRequest, house: GrammarHouse) -> EngineLoop:
    return house.engine(async_scheduling=request.param, max_num_seqs=32)


def loose_schemas(count: int) -> list[dict[str, Any]]:
    """Schemas that leave much open: untyped, with other properties, without bounds."""
    numbers = random.Random(count + 1)
    return [_loose(numbers, 0) for _ in range(count)]


def _loose(numbers: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {},
        {"type": numbers.sample(["string", "number", "integer", "boolean", "null"], 2)},
        {"type": "number", "exclusiveMinimum": numbers.randint(-9, 9)},
        {"type": "string", "pattern": numbers.choice(["a+b", "^x", "[0-9]$", "^(yes|no)$"])},
        {"enum": numbers.sample([0, "0", None, [], {}, 1.5, True], 3)},
        {"$ref": "#/$defs/tree", "$defs": _TREE} if not depth else {"minimum": 2},
    ]
    if depth < 2:
        inner = [_loose(numbers, depth + 1) for _ in range(4)]
        kinds += [
            {"anyOf": inner[:2]},
            {"type": "array", "prefixItems": inner[:2], "items": inner[2], "maxItems": 4},
            {"type": "object", "properties": {"p": inner[0], "q": inner[1]}, "required": ["q"]},
            {"type": "object", "additionalProperties": inner[3], "properties": {"p": inner[0]}},
            {"type": "object", "patternProperties": {"^z": inner[2]}, "required": ["za"]},
            {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 90}]},
        ]
    return numbers.choice(kinds)


_TREE = {
    "tree": {
        "type": "object",
        "properties": {"leaf": {"type": "integer"}, "left": {"$ref": "#/$defs/tree"}},
        "required": ["leaf"],
        "additionalProperties": False,
    }
}


def structured_schemas(count: int) -> list[dict[str, Any]]:
    """Schemas as applications have them: objects in objects, all of their values bounded."""
    numbers = random.Random(count)
    return [_object(numbers, 0) for _ in range(count)]


def _object(numbers: random.Random, depth: int) -> dict[str, Any]:
    names = numbers.sample(["id", "name", "größe", "a b", "x-y", "tags", "nested", "ok"], 3)
    return {
        "type": "object",
        "properties": {name: _value(numbers, depth + 1) for name in names},
        "required": names[: numbers.randint(1, 3)],
        "additionalProperties": False,
    }


def _value(numbers: random.Random, depth: int) -> dict[str, Any]:
    low = numbers.randint(-50, 50)
    kinds: list[dict[str, Any]] = [
        {"type": "integer", "minimum": low, "maximum": low + numbers.randint(0, 400)},
        {"type": "string", "minLength": numbers.randint(0, 3), "maxLength": numbers.randint(3, 9)},
        {"type": "string", "pattern": f"^[a-f]{{2,{numbers.randint(2, 6)}}}-[0-9]+x$"},
        {"enum": ["red", 3, None, {"a": [1]}, '"quoted"\n']},
        {"const": numbers.choice(["語", 1.5, False])},
        {"type": "string", "format": numbers.choice(["date", "ipv4", "uuid", "time"])},
        {"type": ["boolean", "null"]},
        {
            "anyOf": [
                {"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99},
                {"const": "n"},
            ]
        },
    ]
    if depth < 3:
        kinds.append(_object(numbers, depth))
        items = _value(numbers, depth + 1)
        kinds.append({"type": "array", "items": items, "minItems": 1, "maxItems": 3})
    return numbers.choice(kinds)


def requests_for(house: GrammarHouse, schemas: list[dict[str, Any]]) -> list[GenerationRequest]:
    """One a schema, drawn, and one in five rows without a grammar between them."""
    grammars: list[Grammar | None] = []
    for i, schema in enumerate(schemas):
        grammars.append(Grammar("json_schema", json.dumps({**schema, **COMPACT})))
        grammars += [None] if i % 5 == 0 else []
    return [
        house.request(f"r{i}", grammar, temperature=1.0, seed=i, max_tokens=200 if grammar else 10)
        for i, grammar in enumerate(grammars)
    ]


def check_all(house: GrammarHouse, loop: EngineLoop, schemas: list[dict[str, Any]]) -> int:
    """How many answers ended by themselves; each of these validates."""
    requests = requests_for(house, schemas)
    ended = run_all(loop, requests)
    num_whole = 0
    for request in requests:
        end, grammar = ended[request.request_id], request.params.grammar
        assert end.reason in ("stop", "length"), end.error
        if grammar is None or end.reason == "length":
            continue
        text = house.text(end.token_ids)
        errors = list(Draft202012Validator(json.loads(grammar.text)).iter_errors(json.loads(text)))
        assert not errors, (grammar.text, text)
        num_whole += 1
    return num_whole


def test_a_dozen_schemas(house: GrammarHouse, loop: EngineLoop) -> None:
    half = NUM_QUICK // 2
    schemas = structured_schemas(half) + loose_schemas(half)
    assert check_all(house, loop, schemas) >= NUM_QUICK * 0.6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_schemas(house: GrammarHouse, loop: EngineLoop) -> None:
    assert check_all(house, loop, structured_schemas(NUM_ALL)) >= NUM_ALL * 0.9
    assert check_all(house, loop, loose_schemas(NUM_ALL)) >= NUM_ALL * 0.5


@pytest.mark.parametrize("schemas", [structured_schemas(NUM_ALL), loose_schemas(NUM_ALL)])
def test_a_random_walk_through_two_hundred_schemas(schemas: list[dict[str, Any]]) -> None:
    """Without a model: any byte that is allowed; what ends validates."""
    tokenizer, numbers, num_whole = GrammarTokenizer.of_bytes(), random.Random(5), 0
    for schema in schemas:
        grammar = Grammar("json_schema", json.dumps({**schema, **COMPACT}))
        compiled = Compiled(compile_grammar(grammar, tokenizer), tokenizer)
        walk = RequestGrammar(compiled, SamplingParams(), [END])
        tokens: list[int] = []
        while len(tokens) < 250 and END not in tokens:
            allowed = walk.allow(tokens, must_wait=False)
            assert allowed.bits is not None, (schema, allowed.error)
            flags = np.unpackbits(allowed.bits.view(np.uint8), bitorder="little")
            tokens.append(numbers.choice(np.flatnonzero(flags).tolist()))
        if tokens[-1] == END:
            value = json.loads(bytes(tokens[:-1]))
            assert Draft202012Validator(schema).is_valid(value), (schema, value)
            num_whole += 1
    assert num_whole > NUM_ALL * 0.5


def test_the_schemas_are_of_many_kinds() -> None:
    text = json.dumps(structured_schemas(NUM_ALL))
    for word in ("enum", "const", "pattern", "format", "anyOf", "multipleOf", "maxItems"):
        assert len(re.findall(f'"{word}"', text)) > 10, word
