"""The paged attention twin against a dense float64 computation."""

from __future__ import annotations

import itertools

import pytest
import torch

from branchline.kernels import metadata, ops

BLOCK_SIZE = 4
HEAD_DIM = 16


def dense(q, k, v, scale, window, cap):
    """One request in float64: q [Tq, Hq, D], k and v [L, Hkv, D], queries last."""
    q, k, v = q.double(), k.double(), v.double()
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    key = torch.arange(k.shape[0])
    query = key[-q.shape[0] :, None]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def paged_case(query_lens, seq_lens, num_heads, num_kv_heads, seed=0, poison=1e4):
    """Random keys spread over shuffled blocks whose unused slots hold a poison."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = sum(-(-n // BLOCK_SIZE) for n in seq_lens) + 3
    shape = (num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM)
    k_cache, v_cache = torch.full(shape, poison), torch.full(shape, poison)
    free = iter((torch.randperm(num_blocks - 1, generator=generator) + 1).tolist())
    tables, requests = [], []
    for query_len, seq_len in zip(query_lens, seq_lens, strict=True):
        table = list(itertools.islice(free, -(-seq_len // BLOCK_SIZE)))
        k, v = torch.randn(2, seq_len, num_kv_heads, HEAD_DIM, generator=generator)
        slots = torch.tensor(
            [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(seq_len)]
        )
        ops.kv_write(k, v, ops.KvCache(k_cache, v_cache), slots)
        tables.append(table)
        q = torch.randn(query_len, num_heads, HEAD_DIM, generator=generator)
        requests.append((q, k, v))
    attention = ops.build_attention_metadata(tables, query_lens, seq_lens)
    return requests, k_cache, v_cache, attention


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
    requests, k_cache, v_cache, attention = paged_case(query_lens, seq_lens, *heads)
    q = torch.cat([q for q, _, _ in requests])
    out = ops.paged_attention(q, ops.KvCache(k_cache, v_cache), attention, 0.3, window, cap)
    expected = torch.cat([dense(q, k, v, 0.3, window, cap) for q, k, v in requests])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_short_decodes_are_not_padded_to_a_long_one(window, cap, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_PADDED_BLOCKS", 8)
    seq_lens = [3, 300, 17, 18, 1]
    requests, k_cache, v_cache, attention = paged_case([1] * 5, seq_lens, 4, 2)
    assert sorted(group.num_blocks for group in attention.decode_groups) == [1, 5, 75]
    q = torch.cat([q for q, _, _ in requests])
    out = ops.paged_attention(q, ops.KvCache(k_cache, v_cache), attention, 0.3, window, cap)
    expected = torch.cat([dense(q, k, v, 0.3, window, cap) for q, k, v in requests])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window", "cap"), [(None, 1.5), (7, None), (300, 1.5)])
@pytest.mark.parametrize("num_cached", [0, 45])
def test_long_chunks_are_computed_in_pieces(window, cap, num_cached):
    requests, k_cache, v_cache, attention = paged_case([600], [600 + num_cached], 4, 2)
    [(q, k, v)] = requests
    out = ops.paged_attention(q, ops.KvCache(k_cache, v_cache), attention, 0.3, window, cap)
    torch.testing.assert_close(out.double(), dense(q, k, v, 0.3, window, cap), rtol=1e-4, atol=1e-4)


def test_layers_with_different_windows_share_one_step():
    requests, k_cache, v_cache, attention = paged_case([1, 1], [9, 14], 2, 2)
    q = torch.cat([q for q, _, _ in requests])
    outs = [
        ops.paged_attention(q, ops.KvCache(k_cache, v_cache), attention, 0.3, window)
        for window in (3, None, 3)
    ]
    assert torch.equal(outs[0], outs[2])
    assert not torch.allclose(outs[0], outs[1])


def test_bfloat16_stays_near_float64():
    requests, k_cache, v_cache, attention = paged_case([1, 4], [13, 10], 4, 2)
    q = torch.cat([q for q, _, _ in requests])
    out = ops.paged_attention(
        q.bfloat16(), ops.KvCache(k_cache.bfloat16(), v_cache.bfloat16()), attention, 0.25
    )
    expected = torch.cat([dense(q, k, v, 0.25, None, None) for q, k, v in requests])
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.03)


def test_only_leading_single_tokens_count_as_decodes():
    built = ops.build_attention_metadata([[1], [2], [3]], [1, 3, 1], [1, 3, 2])
    assert built.num_decodes == 1
    assert built.cu_seqlens_q.tolist() == [0, 1, 4, 5]
    assert built.block_tables.tolist() == [[1], [2], [3]]
