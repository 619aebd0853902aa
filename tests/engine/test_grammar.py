"""Answers under grammars: what they match, what the rest of the batch is, how they end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grammar_house import Ended, GrammarHouse, json_grammar, make_grammar_model, run_all
from jsonschema import Draft202012Validator

from branchline.engine.errors import RequestError
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "größe"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
DATE = Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
CHOICE = Grammar("lark", 'start: "yes" | "no" | "maybe so"')
SUM = Grammar("lark", 'start: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]{0,3}/')


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> GrammarHouse:
    return GrammarHouse.of(make_grammar_model(tmp_path_factory.mktemp("model")))


def mixed(house: GrammarHouse) -> list[GenerationRequest]:
    """Every kind of grammar, greedy and drawn, several choices, and rows without one between."""
    grammars = [json_grammar(PERSON), DATE, CHOICE, SUM, None]
    return [
        house.request(
            f"{i}-{j}-{choice}",
            grammar,
            prompt=f"{i} Write something: ",
            temperature=(0.0, 1.0)[j],
            seed=17 + i,
            choice_index=choice,
            max_tokens=60 if grammar else 24,
            logprobs=2 if i == 4 else None,
        )
        for i, grammar in enumerate(grammars)
        for j in range(2)
        for choice in range(2)
    ]


def matches(house: GrammarHouse, request: GenerationRequest, end: Ended) -> bool:
    """Whether an ended answer is what its grammar says, or one cut by its length was on its way."""
    text = house.text(end.token_ids)
    grammar = request.params.grammar
    assert grammar is not None
    if end.reason == "length":
        return grammar.kind == "json_schema"  # a string may be long
    assert end.reason == "stop", end
    if grammar.kind == "json_schema":
        return bool(Draft202012Validator(PERSON).is_valid(json.loads(text)))
    if grammar == CHOICE:
        return text in ("yes", "no", "maybe so")
    pattern = r"[1-9][0-9]{0,3}(\+[1-9][0-9]{0,3}){1,3}" if grammar == SUM else grammar.text
    return re.fullmatch(pattern, text) is not None


@pytest.fixture(scope="module")
def loop(house: GrammarHouse) -> EngineLoop:
    return house.engine()


@pytest.fixture(scope="module")
def ahead(house: GrammarHouse) -> EngineLoop:
    """One that plans a step ahead of what it has seen."""
    return house.engine(async_scheduling=True)


@pytest.fixture(scope="module", params=["loop", "ahead"])
def either(request: pytest.FixtureRequest) -> EngineLoop:
    """Each of these."""
    engine: EngineLoop = request.getfixturevalue(request.param)
    return engine


@pytest.fixture(scope="module")
def alone(house: GrammarHouse, loop: EngineLoop) -> dict[str, Ended]:
    """Each request by itself."""
    ended: dict[str, Ended] = {}
    for request in mixed(house):
        ended |= run_all(loop, [request])
    return ended


def test_answers_match_their_grammars(house: GrammarHouse, alone: dict[str, Ended]) -> None:
    requests = [request for request in mixed(house) if request.params.grammar]
    assert all(matches(house, request, alone[request.request_id]) for request in requests)
    assert any(alone[request.request_id].reason == "stop" for request in requests[:4])
    texts = {house.text(end.token_ids) for end in alone.values()}
    assert len(texts) > len(requests) // 2


def test_choices_of_a_seed_differ_and_come_again(alone: dict[str, Ended]) -> None:
    assert alone["1-1-0"].token_ids != alone["1-1-1"].token_ids


def test_a_batch_changes_nothing(
    house: GrammarHouse, alone: dict[str, Ended], either: EngineLoop
) -> None:
    assert run_all(either, mixed(house)) == alone


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7},
        {"kv_cache_gb": 0.0003, "max_model_len": 96, "block_size": 4},
        {"kv_cache_gb": 0.0003, "max_model_len": 96, "block_size": 4, "async_scheduling": True},
    ],
    ids=["chunked", "preempted", "preempted ahead"],
)
def test_a_small_engine_changes_nothing(
    house: GrammarHouse, alone: dict[str, Ended], options: dict[str, Any]
) -> None:
    loop = house.engine(**options)
    assert run_all(loop, mixed(house)) == alone
    assert bool(loop.stats().num_preemptions) == ("kv_cache_gb" in options)


def test_rows_without_a_grammar_are_bit_equal_with_and_without_company(
    house: GrammarHouse, either: EngineLoop
) -> None:
    """Rows of one batch that differ in whether the others have grammars: tokens and logprobs."""
    plain = [request for request in mixed(house) if request.params.grammar is None]
    free = [replace(r, params=replace(r.params, grammar=None)) for r in mixed(house)]
    found: list[dict[str, list[Any]]] = []
    for requests in (mixed(house), free):
        outputs: dict[str, list[Any]] = {request.request_id: [] for request in plain}
        for request in requests:
            either.add(request)
        while either.has_work:
            for output in either.step():
                if output.request_id in outputs:
                    outputs[output.request_id].append((output.token_ids, output.logprobs))
        found.append(outputs)
    assert found[0] == found[1]


def test_what_was_generated_elsewhere_goes_on(
    house: GrammarHouse, alone: dict[str, Ended], either: EngineLoop
) -> None:
    for request in mixed(house)[:16]:
        whole = alone[request.request_id].token_ids
        cut = len(whole) // 2
        resumed = house.request(
            request.request_id,
            request.params.grammar,
            prompt=house.text(request.prompt_token_ids),
            temperature=request.params.temperature,
            seed=request.params.seed,
            max_tokens=request.params.max_tokens,
            choice_index=request.choice_index,
            output_token_ids=whole[:cut],
        )
        assert run_all(either, [resumed])[request.request_id].token_ids == whole[cut:]


def test_given_output_that_does_not_match_is_refused(house: GrammarHouse, loop: EngineLoop) -> None:
    given = house.tokenizer.encode("12x", add_special_tokens=False)
    request = house.request("r", DATE, output_token_ids=given)
    end = run_all(loop, [request])["r"]
    assert (end.reason, end.error_kind) == ("error", "refused")
    assert "does not match" in (end.error or "")


def test_a_grammar_that_can_not_be_compiled_ends_its_own_request_alone(
    house: GrammarHouse, loop: EngineLoop
) -> None:
    num_failed = loop.stats().num_failed_grammars
    bad = house.request("bad", Grammar("regex", "(?=a)b"))
    ended = run_all(
        loop, [bad, house.request("good", CHOICE), house.request("plain", None, max_tokens=9)]
    )
    assert (ended["bad"].reason, ended["bad"].error_kind) == ("error", "refused")
    assert (ended["bad"].error or "").startswith("grammar: ")
    assert house.text(ended["good"].token_ids) in ("yes", "no", "maybe so")
    assert ended["plain"].reason in ("stop", "length")
    assert loop.stats().num_failed_grammars == num_failed + 1


def test_grammars_are_compiled_once(house: GrammarHouse) -> None:
    loop = house.engine()
    run_all(loop, [house.request(f"a{i}", DATE) for i in range(4)])
    run_all(loop, [house.request("b", DATE), house.request("c", CHOICE)])
    stats = loop.stats()
    assert (stats.num_compiled_grammars, stats.num_grammar_hits) == (2, 4)
    assert stats.num_cached_grammars == 2
    assert stats.grammar_compile_seconds > 0
    assert stats.num_waiting_for_grammar == 0


def test_a_request_can_be_aborted_at_any_time(house: GrammarHouse, loop: EngineLoop) -> None:
    loop.add(house.request("waits", Grammar("regex", "[0-9]{40}")))
    loop.abort("waits")
    loop.add(house.request("runs", DATE))
    while not loop.stats().num_running:
        loop.step()
    loop.abort("runs")
    while loop.has_work:
        loop.step()
    loop.check()


def test_an_id_can_not_be_taken_twice_and_a_vocabulary_is_needed(
    house: GrammarHouse, loop: EngineLoop
) -> None:
    loop.add(house.request("r", DATE))
    with pytest.raises(RequestError, match="in use"):
        loop.add(house.request("r", DATE))
    with pytest.raises(RequestError, match="vocabulary"):
        loop.add(house.request("s", DATE, vocabulary=None))
    loop.abort("r")


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"ignore_eos": True}, "aaaa"),
        ({"min_tokens": 200}, "aaaa"),
        ({}, None),
    ],
)
def test_an_end_waits_as_long_as_the_grammar_can_go_on(
    house: GrammarHouse, either: EngineLoop, params: dict[str, Any], text: str | None
) -> None:
    eos = int(house.tokenizer.backend.token_to_id("<|im_end|>") or 0)
    grammar = Grammar("regex", "a{0,4}")
    request = house.request("r", grammar, logit_bias={eos: 50.0}, **params)
    end = run_all(either, [request])["r"]
    assert end.reason == "stop"
    assert house.text(end.token_ids) == (text or "")
    assert end.token_ids[-1] == eos


def test_a_stop_token_of_the_text_ends_it_and_a_special_one_where_the_grammar_ends(
    house: GrammarHouse, loop: EngineLoop
) -> None:
    [dash] = house.tokenizer.encode("-", add_special_tokens=False)
    pad = int(house.tokenizer.backend.token_to_id("<|pad|>") or 0)
    eos = int(house.tokenizer.backend.token_to_id("<|im_end|>") or 0)
    end = run_all(loop, [house.request("r", DATE, stop_token_ids=(dash,))])["r"]
    assert re.fullmatch("[0-9]{4}-", house.text(end.token_ids))
    bias = {pad: 20.0, eos: -20.0}
    end = run_all(loop, [house.request("r", DATE, stop_token_ids=(pad,), logit_bias=bias)])["r"]
    assert re.fullmatch(DATE.text, house.text(end.token_ids))
    assert end.token_ids[-1] == pad


def test_limits_on_tokens_that_leave_none_are_refused(
    house: GrammarHouse, loop: EngineLoop
) -> None:
    [x] = house.tokenizer.encode("x", add_special_tokens=False)
    request = house.request("r", DATE, allowed_token_ids=(x,))
    end = run_all(loop, [request])["r"]
    assert (end.reason, end.error_kind) == ("error", "refused")
    assert "no token is left" in (end.error or "")


def test_a_greedy_row_takes_the_best_of_what_is_allowed(
    house: GrammarHouse, loop: EngineLoop
) -> None:
    """Of the model's own logits: the largest whose text the pattern can go on with."""
    pattern = re.compile(r"[0-9]{0,6}")
    request = house.request("r", Grammar("regex", "[0-9]{6}"), logprobs=20)
    chosen: list[int] = []
    loop.add(request)
    while loop.has_work:
        for output in loop.step():
            chosen += output.token_ids
    prompt = request.prompt_token_ids
    text = ""
    for position, token_id in enumerate(chosen[:-1]):
        probe = house.request("p", None, max_tokens=1, logprobs=960)
        probe.prompt_token_ids[:] = [*prompt, *chosen[:position]]
        [entry] = [o.logprobs for o in _outputs(loop, probe) if o.logprobs]
        ranked = entry[0].top_token_ids
        best = next(
            token
            for token in ranked
            if house.text([token]) and pattern.fullmatch(text + house.text([token]))
        )
        assert token_id == best
        text += house.text([token_id])
    assert len(text) == 6


def _outputs(loop: Any, request: GenerationRequest) -> list[Any]:
    loop.add(request)
    outputs = []
    while loop.has_work:
        outputs += loop.step()
    return outputs


def test_the_model_directory_is_what_it_says(house: GrammarHouse) -> None:
    assert Path(house.model, "tokenizer.json").is_file()
    assert max(len(house.tokenizer.token_bytes(i)) for i in range(900)) > 4
