"""build_mapping: which rows are routed how, and that one packed copy carries all indices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from branchline.kernels.ops import LoraRouting
from branchline.lora import mapping
from branchline.lora.bank import AdapterBank
from branchline.lora.indices import Indices
from branchline.lora.mapping import MIN_RUN_ROWS, build_mapping
from branchline.lora.shapes import ModuleShapes
from branchline.tests.support.lora_reference import random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=4
)
RANKS = (16, 16, 16, 16, 16, 16, 64, 40)


@pytest.fixture(scope="module")
def bank() -> AdapterBank:
    bank = AdapterBank(SHAPES, 1, 40, torch.float32, "cpu")
    for slot, rank in enumerate(RANKS):
        groups = {"qkv": rank, "down": 16} if slot else dict.fromkeys(SHAPES.groups, rank)
        bank.load(slot, random_weights(SHAPES, groups, torch.Generator().manual_seed(slot)))
    return bank


def routed_tokens(routing: LoraRouting) -> Iterator[int]:
    for run in routing.runs:
        assert run.tokens.index is None
        yield from range(run.tokens.start, run.tokens.stop)
    for tiles in routing.tiles:
        everything = torch.arange(10_000)
        yield from tiles.tokens.of(everything).tolist()


def test_base_steps_have_no_mapping(bank: AdapterBank) -> None:
    assert build_mapping([], [], bank) is None
    assert build_mapping([None, None], [3, 1], bank) is None
    assert build_mapping([2, None], [0, 5], bank) is None


def test_groups_without_an_adapter_of_the_step_are_absent(bank: AdapterBank) -> None:
    partial_step = build_mapping([1, 2], [1, 1], bank)
    assert partial_step is not None
    assert partial_step.groups.keys() == {"qkv", "down"}
    whole = build_mapping([0, 2], [1, 1], bank)
    assert whole is not None
    assert list(routed_tokens(whole.groups["o"])) == [0]
    assert list(routed_tokens(whole.groups["qkv"])) == [0, 1]


def test_groups_with_like_pages_share_their_routing(bank: AdapterBank) -> None:
    step = build_mapping([1, None, 2, 1], [1, 2, 1, 1], bank)
    assert step is not None
    assert step.groups["qkv"] is step.groups["down"]


def test_neighbours_of_one_adapter_are_one_run(bank: AdapterBank) -> None:
    step = build_mapping([3] * 32, [1] * 32, bank)
    assert step is not None
    routing = step.groups["qkv"]
    assert [(run.tokens.start, run.tokens.stop) for run in routing.runs] == [(0, 32)]
    assert routing.tiles == ()


@pytest.mark.parametrize("before", [0, 1, 20])
@pytest.mark.parametrize("after", [0, 1, 20])
def test_an_activated_prompt_is_a_base_and_an_adapter_segment(
    bank: AdapterBank, before: int, after: int
) -> None:
    """Two prompts of one adapter, each begun by the base, beside a decode of it and others'."""
    slots = [2, 3, 4, None, None, 2, None, 2, None, 3]
    lengths = [1, 1, 1, 1, before, after, 7, 3, 2, 0]
    step = build_mapping(slots, lengths, bank)
    assert step is not None
    first = 4 + before
    second = first + after + 7
    expected = [0, 1, 2, *range(first, first + after), *range(second, second + 3)]
    assert sorted(routed_tokens(step.groups["qkv"])) == expected


def test_two_segments_of_one_adapter_meet_across_an_empty_one(bank: AdapterBank) -> None:
    step = build_mapping([3, None, 3, None], [20, 0, 12, 4], bank)
    assert step is not None
    assert [(r.tokens.start, r.tokens.stop) for r in step.groups["qkv"].runs] == [(0, 32)]


def test_long_runs_beside_scattered_rows(bank: AdapterBank) -> None:
    slots = [1, None, 2, 3, 4, 1]
    step = build_mapping(slots, [MIN_RUN_ROWS, 2, 1, 1, MIN_RUN_ROWS - 1, 1], bank)
    assert step is not None
    routing = step.groups["qkv"]
    assert [run.tokens.stop for run in routing.runs] == [MIN_RUN_ROWS]
    assert len(routing.tiles) == 1


def test_tiles_over_neighbouring_pages_copy_no_weights(bank: AdapterBank) -> None:
    """All of slots 1 to 5, or most of them, are read as one span of pages."""
    for slots in ([1, 2, 3, 4, 5] * 4, [1, 2, 4, 5] * 4):
        step = build_mapping(slots, [1] * len(slots), bank)
        assert step is not None
        (tiles,) = step.groups["qkv"].tiles
        assert (tiles.pages.index, tiles.num_tiles, tiles.height) == (None, 5, 4)


def test_a_popular_adapter_does_not_pad_the_others_to_its_height(bank: AdapterBank) -> None:
    slots = [1, 2, 1, 3, 1, 4, 1, 5] + [1, None] * 100
    step = build_mapping(slots, [1] * len(slots), bank)
    assert step is not None
    (tiles,) = step.groups["qkv"].tiles
    assert tiles.num_tiles * tiles.height <= 4 * 108


def test_adapters_are_tiled_by_their_number_of_pages(bank: AdapterBank) -> None:
    slots = [1, 6, 7, 2] * 3
    step = build_mapping(slots, [1] * 12, bank)
    assert step is not None
    assert [tiles.num_pages for tiles in step.groups["qkv"].tiles] == [1, 3, 4]


def test_packed_indices_are_the_same(bank: AdapterBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a device, on the CPU: every index arrives, and the buffer always suffices."""
    rng = random.Random(3)
    packed = partial(Indices, packed=True)
    for _ in range(200):
        count = rng.randint(1, 60)
        slots = [rng.choice([None, 0, 1, 2, 3, 4, 5, 6, 7]) for _ in range(count)]
        lengths = [rng.choice([0, 1, 1, 1, 2, 30]) for _ in range(count)]
        plain = build_mapping(slots, lengths, bank)
        with monkeypatch.context() as patch:
            patch.setattr(mapping, "Indices", packed)
            other = build_mapping(slots, lengths, bank)
        # Tensors have no equality; their printed form shows every index of small ones.
        torch.set_printoptions(threshold=100_000)
        assert repr(plain) == repr(other)
        rows = [
            sum(lengths[:i]) + j
            for i, slot in enumerate(slots)
            if slot is not None
            for j in range(lengths[i])
        ]
        if plain is not None:
            assert sorted(routed_tokens(plain.groups["qkv"])) == rows
    torch.set_printoptions(profile="default")
