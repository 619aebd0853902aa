"""What is still to be computed of prompts, and how fast that goes."""

from __future__ import annotations

import pytest
from small_scheduler import generation, make_scheduler, step

from branchline.engine.plan import SampledToken


def test_prompts_count_until_they_are_computed():
    scheduler = make_scheduler(budget=8, max_num_seqs=1, caching=False)
    scheduler.add(generation("a", num_prompt=20))
    scheduler.add(generation("b", num_prompt=10))
    assert scheduler.load.num_queued_tokens == 30
    step(scheduler)
    assert scheduler.load.num_queued_tokens == 22
    scheduler.abort("b")
    assert scheduler.load.num_queued_tokens == 12
    while scheduler.has_requests:
        step(scheduler)
    assert scheduler.load.num_queued_tokens == 0


def test_of_what_waits_as_much_is_taken_for_cached_as_it_was_lately():
    scheduler = make_scheduler(max_num_seqs=1)
    for _ in range(2):  # the second computes its last token only
        scheduler.add(generation("a", num_prompt=20, max_tokens=1))
        plan = scheduler.schedule()
        scheduler.apply(plan, [SampledToken(7)])
        scheduler.load.record(plan, 0.1)
    scheduler.add(generation("b", num_prompt=30))
    assert scheduler.load.num_queued_tokens == pytest.approx(30 * (1 - 19 / 40), abs=1)


def test_the_pace_is_of_steps_that_compute_mostly_prompts():
    scheduler = make_scheduler(budget=64)
    load = scheduler.load

    def prefill(name: str, num_prompt: int, seconds: float) -> None:
        scheduler.add(generation(name, num_prompt=num_prompt, max_tokens=3))
        plan = scheduler.schedule()
        load.record(plan, seconds)
        scheduler.apply(plan, [SampledToken(7) for _ in plan.sampling_chunks()])

    prefill("probe", 1, 5.0)
    prefill("short", 31, 5.0)
    assert load.tokens_per_second == 0.0
    prefill("long", 40, 0.5)
    assert load.tokens_per_second == pytest.approx(80.0)
    load.record(scheduler.schedule(), 9.0)  # decodes alone
    assert load.tokens_per_second == pytest.approx(80.0)
