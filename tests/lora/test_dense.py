"""DensePool: what is written is found again, memory is conserved, nothing reads what is free."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.dense import DensePool
from branchline.lora.errors import AdapterError
from branchline.lora.shapes import ModuleShapes
from branchline.lora.weights import FLOAT32_TABLES, INDEX_TABLES, DenseWeights
from branchline.tests.support.dense_parts import random_tables, random_vectors

SHAPES = ModuleShapes.for_decoder(
    num_layers=2,
    hidden_size=8,
    intermediate_size=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    qk_norm=True,
    vocab_size=30,
)
ROW = 4 * SHAPES.vectors.size
EMBED, HEAD = ("embed", "embed_a"), ("head", "head_scale", "head_tokens")


def make_pool(num_bytes: int, dtype: torch.dtype = torch.float32) -> DensePool:
    pool = DensePool(num_bytes, SHAPES, dtype, "cpu", num_slots=8)
    pool._arena.fill_(255)  # NaN in every floating dtype
    return pool


def parts(seed: int, vectors: bool = True, tables: tuple[str, ...] = ()) -> DenseWeights:
    generator = torch.Generator().manual_seed(seed)
    own = random_vectors(SHAPES, generator, ["qkv"], ["final_norm"])
    other = random_tables(SHAPES.hidden_size, 30 + seed, tables, generator)
    return DenseWeights(
        own.vectors if vectors else None,
        own.affine_groups if vectors else frozenset(),
        own.norms if vectors else frozenset(),
        other.tables,
    )


def load(pool: DensePool, slot: int, dense: DenseWeights) -> None:
    pool.reserve(slot, dense)
    pool.write(slot, dense)


def assert_holds(pool: DensePool, slot: int, dense: DenseWeights) -> None:
    held = pool.held(slot)
    assert held is not None
    assert (held.affine_groups, held.norms) == (dense.affine_groups, dense.norms)
    assert held.tables.keys() == dense.tables.keys()
    for name, table in dense.tables.items():
        assert torch.equal(held.tables[name], table), name
        assert held.tables[name].dtype == table.dtype
    assert (held.page is None) == (dense.vectors is None)
    if dense.vectors is not None:
        layout = SHAPES.vectors
        scale, shift = pool.affine("gate_up", 1)
        for view, (start, size) in (
            (scale, layout.scale("gate_up", 1)),
            (shift, layout.shift("gate_up", 1)),
            (pool.norm("k_norm", 1), layout.norm("k_norm", 1)),
            (pool.norm("final_norm", 0), layout.norm("final_norm")),
        ):
            assert torch.equal(view[held.page], dense.vectors[start : start + size])


def test_what_was_written_is_there() -> None:
    pool = make_pool(40 * ROW)
    adapters = [
        parts(0),
        parts(1, tables=(*EMBED, *HEAD)),
        parts(2, vectors=False, tables=HEAD),
        parts(3, tables=("embed_tokens", "embed_scale", "head_shift")),
    ]
    for slot, dense in enumerate(adapters):
        load(pool, slot, dense)
        pool.check()
    for slot, dense in enumerate(adapters):
        assert_holds(pool, slot, dense)
    assert [pool.held(slot).page for slot in range(4)] == [0, 1, None, 2]
    assert pool.held(7) is None


def test_tables_have_the_dtype_of_the_pool_but_ids_and_factors() -> None:
    pool = make_pool(40 * ROW, torch.bfloat16)
    dense = parts(1, tables=(*EMBED, *HEAD)).as_dtype(torch.bfloat16)
    load(pool, 0, dense)
    assert_holds(pool, 0, dense)
    for name, table in pool.held(0).tables.items():
        kept = torch.int64 if name in INDEX_TABLES else torch.float32
        expected = kept if name in FLOAT32_TABLES | INDEX_TABLES else torch.bfloat16
        assert table.dtype == expected


def test_only_shapes_are_reserved() -> None:
    pool = make_pool(40 * ROW)
    dense = parts(1, tables=HEAD)
    tables = {name: table.to("meta") for name, table in dense.tables.items()}
    shapes = DenseWeights(
        torch.empty(SHAPES.vectors.size, device="meta"), dense.affine_groups, dense.norms, tables
    )
    assert pool.fits(shapes)
    pool.reserve(0, shapes)
    pool.write(0, dense)
    assert_holds(pool, 0, dense)


def test_rows_of_the_vectors_take_exactly_their_bytes() -> None:
    pool = make_pool(3 * ROW + 100)
    for slot in range(3):
        assert pool.fits(parts(slot))
        load(pool, slot, parts(slot))
    assert not pool.fits(parts(3))
    assert pool.num_free_bytes == 100
    pool.unload(1)
    load(pool, 5, parts(5))
    for slot in (0, 2, 5):
        assert_holds(pool, slot, parts(slot))
    pool.check()


def test_too_little_memory_takes_nothing() -> None:
    pool = make_pool(2 * ROW)
    load(pool, 0, parts(0))
    big = parts(1, tables=(*EMBED, *HEAD))
    assert not pool.fits(big)
    assert not pool.is_possible(big)
    assert not pool.fits(parts(2, tables=("head_tokens",)))
    assert pool.is_possible(parts(2, tables=("head_tokens",)))
    with pytest.raises(AdapterError, match=rf"dense: needs \d+ bytes .*{ROW} of {2 * ROW} are"):
        pool.reserve(1, big)
    assert (pool.num_free_bytes, pool.held(1)) == (ROW, None)
    pool.check()
    assert_holds(pool, 0, parts(0))


def test_an_arena_under_one_row_still_takes_tables() -> None:
    pool = make_pool(ROW - 1)
    assert not pool.fits(parts(0))
    load(pool, 0, parts(0, vectors=False, tables=("head_tokens",)))
    assert_holds(pool, 0, parts(0, vectors=False, tables=("head_tokens",)))


def test_unloading_what_has_nothing_here_is_nothing() -> None:
    pool = make_pool(ROW)
    pool.unload(3)
    assert pool.num_free_bytes == ROW


def test_nothing_is_allocated_after_the_start() -> None:
    pool = make_pool(40 * ROW)
    before = pool._arena.data_ptr()
    dense = parts(1, tables=(*EMBED, *HEAD))
    load(pool, 0, dense)
    end = before + pool.num_bytes
    held = pool.held(0)
    views = [*held.tables.values(), *pool.affine("qkv", 0), pool.norm("mlp_norm", 1)]
    assert all(before <= view.data_ptr() < end for view in views)


class DensePoolMachine(RuleBasedStateMachine):
    """Any loads and unloads: what is held stays as it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(6 * ROW)
        self.held: dict[int, DenseWeights] = {}

    @rule(
        slot=st.integers(0, 7),
        seed=st.integers(0, 9),
        vectors=st.booleans(),
        tables=st.sets(st.sampled_from(["embed", "head", "embed_a", "head_a", "head_tokens"])),
    )
    def load(self, slot: int, seed: int, vectors: bool, tables: set[str]) -> None:
        if slot in self.held:
            return
        dense = parts(seed, vectors, tuple(sorted(tables)))
        free = self.pool.num_free_bytes
        if self.pool.fits(dense):
            load(self.pool, slot, dense)
            self.held[slot] = dense
            assert self.pool.num_free_bytes == free - dense.num_bytes
        else:
            assert self.held, "it is smaller than the arena"
            with pytest.raises(AdapterError):
                self.pool.reserve(slot, dense)
            assert self.pool.num_free_bytes == free

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[slot]
        self.pool.unload(slot)

    @invariant()
    def all_is_there(self) -> None:
        self.pool.check()
        for slot, dense in self.held.items():
            assert_holds(self.pool, slot, dense)

    def teardown(self) -> None:
        for slot in self.held:
            self.pool.unload(slot)
        assert self.pool.num_free_bytes == self.pool.num_bytes


TestDensePoolMachine = DensePoolMachine.TestCase
TestDensePoolMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
