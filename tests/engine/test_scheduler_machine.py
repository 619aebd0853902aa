"""Any order of arrivals, steps, aborts and failures: the same tokens, and nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from fake_model import DIGESTS, INVOCATION, NUM_TOKEN_IDS, Setting, expected_output
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scheduler_house import House

from branchline.engine.types import GenerationRequest, SamplingParams

settings_of_a_house = st.builds(
    Setting,
    block_size=st.sampled_from([1, 3, 4, 16]),
    num_spare_blocks=st.sampled_from([0, 1, 5, 50]),
    budget=st.sampled_from([1, 2, 3, 7, 16, 64, 1000]),
    max_num_seqs=st.sampled_from([1, 2, 3, 8]),
    max_model_len=st.sampled_from([7, 20, 40]),
    enabled=st.sampled_from([True, True, False]),
    num_host_blocks=st.sampled_from([0, 0, 3, 40]),
    depth=st.integers(0, 1),
    num_slots=st.sampled_from([1, 2, 3, 3]),
    max_step_rank=st.sampled_from([None, 64, 80]),
    max_queued_requests=st.sampled_from([None, None, 3]),
    policy=st.sampled_from(["fair", "fair", "fcfs"]),
    max_overtake_cost=st.sampled_from([1, 30, 65536]),
    tenant_share=st.sampled_from([0.3, 0.5, 1.0]),
    isolate_tenants=st.booleans(),
)
beginnings = st.sampled_from([[], [], list(range(12)), [5] * 20, [*range(6), *INVOCATION]])
params_of_a_request = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([None, 0, 1, 2, 5, 17]),
    min_tokens=st.sampled_from([0, 0, 4]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (), (5,), (1, 2)]),
    prompt_logprobs=st.sampled_from([None, None, 0]),
)


def make_generation(
    request_id: str, prompt: list[int], params: SamplingParams, **fields: Any
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id, prompt_token_ids=prompt, params=replace(params, seed=0), **fields
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Runs every request that is left to its end when the rules are through."""

    @initialize(setting=settings_of_a_house)
    def start(self, setting: Setting) -> None:
        self.house = House(setting)
        self.num_added = 0

    @rule(
        data=st.data(),
        params=params_of_a_request,
        adapter=st.sampled_from([None, *DIGESTS]),
    )
    def add(self, data: st.DataObject, params: SamplingParams, adapter: str | None) -> None:
        longest = self.house.setting.max_model_len - 1
        beginning = data.draw(beginnings)[: longest - 1]
        size = longest - len(beginning)
        rest = data.draw(st.lists(st.integers(0, 22), min_size=1, max_size=size))
        prompt = [*beginning, *rest]
        fields = {
            "adapter": adapter,
            "priority": data.draw(st.integers(-1, 1)),
            "tenant": data.draw(st.sampled_from("abc")),
            "weight": data.draw(st.sampled_from([0.5, 1.0, 3.0])),
            "cache_salt": data.draw(st.sampled_from([None, None, "pepper"])),
            "pooling": data.draw(st.sampled_from([None, None, None, "last", "mean"])),
        }
        if fields["pooling"] is not None:
            params = replace(params, prompt_logprobs=None)
        generation = make_generation(f"r{self.num_added}", prompt, params, **fields)
        if data.draw(st.booleans()):  # some of it was generated elsewhere
            output = expected_output(generation, self.house.setting)
            num_given = data.draw(st.integers(0, max(0, len(output) - 1)))
            generation = replace(generation, output_token_ids=output[:num_given])
        self.house.add(generation)
        self.num_added += 1

    @rule(num_steps=st.integers(1, 8))
    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.house.step()

    @rule(num_errors=st.integers(1, 2))
    def step_with_bad_rows(self, num_errors: int) -> None:
        self.house.step(num_errors)

    @rule()
    def failing_step(self) -> None:
        self.house.failing_step()

    @rule()
    def next_copy_fails(self) -> None:
        self.house.copier.fails_next = True

    @rule()
    def reset_the_cache(self) -> None:
        self.house.cache.blocks.reset()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """One that lives, or one that has ended."""
        self.house.abort(f"r{data.draw(st.integers(0, self.num_added))}")

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        """One that runs, waits, is held, or has ended: what comes next reads it late."""
        self.house.hold(f"r{data.draw(st.integers(0, self.num_added))}")

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.house.go_on(f"r{data.draw(st.integers(0, self.num_added))}")

    @rule()
    def steps_while_all_are_held(self) -> None:
        """Until nothing is under way: then nothing is taken from anybody who would want it."""
        for request_id in self.house.live:
            self.house.hold(request_id)
        while self.house.pipeline.has_work:
            assert not self.house.step().chunks
        assert self.house.cache.blocks.num_private == 0
        assert self.house.scheduler.num_waiting == 0
        assert not any(self.house.slots.num_leases(digest) for digest in DIGESTS)

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "house"):
            self.house.check()

    def teardown(self) -> None:
        if hasattr(self, "house"):
            self.house.drain()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40)


