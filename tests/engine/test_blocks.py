"""Blocks are taken, given back and cleared without loss."""

from __future__ import annotations

import pytest

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool


def make_pool(num_usable: int) -> BlockPool:
    return BlockPool(num_usable + NUM_RESERVED_BLOCKS, block_size=8)


def test_takes_all_or_nothing():
    pool = make_pool(3)
    assert pool.take(4) is None
    assert pool.num_free == 3
    assert sorted(pool.take(3)) == [2, 3, 4]
    assert pool.take(1) is None
    pool.check()


def test_the_block_unused_for_longest_is_taken_first():
    pool = make_pool(3)
    first, second, third = pool.take(3)
    pool.give_back([second])
    pool.give_back([first, third])
    assert pool.take(3) == [second, first, third]


def test_a_block_given_back_twice_is_our_own_bug():
    pool = make_pool(2)
    [block] = pool.take(1)
    pool.give_back([block])
    with pytest.raises(AssertionError, match="free already"):
        pool.give_back([block])


def test_a_block_is_cleared_for_its_second_holder_and_only_once():
    pool = make_pool(1)
    pool.take(1)
    assert pool.blocks_to_clear() == ()
    pool.give_back([2])
    assert pool.blocks_to_clear() == ()
    pool.take(1)
    assert pool.blocks_to_clear() == (2,)
    assert pool.blocks_to_clear() == ()


def test_a_block_that_was_never_cleared_is_so_for_the_next_holder():
    pool = make_pool(1)
    for _ in range(3):
        pool.take(1)
        pool.give_back([2])
    assert pool.blocks_to_clear() == ()
    pool.take(1)
    assert pool.blocks_to_clear() == (2,)


def test_a_block_that_is_overwritten_is_not_cleared_but_its_next_holder_s_is():
    pool = make_pool(1)
    for overwritten, to_clear in ((False, ()), (True, ()), (False, (2,))):
        pool.take(1, overwritten=overwritten)
        assert pool.blocks_to_clear() == to_clear
        pool.give_back([2])


def test_a_pool_needs_a_block_beside_the_reserved_ones():
    with pytest.raises(ValueError, match="over 2"):
        BlockPool(num_blocks=2, block_size=8)
