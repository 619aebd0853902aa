"""Captured decode steps: padded, over memory that stays in place, and equal to eager ones."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_run import generate_all
from graph_house import (
    DENSE,
    MAX_SEQS,
    RANKS,
    House,
    Served,
    decodes,
    fill_pool,
    make_served,
    open_house,
    start,
)

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, SCRAP_BLOCK
from branchline.engine.types import GenerationRequest, SamplingParams


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    return make_served(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def house(served) -> House:
    return open_house(served)


BATCHES = [
    [None],
    ["r8"],
    ["r8", "r8", None, "r8", "r24"],
    [None, None, None],
    ["r24", "r24"],
    ["r72", "r8", "r24", None, None, "r72"],
    [None, "r8"],
    ["r8", "r24", "r72", "r8", "r24"],
    [None] * 6,
    ["r72", None, None],
]


def test_replays_one_after_the_other_give_what_eager_steps_do(house):
    """Larger and smaller ones in turn, so that whatever stays in the memory would be seen."""
    for seed, names in enumerate(BATCHES * 2):
        layout = decodes(house, names, seed)
        fill_pool(house, seed)
        expected = house.eager(layout).clone()
        written = house.pool.clone()
        fill_pool(house, seed)
        num_replays = house.recorder.num_replays
        logits = house.replayed(layout)
        assert house.recorder.num_replays == num_replays + 1
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        # Padding writes to the scrap block and nowhere else.
        kept = [block for block in range(house.pool.shape[2]) if block != SCRAP_BLOCK]
        torch.testing.assert_close(house.pool[:, :, kept], written[:, :, kept])


def test_adapters_change_what_a_replay_gives(house):
    fill_pool(house)
    answers = [
        house.replayed(decodes(house, names, 5)).clone()
        for names in (["r8"], ["r24"], ["r72", "r72"], [None])
    ]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert (one[0] - other[0]).abs().max() > 1e-2


def test_tokens_of_the_step_before_come_from_the_device(house):
    layout = decodes(house, ["r8", None, "r24"], 3)
    previous = torch.tensor([17, 99, 4, 200])
    follows = np.array([[0, 2], [3, 1]])
    known = layout.input_ids.copy()
    known[[0, 2]] = [200, 99]
    fill_pool(house)
    expected = house.eager(replace(layout, input_ids=known)).clone()
    logits = house.replayed(replace(layout, follows=follows), previous)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert previous.tolist() == [17, 99, 4, 200]


def test_blocks_are_cleared_before_the_step(house):
    """All but what the step itself writes; rows that attend to a cleared block see zeros."""
    layout = decodes(house, [None, "r8", None], 8)
    cleared = np.array([table[0] for table in layout.block_tables])
    fill_pool(house)
    house.pool[:, :, cleared] = 0
    expected = house.eager(layout).clone()
    written = house.pool.clone()
    fill_pool(house)
    house.pool[:, :, cleared] = torch.nan
    logits = house.replayed(replace(layout, zero_block_ids=cleared))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(house.pool[:, :, cleared], written[:, :, cleared])


def test_rows_whose_adapter_has_not_begun_are_the_base_models(house):
    layout = decodes(house, ["r8", "r8"], 2)
    adapters = replace(
        layout.adapters, segment_slots=[None, None, house.slot("r8")], segment_lengths=[1, 0, 1]
    )
    fill_pool(house)
    expected = torch.stack(
        [
            house.eager(decodes(house, names, 2))[row]
            for row, names in ((0, [None] * 2), (1, ["r8"] * 2))
        ]
    )
    logits = house.replayed(replace(layout, adapters=adapters))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_other_steps_are_left_to_the_caller(house):
    plain = decodes(house, [None, "r8"], 1)
    prompt = replace(plain, logits_indices=plain.logits_indices[:1], samples=[True, False])
    assert house.replayed(prompt) is None
    assert house.replayed(decodes(house, [None, DENSE], 1)) is None
    assert house.replayed(decodes(house, ["r72"], 1)) is None, "5 pages, and room for 4"
    assert house.replayed(decodes(house, [None] * (MAX_SEQS + 1), 1)) is None
    assert house.replayed(decodes(house, ["r72", None], 1)) is not None
    many = replace(plain, zero_block_ids=np.arange(NUM_RESERVED_BLOCKS, 30))
    assert house.replayed(many) is None
    assert house.replayed(plain) is not None


def requests() -> list[GenerationRequest]:
    numbers = random.Random(3)
    names = [None, *RANKS]
    return [
        GenerationRequest(
            request_id=f"r{i}",
            prompt_token_ids=[numbers.randrange(256) for _ in range(numbers.randint(1, 15))],
            params=SamplingParams(
                temperature=(0, 0.9)[i % 2],
                seed=i,
                max_tokens=10 + i % 5,
                ignore_eos=True,
            ),
            adapter=DENSE if i == 9 else names[i % len(names)],
        )
        for i in range(14)
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_an_engine_s_tokens_are_the_same_with_graphs(served, ahead):
    generations = requests()
    expected = generate_all(start(served), generations)
    small = open_house(served, async_scheduling=ahead)
    num_replays = small.recorder.num_replays
    assert generate_all(small.loop, generations) == expected
    assert small.recorder.num_replays > num_replays + 5


def test_adapters_that_take_each_others_pages_answer_as_ever(served):
    """Graphs hold addresses: what is behind them changes under way."""
    generations = requests()
    expected = generate_all(start(served), generations)
    few = open_house(served, async_scheduling=True, max_loras=2)
    num_replays = few.recorder.num_replays
    assert generate_all(few.loop, generations) == expected
    assert few.loop.stats().num_adapter_evictions > 0
    assert few.recorder.num_replays > num_replays
