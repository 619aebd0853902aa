"""Paged attention's kernels against the formula in float64, in caches full of NaNs."""

from __future__ import annotations

import math

import pytest
import torch
from attention_case import attention_case, dense

from branchline.kernels import ops
from branchline.kernels.gpu import attention_decode, attention_prefill
from branchline.kernels.kv_cache import FP8

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

MIXED = ([1, 1, 5, 19, 2], [17, 1, 5, 43, 2])  # decodes, whole prompts, a later chunk


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch):
    """What a kernel leaves unwritten, in its output or between its launches, is NaN."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(math.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)


def check(case, scale=0.3, window=None, cap=None):
    tolerance = TOLERANCES[case.q.dtype]
    expected = case.expected(scale, window, cap)
    torch.testing.assert_close(
        case.run(scale, window, cap), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 40, 1000])
@pytest.mark.parametrize(
    ("query_lens", "seq_lens"),
    [
        ([1, 1, 1], [1, 9, 130]),  # decodes of very unequal length
        ([53], [53]),  # a whole prompt
        ([21], [70]),  # a later chunk
        MIXED,
    ],
)
def test_equals_the_formula(query_lens, seq_lens, window, cap, device):
    check(attention_case(query_lens, seq_lens, (6, 2), device=device), 0.3, window, cap)


@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (14, 2), (16, 1), (40, 2)])
def test_any_number_of_heads_share_keys(heads, device):
    check(attention_case(*MIXED, heads, device=device))


@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 100, 256])
def test_any_head_dim(head_dim, device):
    check(attention_case(*MIXED, (2, 1), head_dim=head_dim, device=device), head_dim**-0.5)


@pytest.mark.parametrize("block_size", [1, 8, 16, 32, 64])
def test_any_block_size(block_size, device):
    check(attention_case(*MIXED, (2, 1), block_size=block_size, device=device), window=20)


@pytest.mark.parametrize("heads", [(2, 2), (7, 1)])
@pytest.mark.parametrize("window", [None, 90])
def test_the_tiles_of_a_device(heads, window, device, monkeypatch):
    """Far larger than those the interpreter has time for."""
    for module, name in (
        (attention_decode, "decode_blocks"),
        (attention_prefill, "prefill_blocks"),
    ):
        blocks_of = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *sizes, of=blocks_of: of(*sizes[:3], False))
    query_lens, seq_lens = [1, 1, 1, 150, 40], [390, 1, 65, 150, 230]
    check(attention_case(query_lens, seq_lens, heads, head_dim=128, device=device), 0.09, window)


@pytest.mark.parametrize("window", [None, 70])
def test_long_contexts(window, device):
    length = 3001 if device.type == "cuda" else 101
    case = attention_case(
        [1, 1, length, 77], [length, 2 * length, length, length], (4, 2), device=device
    )
    check(case, 0.3, window)


@pytest.mark.parametrize("window", [1, 3, 30])
def test_windows_smaller_than_a_tile_of_queries(window, device):
    """A tile's later queries see none of its first keys."""
    check(attention_case([150, 40], [150, 90], (1, 1), head_dim=8, device=device), 0.3, window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, device):
    check(attention_case(*MIXED, (6, 2), dtype=dtype, device=device), cap=2.0)


def test_poison_larger_than_any_number(device):
    check(attention_case(*MIXED, (6, 2), poison=math.inf, device=device), window=7)
    check(attention_case(*MIXED, (6, 2), poison=1e30, device=device))


def test_many_short_chunks_find_their_requests(device):
    """Tiles are shared out without a table of them: each program searches for its request."""
    query_lens = [1, 1, 3, 1, 9, 8, 7, 2, 1, 16, 17, 33, 4]
    seq_lens = [4, 1, 3, 5, 9, 30, 7, 2, 1, 16, 20, 33, 5]
    case = attention_case(query_lens, seq_lens, (4, 2), head_dim=8, device=device)
    assert case.attention.num_decodes == 2
    check(case)


def test_a_request_alone_and_in_a_batch_is_computed_alike(device):
    """To the bit where the grid is as wide: a row's arithmetic is its own."""
    case = attention_case([1, 1, 1], [40, 33, 7], (4, 2), device=device)
    out = ops.paged_attention(case.q, case.cache, case.attention, 0.3)
    lengths = case.attention.seq_lens
    turned = ops.AttentionMetadata.for_decodes(
        case.attention.block_tables.flip(0).contiguous(), lengths.flip(0).contiguous()
    )
    back = ops.paged_attention(case.q.flip(0), case.cache, turned, 0.3).flip(0)
    assert torch.equal(out, back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (9, 2.0)])
