"""Admission, chunking, preemption and finishing, an example each."""

from __future__ import annotations

import pytest
from small_scheduler import EOS, generation, lengths, make_scheduler, step

from branchline.engine.errors import RequestError
from branchline.engine.plan import SampledToken
from branchline.engine.types import GenerationRequest, SamplingParams


def test_a_prompt_is_cut_to_the_budget_and_samples_at_its_end():
    scheduler = make_scheduler(budget=8)
    scheduler.add(generation("a", num_prompt=20))
    plans = [step(scheduler) for _ in range(3)]
    assert [lengths(plan)["a"] for plan, _ in plans] == [8, 8, 4]
    assert [len(outputs) for _, outputs in plans] == [0, 0, 1]


def test_decodes_go_before_prompt_chunks_in_budget_and_batch():
    scheduler = make_scheduler(budget=8)
    scheduler.add(generation("old", num_prompt=30, max_tokens=20))
    step(scheduler)
    scheduler.add(generation("short", num_prompt=3, max_tokens=20, priority=-1))
    for _ in range(8):
        plan, _ = step(scheduler)
    assert lengths(plan) == {"old": 1, "short": 1}
    scheduler.add(generation("new", num_prompt=30))
    plan, _ = step(scheduler)
    assert [c.num_scheduled_tokens for c in plan.chunks] == [1, 1, 6]


def test_no_more_than_max_num_seqs_run():
    scheduler = make_scheduler(max_num_seqs=2)
    for name in "abc":
        scheduler.add(generation(name))
    step(scheduler)
    assert (len(scheduler.running), scheduler.num_waiting) == (2, 1)


def test_lower_priority_numbers_start_first_then_the_oldest():
    scheduler = make_scheduler(max_num_seqs=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 0)):
        scheduler.add(generation(name, priority=priority, max_tokens=1))
    started = [next(iter(lengths(step(scheduler)[0]))) for _ in range(3)]
    assert started == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("params", "tokens", "reason", "stop_token_id"),
    [
        ({"max_tokens": 3}, [7, 7, 7], "length", None),
        ({"max_tokens": 9}, [7, EOS], "stop", None),
        ({"max_tokens": 3, "ignore_eos": True}, [EOS, EOS, EOS], "length", None),
        ({"max_tokens": 9, "stop_token_ids": (8,)}, [7, 8], "stop", 8),
        ({"max_tokens": 9, "min_tokens": 3}, [EOS, EOS, EOS], "stop", None),
        ({"max_tokens": None}, [7] * 95, "length", None),  # the model's context ends
    ],
)
def test_how_a_request_ends(params, tokens, reason, stop_token_id):
    scheduler = make_scheduler()
    scheduler.add(generation("a", **params))
    outputs = [step(scheduler, token)[1][0] for token in tokens]
    assert [output.token_ids for output in outputs] == [[token] for token in tokens]
    assert [output.finish_reason for output in outputs] == [None] * (len(tokens) - 1) + [reason]
    assert outputs[-1].stop_token_id == stop_token_id
    assert not scheduler.has_requests
    assert scheduler.cache.blocks.num_available == scheduler.cache.pool.num_usable


@pytest.mark.parametrize(("caching", "num_again"), [(False, 9), (True, 5)])
def test_the_last_in_rank_gives_way_and_starts_again(caching, num_again):
    """Of four blocks the one who stays takes three, and one of the other's is still there."""
    scheduler = make_scheduler(num_blocks=5, max_model_len=16, caching=caching)
    scheduler.add(generation("a", num_prompt=8, max_tokens=5))
    scheduler.add(generation("b", num_prompt=8, max_tokens=8))
    step(scheduler)
    plan, outputs = step(scheduler, token_id=8)
    assert lengths(plan) == {"a": 1}
    assert [output.request_id for output in outputs] == ["a"]
    assert (scheduler.num_preemptions, scheduler.num_waiting) == (1, 1)
    while scheduler.running[0].request_id == "a":
        plan, _ = step(scheduler)
        if not scheduler.running:
            plan, _ = step(scheduler)
    assert lengths(plan) == {"b": num_again}
    assert plan.sampling_chunks()


@pytest.mark.parametrize("end", ["abort", "length"])
def test_blocks_are_cleared_before_reuse_however_their_request_ended(end):
    scheduler = make_scheduler(num_blocks=4, max_model_len=12, caching=False)
    scheduler.add(generation("a", num_prompt=10, max_tokens=2))
    step(scheduler)
    held = set(scheduler.running[0].blocks.block_ids)
    if end == "abort":
        scheduler.abort("a")
    else:
        step(scheduler)
    assert scheduler.schedule().zero_block_ids == ()
    scheduler.add(generation("b", num_prompt=9))
    plan, _ = step(scheduler)
    assert set(plan.zero_block_ids) == held
    assert scheduler.schedule().zero_block_ids == ()


def test_a_row_in_error_ends_its_request_alone():
    scheduler = make_scheduler()
    scheduler.add(generation("a"))
    scheduler.add(generation("b"))
    plan = scheduler.schedule()
    outputs = scheduler.apply(plan, [SampledToken(0, error="not finite"), SampledToken(7)])
    assert [(o.request_id, o.finish_reason) for o in outputs] == [("a", "error"), ("b", None)]
    assert outputs[0].error == "not finite"
    scheduler.check()


