"""What a request may take, and who waits when all queues fill."""

from __future__ import annotations

import math

import pytest

from branchline.gateway.body import ModelRequest
from branchline.gateway.estimates import NUM_SAMPLES_NEEDED, PromptSize, TokenEstimates
from branchline.gateway.fleet.records import ReplicaReport
from branchline.gateway.prepare import prompt_size
from branchline.gateway.shedding import fill, retry_seconds, threshold
from branchline.gateway.types import ReplicaView


def replica(num_waiting: int = 0, most: int | None = 10, **options: object) -> ReplicaView:
    report = ReplicaReport(
        replica_id="r",
        url="",
        epoch="",
        beat=0,
        state="ready",
        fingerprint="",
        models=[],
        max_model_len=1,
        num_waiting=num_waiting,
        max_queued_requests=most,
        **options,  # type: ignore[arg-type]
    )
    return ReplicaView(report=report)


def test_classes_are_spread_over_the_upper_half() -> None:
    assert [threshold(p, (-1, 0, 5)) for p in (-1, 0, 5)] == [math.inf, 0.75, 0.5]
    assert threshold(0, (0,)) == math.inf
    assert threshold(0, ()) == math.inf
    assert threshold(9, (0,)) == 0.5  # nobody configured it: behind all that are


def test_the_emptiest_queue_counts() -> None:
    assert fill([replica(9), replica(4)]) == 0.4
    assert fill([replica(9), replica(4, None)]) == 0
    assert fill([]) == 0


def test_come_again_when_the_shortest_queue_is_computed() -> None:
    slow = replica(num_queued_prefill_tokens=5000, prefill_tokens_per_second=1000.0)
    assert retry_seconds([slow]) == 5
    assert retry_seconds([slow, replica()]) == 1
    assert retry_seconds([]) == 1
    endless = replica(num_queued_prefill_tokens=10**9, prefill_tokens_per_second=1.0)
    assert retry_seconds([endless]) == 30


def test_a_byte_a_token_bounds_until_more_is_known() -> None:
    estimates, size = TokenEstimates(), PromptSize(num_bytes=4000, num_messages=2)
    assert estimates.at_most("m", size) >= 4000
    for _ in range(NUM_SAMPLES_NEEDED):
        estimates.learn("m", size, 1000)
    assert 1000 < estimates.at_most("m", size) < 1500
    assert estimates.likely("m", size) == 1000
    assert estimates.at_most("other", size) >= 4000


def test_a_dense_prompt_keeps_the_bound_up() -> None:
    estimates, size = TokenEstimates(), PromptSize(num_bytes=4000)
    for _ in range(20):
        estimates.learn("m", size, 1000)
    estimates.learn("m", size, 2000)
    estimates.learn("m", size, 1000)
    assert estimates.at_most("m", size) > 2000


def test_a_count_that_the_text_cannot_have_is_not_learnt_from() -> None:
    estimates, usual = TokenEstimates(), PromptSize(num_bytes=40_000, num_messages=2)
    for _ in range(20):
        estimates.learn("m", usual, 10_000)
    before = estimates.at_most("m", usual)
    for _ in range(3):
        estimates.learn("m", PromptSize(num_bytes=80, num_messages=1), 60_000)
    assert estimates.at_most("m", usual) == before
    assert estimates.likely("m", usual) == 10_000


def test_one_prompt_moves_the_bound_by_half_at_most() -> None:
    estimates, usual = TokenEstimates(), PromptSize(num_bytes=40_000)
    for _ in range(20):
        estimates.learn("m", usual, 5_000)
    before = estimates.at_most("m", usual)
    estimates.learn("m", PromptSize(num_bytes=80), 80)
    assert before < estimates.at_most("m", usual) <= 2 * before


def test_digits_and_other_scripts_are_bounded_by_a_byte_a_token() -> None:
    """However many plain prompts came before."""
    estimates = TokenEstimates()
    for _ in range(50):
        estimates.learn("m", PromptSize(num_bytes=4000), 1000)
    for text in ("0123456789" * 100, "\u20ac" * 400):
        size = prompt_size(ModelRequest(prompt=text), text.encode(), b"")
        assert estimates.at_most("m", size) >= len(text.encode())
    plain = prompt_size(ModelRequest(prompt="ab " * 400), b"ab " * 400, b"")
    assert estimates.at_most("m", plain) < 600


def test_models_are_bounded() -> None:
    estimates = TokenEstimates()
    for number in range(5000):
        estimates.learn(f"m{number}", PromptSize(num_bytes=400), 100)
    assert len(estimates._ratios) == 4096


@pytest.mark.parametrize(
    ("request_", "num_output"),
    [
        (ModelRequest(messages=[], max_tokens=7), 7),
        (ModelRequest(messages=[], max_completion_tokens=7, n=3), 21),
        (ModelRequest(messages=[]), 999),
        (ModelRequest(prompt="a"), 16),
        (ModelRequest(prompt=["a", "b"], max_tokens=5, n=2), 20),
        (ModelRequest(prompt=[1, 2, 3], max_tokens=5), 5),
        (ModelRequest(prompt=[[1], [2]], max_tokens=5), 10),
        (ModelRequest(messages=[], max_tokens=10**6), 1000),
    ],
)
def test_output_is_over_all_answers(request_: ModelRequest, num_output: int) -> None:
    size = prompt_size(request_, b"a", b"{}")
    estimate = TokenEstimates().estimate("m", request_, size, 1000)
    assert estimate.num_output_tokens == num_output


def test_token_ids_are_exact() -> None:
    assert prompt_size(ModelRequest(prompt=[1, 2, 3]), b"", b"{}").num_token_ids == 3
    assert prompt_size(ModelRequest(prompt=[[1, 2], [3]]), b"", b"{}").num_token_ids == 3
    assert prompt_size(ModelRequest(prompt=["a", "b"]), b"", b"x" * 40).num_bytes == 40
