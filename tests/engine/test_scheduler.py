"""Admission, chunking, preemption and finishing, an example each."""

from __future__ import annotations

import pytest

from branchline.engine.blocks import BlockPool
from branchline.engine.errors import RequestError
from branchline.engine.plan import SampledToken
from branchline.engine.scheduler import Scheduler, SchedulerLimits
from branchline.engine.types import GenerationRequest, SamplingParams
from branchline.lora.slots import AdapterSlots

EOS = 99


def make_scheduler(num_blocks=64, block_size=4, budget=32, max_num_seqs=8, max_model_len=100):
    slots = AdapterSlots(2)
    slots.add("digest-a")
    limits = SchedulerLimits(max_model_len, max_num_seqs, budget)
    return Scheduler(BlockPool(num_blocks, block_size), slots, limits, (EOS,))


def generation(request_id, num_prompt=5, adapter=None, priority=0, **params):
    params = {"temperature": 0, "seed": 0, "max_tokens": 4, **params}
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=list(range(num_prompt)),
        params=SamplingParams(**params),
        adapter=adapter,
        priority=priority,
    )


def lengths(plan):
    return {chunk.request.request_id: chunk.num_scheduled_tokens for chunk in plan.chunks}


def step(scheduler, token_id=7):
    plan = scheduler.schedule()
    scheduler.check()
    outputs = scheduler.apply(plan, [SampledToken(token_id) for _ in plan.sampling_chunks()])
    scheduler.check()
    return plan, outputs


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
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)


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
    assert scheduler.num_free_blocks == scheduler.num_usable_blocks


def test_the_last_in_rank_gives_way_and_starts_again():
    scheduler = make_scheduler(num_blocks=5, max_model_len=16)
    scheduler.add(generation("a", num_prompt=8, max_tokens=8))
    scheduler.add(generation("b", num_prompt=8, max_tokens=8))
    step(scheduler)
    plan, outputs = step(scheduler, token_id=8)
    assert lengths(plan) == {"a": 1}
    assert [output.request_id for output in outputs] == ["a"]
    assert scheduler.num_preemptions == 1
    [waiting] = scheduler.waiting
    assert (waiting.request_id, waiting.num_computed_tokens) == ("b", 0)
    assert waiting.output_token_ids == [7]
    while scheduler.running[0].request_id == "a":
        plan, _ = step(scheduler)
        if not scheduler.running:
            break
    plan, _ = step(scheduler)
    assert lengths(plan) == {"b": 9}
    assert plan.sampling_chunks()


@pytest.mark.parametrize("end", ["abort", "length"])
def test_blocks_are_cleared_before_reuse_however_their_request_ended(end):
    scheduler = make_scheduler()
    scheduler.add(generation("a", num_prompt=10, max_tokens=2))
    step(scheduler)
    held = set(scheduler.running[0].blocks.block_ids)
    if end == "abort":
        scheduler.abort("a")
    else:
        step(scheduler)
    assert set(scheduler.schedule().zero_block_ids) == held
    scheduler.add(generation("b"))
    step(scheduler)
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
    assert scheduler.waiting[0].slot is None
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
    scheduler = Scheduler(
        BlockPool(5, 4), AdapterSlots(0), SchedulerLimits(16, 1, 8), (EOS,), clock=lambda: now
    )
    for name in "ab":
        scheduler.add(generation(name, max_tokens=2))
    waits = []
    for _ in range(4):
        waits += [output.queue_seconds for output in step(scheduler)[1]]
        now += 1.5
    assert waits == [0.0, None, 3.0, None]
