"""Packed adapter work: every adapter token once, with its adapter's pages, in the room given."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from branchline.kernels import ops
from branchline.kernels.lora_work import as_routing
from branchline.lora.bank import NO_PAGE, AdapterBank
from branchline.lora.layers import runs_base_last
from branchline.lora.shapes import ModuleShapes
from branchline.lora.work import (
    WorkCapacity,
    build_work,
    choose_tiling,
    decode_capacity,
    pack_work,
    tile_step,
    work_views,
)
from branchline.tests.support.lora_reference import random_weights

SHAPES = ModuleShapes.for_decoder(
    num_layers=1, hidden_size=8, intermediate_size=8, num_heads=2, num_kv_heads=1, head_dim=4
)
RANKS = (16, 3, 64, 40, 16)
"""Slot 1 has qkv and down only."""

Segments = list[tuple[int | None, int]]

segments_of = st.lists(
    st.tuples(st.none() | st.integers(0, len(RANKS) - 1), st.sampled_from([0, 1, 1, 1, 2, 17, 40])),
    max_size=20,
)


@pytest.fixture(scope="module")
def bank() -> AdapterBank:
    bank = AdapterBank(SHAPES, 1, 20, torch.float32, "cpu", num_slots=len(RANKS))
    for slot, rank in enumerate(RANKS):
        groups = {"qkv": rank, "down": 16} if slot == 1 else dict.fromkeys(SHAPES.groups, rank)
        bank.load(slot, random_weights(SHAPES, groups, torch.Generator().manual_seed(slot)))
    return bank


def split(segments: Segments) -> tuple[list[int | None], list[int]]:
    return [slot for slot, _ in segments], [length for _, length in segments]


def rows_of(segments: Segments) -> list[int | None]:
    return [slot for slot, length in segments for _ in range(length)]


def read(work: ops.LoraWork) -> dict[int, tuple[int, ...]]:
    """The pages that each token meets; checks what kernels rely on."""
    found: dict[int, tuple[int, ...]] = {}
    ends = work.tile_items.tolist()
    assert ends == sorted(ends)
    assert ends[0] == 0
    live = ends[-1]
    assert (work.item_pages[:live] >= 0).all()
    assert (work.item_pages[live:] == NO_PAGE).all()
    for tile, count in enumerate(work.tile_counts.tolist()):
        start, items = int(work.tile_starts[tile]), slice(ends[tile], ends[tile + 1])
        assert 0 <= count <= work.tile_rows
        assert count or items.start == items.stop
        assert (work.item_tiles[items] == tile).all()
        for token in work.tokens[start : start + count].tolist():
            assert token not in found
            found[token] = tuple(work.item_pages[items].tolist())
    return found


def packed(
    segments: Segments, bank: AdapterBank, capacity: WorkCapacity
) -> dict[str, ops.LoraWork] | None:
    out = np.full(capacity.size(len(bank.pools)), 99, dtype=np.int32)
    if not pack_work(*split(segments), bank, capacity, out):
        assert (out == 99).all()
        return None
    return work_views(torch.from_numpy(out), capacity, list(bank.pools))


@given(segments=segments_of, tile_rows=st.sampled_from([16, 64]), whole=st.booleans())
def test_every_adapter_token_meets_its_pages_once(
    bank: AdapterBank, segments: Segments, tile_rows: int, whole: bool
) -> None:
    work = packed(segments, bank, WorkCapacity(1000, 100, 400, tile_rows, whole))
    assert work is not None
    rows = rows_of(segments)
    for group, pool in bank.pools.items():
        wanted = {
            token: () if slot is None else pool.pages(slot)
            for token, slot in enumerate(rows)
            if whole or slot is not None
        }
        assert read(work[group]) == wanted


@given(segments=segments_of, tile_rows=st.sampled_from([16, 64]), whole=st.booleans())
def test_exactly_the_room_that_is_needed_will_do(
    bank: AdapterBank, segments: Segments, tile_rows: int, whole: bool
) -> None:
    tiles = tile_step(*split(segments), tile_rows, whole)
    num_items = max(
        sum(len(pool.pages(slot)) for slot in tiles.slots.tolist() if slot >= 0)
        for pool in bank.pools.values()
    )
    need = (len(tiles.tokens), len(tiles.starts), num_items)
    assert packed(segments, bank, WorkCapacity(*need, tile_rows, whole)) is not None
    for short in range(3):
        if need[short]:
            room = [size - (place == short) for place, size in enumerate(need)]
            assert packed(segments, bank, WorkCapacity(*room, tile_rows, whole)) is None


@given(segments=segments_of)
def test_a_step_on_its_own_has_the_groups_it_touches(bank: AdapterBank, segments: Segments) -> None:
    work = build_work(*split(segments), bank)
    rows = rows_of(segments)
    touched = {
        group
        for group, pool in bank.pools.items()
        if any(slot is not None and pool.pages(slot) for slot in rows)
    }
    assert work.keys() == touched
    for group, part in work.items():
        pages = bank.pools[group].pages
        found = {token: held for token, held in read(part).items() if held}
        assert found == {
            token: pages(slot)
            for token, slot in enumerate(rows)
            if slot is not None and pages(slot)
        }


def test_tiles_are_as_few_as_can_be() -> None:
    tiles = tile_step([3, None, 3, 1], [20, 5, 15, 1], 16)
    assert tiles.slots.tolist() == [1, 3, 3, 3]
    assert tiles.counts.tolist() == [1, 16, 16, 3]
    assert tiles.tokens.tolist() == [40, *range(20), *range(25, 40)]


def test_decodes_always_fit(bank: AdapterBank) -> None:
    """Whichever adapters they carry: all one, all different, the largest only."""
    rng = random.Random(1)
    for num_rows in (1, 2, 5, 16, 17, 33, 64):
        capacity = decode_capacity(num_rows, bank)
        steps = [[(slot, 1)] * num_rows for slot in range(len(RANKS))]
        for _ in range(30):
            few = rng.sample([None, 0, 1, 2, 3, 4], rng.randint(1, 6))
            steps.append([(rng.choice(few), 1) for _ in range(num_rows)])
        assert all(packed(step, bank, capacity) for step in steps)
    assert packed([(0, 1)] * 65, bank, capacity) is None


def test_arrays_lie_at_multiples_of_16_bytes(bank: AdapterBank) -> None:
    capacity = WorkCapacity(5, 3, 7, 16)
    buffer = torch.zeros(capacity.size(2), dtype=torch.int32)
    seen = 0
    for work in work_views(buffer, capacity, ["a", "b"]).values():
        for array in (work.tokens, work.tile_items, work.item_tiles, work.item_pages):
            assert (array.data_ptr() - buffer.data_ptr()) % 16 == 0
            seen = max(seen, array.data_ptr() - buffer.data_ptr() + 4 * len(array))
    assert seen <= 4 * len(buffer) < seen + 16


@pytest.mark.parametrize(
    ("segments", "tile_rows", "whole"),
    [
        ([(0, 1), (1, 1)], 16, False),
        ([(0, 64)], 16, False),
        ([(0, 256)], 64, True),
        ([(0, 200), (1, 100)], 16, True),
        ([(0, 300), (None, 200), (1, 1)], 64, True),
        ([(0, 300), (None, 302), (1, 1)], 64, False),
        ([(0, 128), (None, 4), (0, 128)], 64, True),
        ([(None, 1000), (3, 1)], 16, False),
    ],
)
def test_tiling(segments: Segments, tile_rows: int, whole: bool) -> None:
    assert choose_tiling(*split(segments)) == (tile_rows, whole)


def test_the_base_model_goes_last_where_the_work_covers_all_rows(bank: AdapterBank) -> None:
    weight, bias = torch.ones(16, 8), torch.ones(16)
    long = build_work([0], [300], bank)["qkv"]
    short = build_work([0], [30], bank)["qkv"]
    assert runs_base_last(long, weight, None)
    assert not runs_base_last(long, weight, bias)
    is_packed = ops.packs_linear(weight.dtype, weight.device)
    assert runs_base_last(long, ops.pack_linear(weight), None) is not is_packed
    assert not runs_base_last(short, weight, None)


@given(segments=segments_of, whole=st.booleans())
def test_the_plain_ops_take_it_too(bank: AdapterBank, segments: Segments, whole: bool) -> None:
    work = packed(segments, bank, WorkCapacity(1000, 100, 400, 16, whole))
    assert work is not None
    pool, rows = bank.pools["qkv"], rows_of(segments)
    x, y = torch.randn(len(rows), 8), torch.randn(len(rows), 16)
    expected = y.clone()
    for token, slot in enumerate(rows):
        for page in () if slot is None else pool.pages(slot):
            hidden = (pool.a_layers[0][page] @ x[token]).view(3, 16)
            columns = pool.b_layers[0][page].split(pool.slice_sizes, 1)
            expected[token] += torch.cat([h @ b for h, b in zip(hidden, columns, strict=True)])
    routing = as_routing(work["qkv"])
    got = y.clone()
    hidden = ops.shrink(x, pool.a_layers[0], routing)
    ops.expand(hidden, pool.b_layers[0], pool.slice_sizes, routing, got)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
