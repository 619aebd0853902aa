"""Beam search over HTTP, on an engine that says how likely each token is."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from asgi_client import AsgiRequest, until
from fake_engine import FakeEngine

from branchline.engine.types import GenerationRequest, SamplingParams, TokenLogprobs, TokenOutput
from branchline.server.app import create_app
from branchline.server.beam import Beam, BeamSearch, BeamTerms
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, Harness, make_client, make_services

END = 258
LETTERS = (97, 98, 99, END)


def weights(prefix: tuple[int, ...]) -> dict[int, float]:
    """A made-up model: the logprobs of four tokens behind ``prefix``."""
    raw = [1 + (7 * sum(prefix) + 13 * len(prefix) + 5 * one) % 11 for one in range(4)]
    return {one: math.log(value / sum(raw)) for one, value in zip(LETTERS, raw, strict=True)}


def report(prefix: tuple[int, ...], num_top: int | None = None) -> TokenLogprobs:
    top = sorted(weights(prefix).items(), key=lambda pair: -pair[1])[:num_top]
    ids, logprobs = [one for one, _ in top], [value for _, value in top]
    return TokenLogprobs(ids[0], logprobs[0], 1, ids, logprobs)


def every_answer(max_tokens: int) -> list[tuple[int, ...]]:
    """All that the made-up model can say."""
    answers = []
    for length in range(1, max_tokens + 1):
        for body in itertools.product(LETTERS[:3], repeat=length - 1):
            last = (END,) if length < max_tokens else LETTERS
            answers += [(*body, one) for one in last]
    return answers


def total(answer: tuple[int, ...]) -> float:
    return sum(weights(answer[:place])[one] for place, one in enumerate(answer))


class LikelyEngine(FakeEngine):
    """Answers each request with one token and the made-up model's logprobs."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        self.requests.append(request)
        self.running += 1
        finished = False
        try:
            await self._wait()
            entry = report(tuple(request.output_token_ids), request.params.logprobs)
            finished = True
            yield TokenOutput(
                request_id=request.request_id,
                token_ids=[entry.token_id],
                logprobs=[entry],
                finish_reason="length",
                num_cached_tokens=2,
                queue_seconds=0.1,
            )
        finally:
            self.running -= 1
            if not finished:
                self.abort(request.request_id)


def search(terms: BeamTerms, max_tokens: int, **params: Any) -> list[Beam]:
    sampling = SamplingParams(max_tokens=max_tokens, **params)
    found = BeamSearch(terms, sampling, [END], room=100, vocab_size=260)
    while not found.done:
        found.advance([report(beam.token_ids) for beam in found.live])
    return found.best(terms.width)


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_a_wide_search_finds_the_best_of_all(penalty: float) -> None:
    every = every_answer(4)
    scored = sorted(every, key=lambda one: -total(one) / len(one) ** penalty)
    beams = search(BeamTerms(90, penalty), 4)
    assert [beam.token_ids for beam in beams[:10]] == scored[:10]
    for beam in beams[:10]:
        assert beam.total == pytest.approx(total(beam.token_ids))
        assert beam.finish_reason == ("stop" if beam.token_ids[-1] == END else "length")


def test_ends_are_those_that_were_asked_for() -> None:
    assert all(
        beam.token_ids[-1] == 98
        for beam in search(BeamTerms(2), 9, stop_token_ids=(98,))
        if beam.stop_token_id is not None
    )
    assert all(len(beam.token_ids) >= 4 for beam in search(BeamTerms(3), 9, min_tokens=4))
    ignoring = search(BeamTerms(3), 5, ignore_eos=True)
    assert all(len(beam.token_ids) == 5 for beam in ignoring)


def test_only_what_goes_on_or_wins_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Beam] = []

    def counted(*fields: Any) -> Beam:
        made.append(Beam(*fields))
        return made[-1]

    monkeypatch.setattr("branchline.server.beam.Beam", lambda *fields: counted(*fields))
    width, ids = 8, list(range(1000, 1016))
    params = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=2)
    found = BeamSearch(BeamTerms(width), params, [END], room=100, vocab_size=2000)
    made.clear()
    num_steps = 0
    while not found.done:
        falling = [-1.0 - place / 10 for place in range(16)]
        found.advance([TokenLogprobs(1000, -1.0, 1, ids, falling)] * len(found.live))
        num_steps += 1
    assert num_steps == 5
    assert len(made) == num_steps * width, "not one of each of 16 ways to go on"
    best = found.best(width)
    assert best[0].token_ids == (1000,) * 5
    assert [len(entry.top_token_ids) for entry in best[3].logprobs] == [2] * 5
    parents = {id(beam.links.before) for beam in best if beam.links is not None}
    assert len(parents) < width, "what beams have in common is there once"


@pytest.fixture
def engine() -> LikelyEngine:
    return LikelyEngine()


@pytest.fixture
async def house(tokenizer: Tokenizer, engine: LikelyEngine) -> Any:
    services = make_services(tokenizer, engine)
    app = create_app(services)
    async with make_client(app) as client:
        yield Harness(app, services, engine, client)


