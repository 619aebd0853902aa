"""Any order of arrivals, steps, aborts and failures: the same tokens, and nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from fake_model import DIGESTS, NUM_TOKEN_IDS, House, Setting
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from branchline.engine.types import GenerationRequest, SamplingParams

settings_of_a_house = st.builds(
    Setting,
    block_size=st.sampled_from([1, 3, 4, 16]),
    num_spare_blocks=st.sampled_from([0, 1, 5, 50]),
    budget=st.sampled_from([1, 2, 3, 7, 16, 64, 1000]),
    max_num_seqs=st.sampled_from([1, 2, 3, 8]),
    max_model_len=st.sampled_from([7, 20, 40]),
)
params_of_a_request = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([None, 1, 2, 5, 17]),
    min_tokens=st.sampled_from([0, 0, 4]),
    ignore_eos=st.booleans(),
    stop_token_ids=st.sampled_from([(), (), (5,), (1, 2)]),
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
        priority=st.integers(-1, 1),
    )
    def add(
        self, data: st.DataObject, params: SamplingParams, adapter: str | None, priority: int
    ) -> None:
        longest = self.house.setting.max_model_len - 1
        prompt = data.draw(st.lists(st.integers(0, 22), min_size=1, max_size=longest))
        fields = {"adapter": adapter, "priority": priority}
        self.house.add(make_generation(f"r{self.num_added}", prompt, params, **fields))
        self.num_added += 1

    @rule(num_steps=st.integers(1, 8))
    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.house.step()

    @rule(num_errors=st.integers(1, 2))
    def step_with_bad_rows(self, num_errors: int) -> None:
        self.house.step(num_errors)

    @rule(executed=st.booleans())
    def failing_step(self, executed: bool) -> None:
        self.house.failing_step(executed=executed)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """One that lives, or one that has ended."""
        self.house.abort(f"r{data.draw(st.integers(0, self.num_added))}")

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "house"):
            self.house.check()

    def teardown(self) -> None:
        if hasattr(self, "house"):
            self.house.drain()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=30)


@settings(max_examples=60)
@given(
    setting=settings_of_a_house.map(lambda setting: replace(setting, max_model_len=40)),
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


def test_the_settings_above_do_preempt() -> None:
    house = House(Setting(budget=64, max_num_seqs=8))
    for i in range(6):
        house.add(make_generation(f"r{i}", [i] * 10, SamplingParams(max_tokens=25)))
    house.drain()
    assert house.scheduler.num_preemptions > 0


def test_all_blocks_are_free_after_two_thousand_requests_with_aborts() -> None:
    chance = random.Random(0)
    house = House(
        Setting(num_spare_blocks=30, budget=48, max_num_seqs=12, max_model_len=64, block_size=4)
    )
    num_added = num_aborted = 0
    while num_added < 2000 or house.live:
        while num_added < 2000 and len(house.live) < 20 and chance.random() < 0.6:
            prompt = [chance.randrange(NUM_TOKEN_IDS) for _ in range(chance.randint(1, 50))]
            params = SamplingParams(max_tokens=chance.randint(1, 14))
            adapter = chance.choice([None, *DIGESTS])
            house.add(make_generation(f"r{num_added}", prompt, params, adapter=adapter))
            num_added += 1
        if house.live and chance.random() < 0.15:
            num_aborted += 1
            house.abort(chance.choice(list(house.live)))
        if house.live:
            house.step()
    house.drain()
    assert num_aborted > 200
    assert len(house.finished) == 2000 - num_aborted
    assert house.scheduler.num_preemptions > 0


def _poison_all_blocks(house: House) -> None:
    longest = house.setting.max_model_len - 1
    house.add(make_generation("poisons", [1] * longest, SamplingParams()))
    house.failing_step(executed=True)


def _use_most_blocks(house: House) -> None:
    """With a free slot at the end, and without the block that was given back last."""
    length = house.setting.max_model_len - 1 - house.setting.block_size
    house.add(make_generation("reads", [2] * length, SamplingParams()))
    house.drain()
    assert house.finished["reads"]


def test_blocks_to_clear_wait_for_a_step_that_computes_something() -> None:
    house = House(Setting(budget=64))
    _poison_all_blocks(house)
    assert not house.step().chunks
    _use_most_blocks(house)


def test_blocks_to_clear_outlive_a_step_that_fails_before_it_clears_them() -> None:
    house = House(Setting(budget=64))
    _poison_all_blocks(house)
    house.add(make_generation("fails", [3], SamplingParams()))
    house.failing_step(executed=False)
    _use_most_blocks(house)
