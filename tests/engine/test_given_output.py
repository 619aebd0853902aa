"""Requests that were begun elsewhere go on as if they had been begun here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from activated import INVOCATIONS, KV_BYTES_PER_TOKEN, LOUD, PLAIN, SHOUT, Served, serve, start
from activated import words as random_words
from tiny_models import EOS_TOKEN_ID

from branchline.engine.errors import RequestError
from branchline.engine.loop import EngineLoop
from branchline.engine.types import GenerationRequest, SamplingParams, TokenOutput

PROMPT = random_words(21, 1)
CASES: dict[str, tuple[str | None, list[int], dict[str, Any]]] = {
    "greedy": (None, PROMPT, {"logprobs": 2}),
    "sampled": (None, PROMPT, {"temperature": 0.9, "logprobs": 3, "top_p": 0.95}),
    "second choice": (None, PROMPT, {"temperature": 1.3}),
    "penalties": (
        None,
        PROMPT,
        {"repetition_penalty": 1.3, "presence_penalty": 0.6, "frequency_penalty": 0.9},
    ),
    "min_tokens": (
        None,
        PROMPT,
        {"min_tokens": 9, "ignore_eos": False, "logit_bias": {EOS_TOKEN_ID: 100.0}},
    ),
    "adapter": (PLAIN, PROMPT, {"temperature": 0.7, "logprobs": 0}),
    "activated": (SHOUT, [*PROMPT, *INVOCATIONS[SHOUT], 5, 6], {}),
    "not activated": (SHOUT, PROMPT, {}),
    # Its invocation is a token that it says itself: only the prompt's counts.
    "says its invocation": (LOUD, [*PROMPT, *INVOCATIONS[LOUD], 7], {"logit_bias": {234: 3.0}}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def loop(served: Served) -> EngineLoop:
    return start(served)


@pytest.fixture(scope="module")
def chunked(served: Served) -> EngineLoop:
    """An engine that computes what it is given in several steps."""
    return start(served, max_num_batched_tokens=23)


@pytest.fixture(scope="module")
def short(served: Served) -> EngineLoop:
    """An engine of a short context."""
    return start(served, max_model_len=64)


def request_of(case: str, **changes: Any) -> GenerationRequest:
    adapter, prompt, params = CASES[case]
    fixed = {"temperature": 0, "seed": 7, "max_tokens": 14, "ignore_eos": True}
    return GenerationRequest(
        request_id=case,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**fixed, **params, **changes}),
        adapter=adapter,
        choice_index=1 if case == "second choice" else 0,
    )


def run(loop: EngineLoop, requests: Sequence[GenerationRequest]) -> dict[str, list[TokenOutput]]:
    outputs: dict[str, list[TokenOutput]] = {r.request_id: [] for r in requests}
    for generation in requests:
        assert not loop.add(generation)
    while loop.has_work:
        for output in loop.step():
            assert output.finish_reason != "error", output.error
            outputs[output.request_id].append(output)
        loop.check()
    return outputs


def cut(generation: GenerationRequest, token_ids: list[int], num_given: int) -> GenerationRequest:
    return replace(
        generation,
        request_id=f"{generation.request_id} {num_given}",
        output_token_ids=token_ids[:num_given],
    )


def token_ids_of(outputs: Sequence[TokenOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def check_same(resumed: Sequence[TokenOutput], whole: Sequence[TokenOutput]) -> None:
    assert token_ids_of(resumed) == token_ids_of(whole)
    ends = [(o.finish_reason, o.stop_token_id) for o in (resumed[-1], whole[-1])]
    assert ends[0] == ends[1]
    for one, other in zip(resumed, whole, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        for left, right in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert (left.token_id, left.rank) == (right.token_id, right.rank)
            assert left.top_token_ids == right.top_token_ids
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
            assert left.top_logprobs == pytest.approx(right.top_logprobs, abs=1e-4)


def check_every_cut(
    elsewhere: EngineLoop, here: EngineLoop, generation: GenerationRequest
) -> list[int]:
    """What follows each cut, all of them in one batch; returns the undisturbed tokens."""
    [whole] = run(elsewhere, [generation]).values()
    token_ids = token_ids_of(whole)
    cuts = [cut(generation, token_ids, number) for number in range(len(token_ids))]
    here.reset_cache()
    resumed = run(here, cuts)
    for number, request in enumerate(cuts):
        check_same(resumed[request.request_id], whole[number:])
    return token_ids


@pytest.mark.parametrize("case", CASES)
def test_what_follows_a_cut_is_what_would_have_followed(
    loop: EngineLoop, chunked: EngineLoop, case: str
) -> None:
    token_ids = check_every_cut(loop, chunked, request_of(case))
    assert len(token_ids) == (10 if case == "min_tokens" else 14)
    if case == "says its invocation":
        assert INVOCATIONS[LOUD][0] in token_ids


def test_a_stop_token_ends_a_resumed_request(loop: EngineLoop) -> None:
    [whole] = run(loop, [request_of("sampled")]).values()
    stop = token_ids_of(whole)[10]
    assert stop not in token_ids_of(whole)[:10]
    generation = request_of("sampled", stop_token_ids=(stop,), min_tokens=3)
    token_ids = check_every_cut(loop, loop, generation)
    assert token_ids[-1] == stop


@pytest.mark.parametrize("depth", [0, 1])
def test_preempted_and_resumed_ones_are_computed_again(
    served: Served, loop: EngineLoop, depth: int
) -> None:
    room = 26 * 4 * KV_BYTES_PER_TOKEN / 2**30
    small = start(
        served,
        kv_cache_gb=room,
        block_size=4,
        max_model_len=64,
        max_num_batched_tokens=16,
        async_scheduling=bool(depth),
        max_loras=2,
    )
    for case in ("sampled", "penalties"):
        check_every_cut(loop, small, request_of(case, max_tokens=20))
    assert small.stats().num_preemptions > 0


def test_only_new_tokens_come_and_count(loop: EngineLoop) -> None:
    generation = request_of("greedy", max_tokens=40)
    [whole] = run(loop, [generation]).values()
    before = loop.stats()
    [resumed] = run(loop, [cut(generation, token_ids_of(whole), 36)]).values()
    assert len(token_ids_of(resumed)) == 4
    after = loop.stats()
    assert after.num_generation_tokens - before.num_generation_tokens == 4
    # Of the 57 tokens 48 are in whole blocks that were cached; of the prompt that is all.
    assert after.num_computed_prompt_tokens == before.num_computed_prompt_tokens
    assert [output.num_cached_tokens for output in resumed] == [len(PROMPT), 0, 0, 0]
    assert resumed[0].queue_seconds is not None
    assert all(output.queue_seconds is None for output in resumed[1:])


def test_output_can_be_cut_again(loop: EngineLoop) -> None:
    generation = request_of("sampled")
    [whole] = run(loop, [generation]).values()
    token_ids = token_ids_of(whole)
    [middle] = run(loop, [cut(generation, token_ids, 3)]).values()
    again = [*token_ids[:3], *token_ids_of(middle)[:4]]
    [rest] = run(loop, [cut(generation, again, 7)]).values()
    check_same(rest, whole[7:])


@pytest.mark.parametrize(
    ("output", "params", "reason"),
    [
        ([1, 2, 3], {"max_tokens": 3}, "has 3 tokens; with one to generate, the most is 2"),
        ([1] * 43, {"max_tokens": None}, "the most is 42"),
        ([1] * 43, {"max_tokens": 100}, "the most is 42"),
        ([260], {}, r"token ids must be in \[0, 260\)"),
        ([-1], {}, r"token ids must be in \[0, 260\)"),
    ],
)
def test_output_that_leaves_nothing_to_do_is_refused(
    short: EngineLoop, output: list[int], params: dict[str, Any], reason: str
) -> None:
    generation = replace(request_of("greedy", **params), output_token_ids=output)
    with pytest.raises(RequestError, match=reason) as error:
        short.add(generation)
    assert error.value.field == "output_token_ids"
    assert not short.has_work


def test_the_last_token_that_the_context_holds_can_still_come(short: EngineLoop) -> None:
    generation = replace(request_of("greedy", max_tokens=None), output_token_ids=[1] * 42)
    [outputs] = run(short, [generation]).values()
    assert [(len(o.token_ids), o.finish_reason) for o in outputs] == [(1, "length")]