async def test_beams_come_best_first(house: Harness, engine: LikelyEngine) -> None:
    fields = {"use_beam_search": True, "n": 3, "max_tokens": 5, "logprobs": 2, "temperature": 0.7}
    response = await house.complete(["x", "yy"], return_token_ids=True, **fields)
    answer = response.json()
    expected = [list(beam.token_ids) for beam in search(BeamTerms(3), 5)]
    assert [choice["token_ids"] for choice in answer["choices"]] == expected * 2
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    for choice in answer["choices"]:
        ended = choice["token_ids"][-1] == END
        assert choice["finish_reason"] == ("stop" if ended else "length")
        assert len(choice["logprobs"]["top_logprobs"][0]) in (2, 3)
        spoken = [one for one in choice["token_ids"] if one != END]
        assert choice["text"] == bytes(spoken).decode()
    assert (
        answer["usage"]["completion_tokens"] == len(engine.requests) > 2 * sum(map(len, expected))
    )
    assert engine.running == 0
    assert {request.params.logprobs for request in engine.requests} == {6}


async def test_steps_go_on_with_what_was_generated(house: Harness, engine: LikelyEngine) -> None:
    fields = {"use_beam_search": True, "n": 2, "max_tokens": 3, "cache_salt": "s", "priority": 4}
    await house.complete("x", model=ADAPTER, best_of=4, **fields)
    for request in engine.requests:
        assert request.prompt_token_ids == [120]
        assert request.params.max_tokens == len(request.output_token_ids) + 1
        assert (request.adapter, request.cache_salt, request.priority) == ("digest-a", "s", 4)
    assert max(len(request.output_token_ids) for request in engine.requests) == 2
    assert {request.params.logprobs for request in engine.requests} == {8}


async def test_as_many_logprobs_as_are_asked_for(house: Harness, engine: LikelyEngine) -> None:
    await house.complete("x", use_beam_search=True, n=1, max_tokens=2, logprobs=7)
    assert {request.params.logprobs for request in engine.requests} == {7}


async def test_ends_that_must_not_come_yet_leave_others(
    house: Harness, engine: LikelyEngine
) -> None:
    fields = {"use_beam_search": True, "max_tokens": 4, "min_tokens": 3, "return_token_ids": True}
    answer = (await house.complete("x", stop_token_ids=[98, 99], **fields)).json()
    token_ids = answer["choices"][0]["token_ids"]
    assert token_ids[:2] == [97, 97]
    assert len(token_ids) >= 3
    assert [request.params.logprobs for request in engine.requests][:3] == [5, 5, 2]


async def test_where_all_tokens_are_ends_an_answer_ends_early(house: Harness) -> None:
    fields = {"use_beam_search": True, "n": 3, "max_tokens": 4, "min_tokens": 3}
    response = await house.complete("x", stop_token_ids=[97, 98, 99], **fields)
    choices = response.json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop"] * 3


async def test_more_answers_than_there_are_is_the_clients_fault(
    house: Harness, errors_of: Any
) -> None:
    response = await house.complete("x", use_beam_search=True, n=5, max_tokens=1)
    error = errors_of(response, 400)
    assert error["param"] == "n"
    assert "4" in error["message"]


async def test_beams_that_are_not_shown_are_counted(house: Harness, engine: LikelyEngine) -> None:
    response = await house.complete("x", use_beam_search=True, best_of=4, n=1, max_tokens=5)
    usage = response.json()["usage"]
    assert usage["completion_tokens"] == len(engine.requests) > 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_chats_are_searched_too(house: Harness) -> None:
    answer = (await house.chat("hi", use_beam_search=True, n=2, max_tokens=3)).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    beams = search(BeamTerms(2), 3)
    assert texts == [bytes(one for one in b.token_ids if one != END).decode() for b in beams]


async def test_a_length_penalty_counts(house: Harness) -> None:
    lengths = []
    for penalty in (-5.0, 5.0):
        body = {"use_beam_search": True, "n": 4, "max_tokens": 6, "return_token_ids": True}
        answer = (await house.complete("x", length_penalty=penalty, **body)).json()
        lengths.append(len(answer["choices"][0]["token_ids"]))
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "use_beam_search"),
        ({"stop": "x"}, "stop"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"n": 33}, "n"),
        ({"n": 2, "best_of": 33}, "best_of"),
        ({"length_penalty": 11.0}, "length_penalty"),
        ({"structured_outputs": {"regex": "a"}}, "use_beam_search"),
    ],
)
async def test_what_a_search_can_not_honour_is_refused(
    house: Harness, errors_of: Any, fields: dict[str, Any], param: str
) -> None:
    error = errors_of(await house.complete("x", use_beam_search=True, **fields), 400)
    assert error["param"] == param


async def test_a_failing_step_is_the_answers_failure(tokenizer: Tokenizer, errors_of: Any) -> None:
    engine = FakeEngine()
    engine.error, engine.error_kind = "the queue is full", "overloaded"
    async with make_client(create_app(make_services(tokenizer, engine))) as client:
        body = {"model": BASE, "prompt": "x", "use_beam_search": True, "n": 2}
        errors_of(await client.post("/v1/completions", json=body), 429)
    assert engine.running == 0


async def test_a_client_that_leaves_ends_the_search(house: Harness, engine: LikelyEngine) -> None:
    await house.complete("x", use_beam_search=True, n=4, max_tokens=1)
    engine.go.clear()
    body = {"model": BASE, "prompt": "x", "use_beam_search": True, "n": 4, "max_tokens": 50}
    request = AsgiRequest(house.app, "/v1/completions", json.dumps(body).encode())
    await until(lambda: engine.running > 0)
    request.leave()
    await asyncio.wait_for(request.task, 5)
    assert engine.running == 0
    assert engine.aborted
