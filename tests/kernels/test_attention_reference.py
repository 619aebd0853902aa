"""The paged attention twin against a dense float64 computation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from attention_case import attention_case

from branchline.kernels import metadata, ops

# The twin multiplies what it may not see by zero, so it needs numbers there.
poisoned = partial(attention_case, poison=1e4)


def check(case, window=None, cap=None, tolerance=1e-5, scale=0.3):
    expected = case.expected(scale, window, cap)
    torch.testing.assert_close(
        case.run(scale, window, cap), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize(
    ("query_lens", "seq_lens"),
    [
        ([1, 1, 1], [1, 9, 23]),  # decodes of very unequal length
        ([7], [7]),  # a whole prompt
        ([1, 5, 6, 2], [17, 5, 19, 2]),  # decode, whole prompts and a later chunk
        ([3, 1], [9, 12]),  # a one-token chunk behind a longer one
    ],
)
def test_equals_dense_attention(heads, window, cap, query_lens, seq_lens):
    check(poisoned(query_lens, seq_lens, heads), window, cap)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_short_decodes_are_not_padded_to_a_long_one(window, cap, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_PADDED_BLOCKS", 8)
    case = poisoned([1] * 5, [3, 300, 17, 18, 1], (4, 2))
    assert sorted(group.num_blocks for group in case.attention.decode_groups) == [1, 5, 75]
    check(case, window, cap)


@pytest.mark.parametrize(("window", "cap"), [(None, 1.5), (7, None), (300, 1.5)])
@pytest.mark.parametrize("num_cached", [0, 45])
def test_long_chunks_are_computed_in_pieces(window, cap, num_cached):
    check(poisoned([600], [600 + num_cached], (4, 2)), window, cap, 1e-4)


def test_layers_with_different_windows_share_one_step():
    case = poisoned([1, 1], [9, 14], (2, 2))
    outs = [case.run(0.3, window) for window in (3, None, 3)]
    assert torch.equal(outs[0], outs[2])
    assert not torch.allclose(outs[0], outs[1])


def test_bfloat16_stays_near_float64():
    case = poisoned([1, 4], [13, 10], (4, 2), dtype=torch.bfloat16)
    check(case, tolerance=0.03, scale=0.25)


def test_eight_bit_keys_are_read_as_written():
    case = attention_case([1, 4], [12, 16], (4, 2), fp8=True)
    case.cache.keys.view(torch.uint8)[0] = 0  # block 0 pads the shorter table
    case.cache.key_scales[0] = 1.0
    case.cache.values.view(torch.uint8)[0] = 0
    case.cache.value_scales[0] = 1.0
    check(case)


def test_only_leading_single_tokens_count_as_decodes():
    built = ops.build_attention_metadata([[1], [2], [3, 4]], [1, 3, 1], [1, 3, 5])
    assert built.num_decodes == 1
    assert built.cu_seqlens_q.tolist() == [0, 1, 4, 5]
    assert built.seq_lens.tolist() == [1, 3, 5]
    assert built.block_tables.tolist() == [[1, 0], [2, 0], [3, 4]]


@pytest.mark.parametrize("window", [None, 5])
def test_static_tensors_serve_steps_that_differ(window):
    tables, lengths = torch.zeros(4, 12, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    attention = ops.AttentionMetadata.for_decodes(tables, lengths)
    assert attention.num_decodes == 4
    assert attention.cu_seqlens_q.tolist() == [0, 1, 2, 3, 4]
    for seq_lens in ([5, 9, 2], [40, 1, 33]):
        case = poisoned([1, 1, 1], seq_lens, (4, 2))
        tables[:3, : case.attention.block_tables.shape[1]] = case.attention.block_tables
        lengths[:3] = case.attention.seq_lens
        q = torch.cat((case.q, case.q[:1]))
        out = ops.paged_attention(q, case.cache, attention, 0.3, window).double()
        torch.testing.assert_close(out[:3], case.expected(0.3, window), rtol=1e-5, atol=1e-5)
        assert torch.equal(out[3], torch.zeros_like(out[3]))  # padding, of length 0
