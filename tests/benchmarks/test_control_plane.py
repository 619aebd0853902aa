"""The control plane's benchmark: that the load it times is the load it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest

from branchline.benchmarks import control_plane
from branchline.benchmarks.cases.steps import TOKEN, Load, SteadyScheduler, StepCost
from branchline.benchmarks.cases.tree import Forest, LongPrompts, TreeCost

LOAD = Load(num_running=32, num_waiting=50, num_tenants=5, answer_tokens=8, num_blocks=2048)
FOREST = Forest(prompt_tokens=1024, branch_every=128, num_others=20, other_tokens=64)


def ticks() -> Callable[[], float]:
    """A clock that goes on by one a call."""
    return map(float, count()).__next__


@pytest.mark.parametrize("num_tenants", [1, 5, 40])
def test_requests_end_and_start_in_each_step(num_tenants: int) -> None:
    load = replace(LOAD, num_tenants=num_tenants)
    steady = SteadyScheduler(load, ticks())
    scheduler = steady.scheduler
    for _ in range(20):
        before = {request.request_id for request in scheduler.running}
        assert scheduler.num_waiting >= 50
        plan = scheduler.schedule()
        assert len(scheduler.running) == 32
        started = {chunk.request.request_id for chunk in plan.chunks} - before
        assert len(started) >= 32 - len(before)
        scheduler.apply(plan, [TOKEN] * len(plan.sampling_chunks()))
        assert steady.steps(3) == [StepCost(1.0, 1.0)] * 3
    scheduler.check()
    assert len({request.tenant for request in scheduler.running}) >= min(num_tenants, 24)
    assert num_tenants > 1 or scheduler.num_preemptions == 0


def test_decodes_alone_are_one_token_each() -> None:
    load = replace(LOAD, answer_tokens=None)
    steady = SteadyScheduler(load, ticks())
    for _ in range(5):
        steady.step()
        plan = steady.scheduler.schedule()
        assert [chunk.num_scheduled_tokens for chunk in plan.chunks] == [1] * 32
        steady.scheduler.apply(plan, [TOKEN] * 32)


def test_a_long_prompt_is_found_through_all_its_branches() -> None:
    prompts = LongPrompts(FOREST, ticks())
    (cost,) = prompts.found(1)
    assert cost == TreeCost(1.0, 1.0, 1.0, 1.0, 1.0)
    tree = prompts.cache.tree
    nodes = list(tree.nodes())
    assert len(nodes) == 20 + 8 + 7
    assert prompts.cache.blocks.num_evicted == 0
    prompts.cache.check()


def test_a_new_prompt_evicts() -> None:
    prompts = LongPrompts(FOREST, ticks())
    before = prompts.cache.pool.num_free
    for evicted in (1024 // 16 - before, 2 * 1024 // 16 - before):
        list(prompts.fresh(1))
        assert prompts.cache.blocks.num_evicted == evicted
        assert prompts.cache.pool.num_free == 0
    prompts.cache.check()


def test_figures_are_medians_in_microseconds() -> None:
    assert control_plane.microseconds([3e-6, 1e-6, 2e-6]) == pytest.approx(2)
    costs = [TreeCost(1e-6 * n, 2e-6, 3e-6, 4e-6, 5e-6) for n in (1, 2, 30)]
    found = control_plane.by_stage(costs)
    assert list(found) == ["key", "match", "grow", "commit", "release"]
    assert found["key"] == pytest.approx(2)
    steps = control_plane.measure_steps(LOAD, 3)
    assert [(case["num_tenants"], case["traffic"]) for case in steps] == [
        (tenants, traffic) for tenants in (1, 10, 500) for traffic in control_plane.TRAFFIC
    ]
    assert control_plane.measure_prompts(FOREST, 2)["found"]["match"] > 0
