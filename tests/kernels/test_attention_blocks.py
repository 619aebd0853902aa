"""How attention's grids are chosen."""

from __future__ import annotations

import pytest

from branchline.kernels.gpu.attention_blocks import (
    MAX_SPLITS,
    count_splits,
    decode_blocks,
    power_of_two,
    prefill_blocks,
)


def test_powers_of_two():
    assert [power_of_two(n, 1) for n in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
    assert [power_of_two(n) for n in (1, 7, 16, 80)] == [16, 16, 16, 128]


@pytest.mark.parametrize("num_decodes", [1, 2, 3, 7, 16, 64, 65, 66, 256])
@pytest.mark.parametrize("max_keys", [1, 64, 1000, 8192, 131072])
def test_splits_fill_the_device_but_are_worth_their_merge(num_decodes, max_keys):
    splits = count_splits(num_decodes, 8, max_keys, 64)
    assert splits == power_of_two(splits, 1)
    assert splits == 1 or max_keys / splits >= 128
    assert splits <= MAX_SPLITS
    fills = num_decodes * 8 * splits >= 4 * 132
    assert fills or splits * 2 > min(MAX_SPLITS, max_keys / 128)
    assert splits == 1 or num_decodes * 8 * splits < 2 * 4 * 132  # no more than needed


def test_a_batch_that_fills_the_device_is_not_split():
    assert count_splits(66, 8, 8192, 64) == 1
    assert count_splits(64, 8, 8192, 64) == 2


@pytest.mark.parametrize("blocks_of", [decode_blocks, prefill_blocks])
@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("group", [1, 7, 16, 40])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_blocks_hold_a_group_and_suit_a_product(blocks_of, group, head_dim, interpreted):
    for dtype_bytes in (2, 4):
        blocks = blocks_of(group, head_dim, dtype_bytes, interpreted)
        assert blocks.rows >= group
        for size in (blocks.rows, blocks.keys):
            assert size == power_of_two(size)