@settings(max_examples=60)
@given(
    setting=settings_of_a_house.map(
        lambda setting: replace(setting, max_model_len=40, max_queued_requests=None)
    ),
    order=st.permutations(range(6)),
    waits=st.lists(st.integers(0, 5), min_size=6, max_size=6),
)
def test_tokens_do_not_depend_on_chunks_order_or_memory(
    setting: Setting, order: list[int], waits: list[int]
) -> None:
    house = House(setting)
    for number, wait in zip(order, waits, strict=True):
        prompt = [(7 * number + i) % NUM_TOKEN_IDS for i in range(1 + 6 * number)]
        params = SamplingParams(max_tokens=9, ignore_eos=True)
        house.add(make_generation(f"r{number}", prompt, params, priority=number % 2))
        for _ in range(wait):
            house.step()
    house.drain()
    assert {len(output) for output in house.finished.values()} == {9}
    assert len(house.finished) == 6


@pytest.mark.parametrize("depth", [0, 1])
def test_nothing_is_lost_when_readers_come_and_go(depth: int) -> None:
    chance = random.Random(depth)
    house = House(Setting(num_spare_blocks=20, max_num_seqs=6, max_model_len=64, depth=depth))
    num_added = 0
    while num_added < 120 or house.live:
        if num_added < 120 and len(house.live) < 15:
            prompt = [chance.randrange(NUM_TOKEN_IDS) for _ in range(chance.randint(1, 30))]
            params = SamplingParams(max_tokens=chance.randint(1, 30), ignore_eos=True)
            adapter = chance.choice([None, *DIGESTS])
            tenant = chance.choice("ab")
            house.add(
                make_generation(f"r{num_added}", prompt, params, adapter=adapter, tenant=tenant)
            )
            num_added += 1
        for request_id in list(house.live):
            if chance.random() < 0.1:
                house.hold(request_id)
            if chance.random() < 0.2:
                house.go_on(request_id)
        house.step()
    assert len(house.finished) == 120
    assert house.scheduler.held.num_holds > 120
    house.drain()


def test_the_settings_above_do_preempt() -> None:
    house = House(Setting(budget=64, max_num_seqs=8))
    for i in range(6):
        house.add(make_generation(f"r{i}", [i] * 10, SamplingParams(max_tokens=25)))
    house.drain()
    assert house.scheduler.num_preemptions > 0


@pytest.mark.parametrize(("depth", "num_host_blocks"), [(0, 0), (0, 60), (1, 0), (1, 60)])
def test_nothing_is_lost_in_ten_thousand_requests_with_aborts(depth, num_host_blocks) -> None:
    """2,500 in each of four houses, sharing beginnings, a tenth of them leaving early."""
    chance = random.Random(depth + num_host_blocks)
    setting = Setting(
        num_spare_blocks=30,
        budget=48,
        max_num_seqs=12,
        max_model_len=64,
        depth=depth,
        num_host_blocks=num_host_blocks,
    )
    house = House(setting)
    starts = [[chance.randrange(NUM_TOKEN_IDS) for _ in range(40)] for _ in range(4)]
    num_added = num_aborted = 0
    while num_added < 2500 or house.live:
        while num_added < 2500 and len(house.live) < 20 and chance.random() < 0.6:
            start = chance.choice(starts)[: chance.randint(0, 40)]
            rest = [chance.randrange(NUM_TOKEN_IDS) for _ in range(chance.randint(1, 10))]
            params = SamplingParams(max_tokens=chance.randint(1, 14))
            fields = {"adapter": chance.choice([None, *DIGESTS]), "tenant": chance.choice("ab")}
            fields["pooling"] = chance.choice([None] * 8 + ["last", "mean"])
            if fields["pooling"] is None and chance.random() < 0.1:
                params = replace(params, prompt_logprobs=0)
            house.add(make_generation(f"r{num_added}", [*start, *rest], params, **fields))
            num_added += 1
        if house.live and chance.random() < 0.15:
            num_aborted += 1
            house.abort(chance.choice(list(house.live)))
        house.step()
    house.drain()
    assert num_aborted > 200
    assert len(house.finished) == 2500 - num_aborted
    assert house.scheduler.num_preemptions > 0
    assert house.scheduler.use.num_hit_tokens > 10_000
    assert (house.cache.host is not None) == bool(num_host_blocks)
    if house.cache.host is not None:
        assert house.cache.host.num_restored > 100
    house.cache.blocks.reset()
    house.drain()
    assert house.cache.pool.num_free == house.cache.pool.num_usable
    assert house.cache.blocks.host.num_free == num_host_blocks
