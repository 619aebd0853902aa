"""Logprob and rank of one id a row and the row's best ids, without a row's softmax in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sample_order import NOTHING, key_values, order_keys, pack_pairs, pair_ids, pair_keys

BLOCK = 4096
BEST_BLOCK = 64


@triton.jit(do_not_specialize=["num_rows"])
def sums_kernel(logits, token_ids, pairs, parts, num_rows, vocab_size, BLOCK: tl.constexpr):
    """BLOCK ids of a row: their pairs, and in parts [3, N, chunks] float32 their largest logit,
    the sum of exp(logit - largest), and how many are larger than the row's own id's.
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    start = row.to(tl.int64) * vocab_size
    ids = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab_size
    values = tl.load(logits + start + ids, mask=inside, other=float("-inf"))
    chosen = tl.load(logits + start + tl.load(token_ids + row))
    largest = tl.max(values, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    place = parts + row * tl.num_programs(1) + chunk
    plane = num_rows * tl.num_programs(1)
    tl.store(place, largest)
    tl.store(place + plane, tl.sum(tl.exp(values - shift), axis=0))
    tl.store(place + 2 * plane, tl.sum((values > chosen).to(tl.int32), axis=0).to(tl.float32))
    tl.store(pairs + start + ids, pack_pairs(order_keys(values), ids), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def report_kernel(
    logits, token_ids, parts, log_sums, logprobs, ranks, num_rows, vocab_size, num_chunks,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """A row's logsumexp, and logprob and rank of its own id."""
    row = tl.program_id(0)
    index = tl.arange(0, CHUNKS)
    inside = index < num_chunks
    place = parts + row * num_chunks + index
    plane = num_rows * num_chunks
    maxima = tl.load(place, mask=inside, other=float("-inf"))
    sums = tl.load(place + plane, mask=inside, other=0.0)
    larger = tl.load(place + 2 * plane, mask=inside, other=0.0)
    largest = tl.max(maxima, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    log_sum = shift + tl.log(tl.sum(sums * tl.exp(maxima - shift), axis=0))
    chosen = tl.load(logits + row.to(tl.int64) * vocab_size + tl.load(token_ids + row))
    tl.store(log_sums + row, log_sum)
    tl.store(logprobs + row, chosen - log_sum)
    tl.store(ranks + row, tl.sum(larger, axis=0) + 1.0)


@triton.jit(do_not_specialize=["rows", "ids", "width"])
def unpack_kernel(pairs, log_sums, rows, ids, logprobs, width, BLOCK: tl.constexpr):
    """Row, id and logprob of a row's best pairs [N, width]."""
    row = tl.program_id(0)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < width
    place = row * width + index
    found = tl.load(pairs + place, mask=inside, other=NOTHING)
    found_ids = pair_ids(found)
    values = key_values(pair_keys(found)) - tl.load(log_sums + row)
    tl.store(rows + place, index * 0 + row, mask=inside)
    tl.store(ids + place, found_ids, mask=inside)
    tl.store(logprobs + place, values, mask=inside)


def report_logprobs(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """As `kernels.sample.report_logprobs`, with max(counts) entries of every row."""
    logits = logits.contiguous()
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, BLOCK)
    width = min(max(*counts, 1), vocab_size)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    pairs = new(num_rows, vocab_size, dtype=torch.int64)
    parts = new(3, num_rows, num_chunks)
    sums_kernel[(num_rows, num_chunks)](
        logits, token_ids, pairs, parts, num_rows, vocab_size, BLOCK
    )
    log_sums, chosen, ranks = new(num_rows), new(num_rows), new(num_rows)
    report_kernel[(num_rows,)](
        logits, token_ids, parts, log_sums, chosen, ranks, num_rows, vocab_size, num_chunks,
        triton.next_power_of_2(num_chunks), num_warps=1,
    )  # fmt: skip
    best = pairs.topk(width, dim=1).values
    logprobs = new(num_rows * width)
    rows, ids = new(2, num_rows * width, dtype=torch.int64)
    grid = (num_rows, triton.cdiv(width, BEST_BLOCK))
    unpack_kernel[grid](best, log_sums, rows, ids, logprobs, width, BEST_BLOCK, num_warps=1)
    return [chosen, ranks, rows, ids, logprobs]
