"""The plan of a load run: exact lengths, shared prefixes, model shares, arrival times."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from branchline.server.bench.workload import (
    WORDS,
    PlannedRequest,
    Workload,
    plan_requests,
    plan_warmup,
    request_body,
)

THREE = Workload(models=("base", "a", "b"), num_prompts=30, input_len=7)


def prompts(workload: Workload) -> list[list[int]]:
    planned = [request.prompt for request in plan_requests(workload)]
    assert all(isinstance(prompt, list) for prompt in planned)
    return [prompt for prompt in planned if isinstance(prompt, list)]


def test_the_same_seed_gives_the_same_requests_and_another_seed_others() -> None:
    assert plan_requests(THREE) == plan_requests(THREE)
    assert prompts(THREE) != prompts(replace(THREE, seed=1))


def test_prompts_have_exact_lengths_and_are_distinct() -> None:
    planned = prompts(replace(THREE, vocab_size=50))
    assert {len(prompt) for prompt in planned} == {7}
    assert len({tuple(prompt) for prompt in planned}) == 30
    assert all(0 <= token < 50 for prompt in planned for token in prompt)


@pytest.mark.parametrize("num_prefixes", [1, 3, 30])
def test_prefixes_are_shared_by_as_many_as_asked(num_prefixes: int) -> None:
    planned = prompts(replace(THREE, prefix_len=12, num_prefixes=num_prefixes))
    assert {len(prompt) for prompt in planned} == {19}
    counts = Counter(tuple(prompt[:12]) for prompt in planned)
    assert sorted(counts.values()) == [30 // num_prefixes] * num_prefixes
    assert len({tuple(prompt[12:]) for prompt in planned}) == 30


def test_chat_prompts_are_words_with_a_shared_opening() -> None:
    workload = replace(THREE, endpoint="chat", prefix_len=5)
    texts = [str(request.prompt) for request in plan_requests(workload)]
    assert {len(text.split()) for text in texts} == {12}
    assert len({" ".join(text.split()[:5]) for text in texts}) == 1
    assert set(" ".join(texts).split()) <= set(WORDS.split())


def test_round_robin_serves_models_in_turn() -> None:
    names = [request.model for request in plan_requests(THREE)]
    assert names == ["base", "a", "b"] * 10


def test_zipf_shares_follow_the_rank() -> None:
    workload = replace(THREE, num_prompts=6000, model_choice="zipf", input_len=1)
    counts = Counter(request.model for request in plan_requests(workload))
    shares = [counts[name] / 6000 for name in ("base", "a", "b")]
    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.03)


def test_poisson_arrivals_have_the_rate_and_its_spread() -> None:
    workload = replace(THREE, num_prompts=4000, rate=20.0, input_len=1)
    times = [request.arrival for request in plan_requests(workload)]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert min(gaps) > 0
    assert mean == pytest.approx(1 / 20, rel=0.1)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_without_a_rate_everything_may_start_at_once() -> None:
    assert {request.arrival for request in plan_requests(THREE)} == {0.0}


def test_warmup_meets_every_model_with_other_prompts() -> None:
    warmup = plan_warmup(replace(THREE, rate=5.0))
    assert [request.model for request in warmup] == ["base", "a", "b"]
    assert {request.arrival for request in warmup} == {0.0}
    measured = prompts(THREE)
    assert not any(request.prompt in measured for request in warmup)
    assert plan_warmup(replace(THREE, num_warmup=0)) == []


def test_bodies_ask_for_a_stream_with_usage() -> None:
    workload = replace(THREE, output_len=9, ignore_eos=True, temperature=0.5, seed=3)
    assert request_body(workload, PlannedRequest("a", [1, 2], 0.0)) == {
        "model": "a",
        "prompt": [1, 2],
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    chat = request_body(replace(THREE, endpoint="chat"), PlannedRequest("a", "hi", 0.0))
    assert chat["messages"] == [{"role": "user", "content": "hi"}]
    assert "prompt" not in chat
    assert "ignore_eos" not in chat