def test_eight_bit_keys_are_read_as_written(dtype, window, cap, device):
    case = attention_case(*MIXED, (6, 2), fp8=True, dtype=dtype, device=device)
    check(case, 0.3, window, cap)


@pytest.mark.parametrize("magnitude", [1e-4, 1e4])
def test_eight_bit_values_of_any_magnitude(magnitude, device):
    """Also those whose scales float16 could not hold."""
    case = attention_case([1, 5], [30, 21], (2, 1), fp8=True, dtype=torch.float16, device=device)
    case.cache.value_scales.mul_(magnitude)
    expected = case.expected(0.3) * magnitude
    torch.testing.assert_close(case.run(0.3), expected, rtol=1e-2, atol=1e-2 * magnitude)


def test_eight_bits_cost_little(device):
    """The error is that of three mantissa bits, averaged: far below the values' spread."""
    exact = attention_case([1, 6], [60, 50], (4, 2), device=device)
    stored = attention_case([1, 6], [60, 50], (4, 2), fp8=True, device=device)
    error = (stored.run(0.25) - exact.expected(0.25)).abs()
    assert 0 < error.max() < 0.15
    assert error.mean() < 0.03


def static_decodes(num_rows, width, device):
    tables = torch.zeros(num_rows, width, dtype=torch.int32, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.int32, device=device)
    return ops.AttentionMetadata.for_decodes(tables, lengths)


@pytest.mark.parametrize("width", [3, 40])  # one program a head, or many
@pytest.mark.parametrize("window", [None, 6])
def test_padding_rows_of_a_captured_graph_are_zeros(width, window, device):
    case = attention_case([1, 1], [9, 12], (4, 2), device=device)
    attention = static_decodes(5, width, device)
    used = case.attention.block_tables.shape[1]
    attention.block_tables[:2, :used] = case.attention.block_tables
    attention.seq_lens[:2] = case.attention.seq_lens
    q = torch.cat((case.q, torch.full((3, *case.q.shape[1:]), math.nan, device=device)))
    out = ops.paged_attention(q, case.cache, attention, 0.3, window).double().cpu()
    torch.testing.assert_close(out[:2], case.expected(0.3, window), rtol=2e-5, atol=2e-5)
    assert torch.equal(out[2:], torch.zeros_like(out[2:]))


def test_one_metadata_serves_steps_that_differ(device):
    """What a replay changes is read on the device: nothing of an earlier step is kept."""
    attention = static_decodes(3, 40, device)
    for lengths in ([5, 9, 2], [150, 1, 33]):
        case = attention_case([1, 1, 1], lengths, (4, 2), device=device)
        used = case.attention.block_tables.shape[1]
        attention.block_tables[:, :used] = case.attention.block_tables
        attention.seq_lens.copy_(case.attention.seq_lens)
        out = ops.paged_attention(case.q, case.cache, attention, 0.3).double().cpu()
        torch.testing.assert_close(out, case.expected(0.3), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("query_len", "seq_len"), [(1, 7), (4, 7)])
def test_blocks_lie_beyond_four_gigabytes(query_len, seq_len, device):
    """Offsets that 32 bits don't hold; no page but those of the few blocks is ever touched."""
    stride, block_size, head_dim = 2**30 + 2**29, 4, 16
    shape, strides = (4, block_size, 1, head_dim), (stride, head_dim, head_dim, 1)
    size = 3 * stride + block_size * head_dim
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, seq_len, 1, head_dim, generator=generator)
    written = rows[0].to(FP8)
    pool = torch.empty(size, dtype=torch.uint8, device=device).view(FP8)
    blocks = pool.as_strided(shape, strides)
    for place, block in enumerate((3, 1)):
        part = written[place * block_size : (place + 1) * block_size]
        blocks[block, : len(part)] = part.to(device)
    scales = torch.ones(4, block_size, 1, device=device)
    cache = ops.KvCache(blocks, blocks, scales, scales)
    q = rows[1, :query_len].repeat(1, 2, 1).to(device)
    attention = ops.build_attention_metadata([[3, 1]], [query_len], [seq_len], device)
    out = ops.paged_attention(q, cache, attention, 0.3).double().cpu()
    expected = dense(q.cpu(), written.float(), written.float(), 0.3, None, None)
    torch.testing.assert_close(out, expected, rtol=2e-5, atol=2e-5)