def test_a_failed_step_ends_its_requests_and_no_others():
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(generation("a"))
    scheduler.add(generation("b"))
    outputs = scheduler.fail(scheduler.schedule(), "boom")
    assert [(o.request_id, o.finish_reason, o.error) for o in outputs] == [("a", "error", "boom")]
    scheduler.check()
    assert lengths(step(scheduler)[0]) == {"b": 5}


def test_abort_is_for_any_state_and_any_number_of_times():
    scheduler = make_scheduler(max_num_seqs=1)
    for name in "ab":
        scheduler.add(generation(name))
    step(scheduler)
    for name in ("a", "b", "a", "never"):
        scheduler.abort(name)
        scheduler.check()
    assert not scheduler.has_requests
    assert not scheduler.schedule().chunks


def test_an_adapter_slot_is_held_from_admission_to_the_end():
    scheduler = make_scheduler()
    scheduler.add(generation("a", adapter="digest-a", max_tokens=2))
    step(scheduler)
    request = scheduler.running[0]
    assert request.slot is not None
    step(scheduler)
    assert request.slot is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (generation("a", num_prompt=0), "prompt"),
        (generation("a", num_prompt=100), "prompt"),
        (generation("a", adapter="unknown"), "adapter"),
        (generation("taken"), "request_id"),
    ],
)
def test_what_could_never_run_is_refused(request_, field):
    scheduler = make_scheduler()
    scheduler.add(generation("taken"))
    with pytest.raises(RequestError) as caught:
        scheduler.add(request_)
    assert caught.value.field == field
    scheduler.check()


def test_rows_of_one_adapter_lie_side_by_side():
    scheduler = make_scheduler()
    for name, adapter in (("a", "digest-a"), ("b", None), ("c", "digest-a"), ("d", None)):
        scheduler.add(generation(name, adapter=adapter))
    for _ in range(2):
        assert list(lengths(step(scheduler)[0])) == ["b", "d", "a", "c"]


def test_the_first_token_says_how_long_the_request_waited():
    now = 10.0
    scheduler = make_scheduler(max_num_seqs=1, max_model_len=16, budget=8, clock=lambda: now)
    for name in "ab":
        scheduler.add(generation(name, max_tokens=2))
    waits = []
    for _ in range(4):
        waits += [output.queue_seconds for output in step(scheduler)[1]]
        now += 1.5
    assert waits == [0.0, None, 3.0, None]


def test_a_prompt_in_the_cache_costs_its_new_tokens_and_says_so():
    scheduler = make_scheduler()
    scheduler.add(generation("a", num_prompt=10, max_tokens=1))
    _, [output] = step(scheduler)
    assert output.num_cached_tokens == 0
    scheduler.add(generation("again", num_prompt=11, max_tokens=2, first=ord("a")))
    plan, [output] = step(scheduler)
    assert lengths(plan) == {"again": 3}
    assert output.num_cached_tokens == 8
    assert step(scheduler)[1][0].num_cached_tokens == 0


def test_of_a_whole_prompt_in_the_cache_one_token_is_computed():
    scheduler = make_scheduler()
    for name in ("a", "again"):
        scheduler.add(generation(name, num_prompt=8, max_tokens=1, first=1))
        plan, [output] = step(scheduler)
    assert lengths(plan) == {"again": 1}
    assert output.num_cached_tokens == 7


def test_the_answer_is_found_in_the_next_turn():
    scheduler = make_scheduler()
    scheduler.add(generation("a", num_prompt=6, max_tokens=7, first=1))
    while scheduler.has_requests:
        step(scheduler)
    prompt = [1, *range(1, 6), *[7] * 7, 50]
    request = GenerationRequest(
        request_id="b", prompt_token_ids=prompt, params=SamplingParams(seed=0, max_tokens=1)
    )
    scheduler.add(request)
    assert step(scheduler)[1][0].num_cached_tokens == 12, "the last token's KV was not computed"


def test_a_beginning_that_two_wait_for_is_computed_once():
    scheduler = make_scheduler(budget=16)
    for name in "abc":
        scheduler.add(generation(name, num_prompt=24, max_tokens=1, first=1))
    plans = [lengths(step(scheduler)[0]) for _ in range(3)]
    assert plans == [{"a": 16}, {"a": 8}, {"b": 1, "c": 1}]


def test_one_that_shares_only_a_beginning_waits_only_for_that():
    scheduler = make_scheduler(budget=8)
    scheduler.add(generation("a", num_prompt=30, first=1))
    prompt = [1, *range(1, 7), 90, 91, 92, 93]
    other = GenerationRequest(
        request_id="b", prompt_token_ids=prompt, params=SamplingParams(seed=0, max_tokens=1)
    )
    scheduler.add(other)
    assert lengths(step(scheduler)[0]) == {"a": 8}
    scheduler.add(generation("c", num_prompt=3))
    while scheduler.num_waiting:
        plan, _ = step(scheduler)
    assert plan.sampling_chunks()
    assert scheduler.use.num_hit_tokens == 4


def test_an_abort_frees_those_who_waited_for_its_prefill():
    scheduler = make_scheduler(budget=8)
    for name in "ab":
        scheduler.add(generation(name, num_prompt=24, max_tokens=1, first=1))
    assert lengths(step(scheduler)[0]) == {"a": 8}
    scheduler.abort("a")
    assert lengths(step(scheduler)[0]) == {"b": 8}
