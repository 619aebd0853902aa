"""Blocks are taken, shared and given back without loss."""

from __future__ import annotations

import pytest

from branchline.engine.blocks import BlockLease, BlockPool


def test_takes_all_or_nothing():
    pool = BlockPool(num_blocks=4, block_size=8)
    assert pool.take(4) is None
    assert pool.num_free == 3
    assert sorted(pool.take(3)) == [1, 2, 3]
    assert pool.take(1) is None
    pool.check()


def test_the_block_unused_for_longest_is_taken_first():
    pool = BlockPool(num_blocks=4, block_size=8)
    first, second, third = pool.take(3)
    pool.drop([second])
    pool.drop([first, third])
    assert pool.take(3) == [second, first, third]


def test_a_shared_block_is_free_after_the_last_drop():
    pool = BlockPool(num_blocks=3, block_size=8)
    [block] = pool.take(1)
    pool.share([block])
    assert pool.drop([block]) == []
    pool.check()
    assert pool.drop([block]) == [block]
    pool.check()


def test_a_second_drop_is_our_own_bug():
    pool = BlockPool(num_blocks=3, block_size=8)
    [block] = pool.take(1)
    pool.drop([block])
    with pytest.raises(AssertionError, match="dropped twice"):
        pool.drop([block])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_a_lease_grows_by_whole_blocks(num_tokens, num_blocks):
    lease = BlockLease(BlockPool(num_blocks=10, block_size=8))
    assert lease.num_missing(num_tokens) == num_blocks
    assert lease.grow(num_tokens)
    assert len(lease.block_ids) == num_blocks
    assert lease.num_slots == num_blocks * 8


def test_a_lease_keeps_what_it_has_when_blocks_run_out():
    pool = BlockPool(num_blocks=4, block_size=8)
    lease, other = BlockLease(pool), BlockLease(pool)
    assert lease.grow(16)
    assert not other.grow(16)
    assert other.block_ids == []
    assert lease.grow(24)
    assert not lease.grow(25)
    assert lease.num_slots == 24


def test_release_frees_the_tail_first():
    pool = BlockPool(num_blocks=4, block_size=8)
    lease = BlockLease(pool)
    lease.grow(24)
    held = list(lease.block_ids)
    assert lease.release() == held[::-1]
    assert lease.release() == []
    assert pool.take(3) == held[::-1]


def test_a_pool_needs_a_block_beside_the_reserved_one():
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(num_blocks=1, block_size=8)
