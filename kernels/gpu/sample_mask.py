"""Rows of which a grammar leaves only some ids: the others become -inf."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["rows", "vocab_size", "num_words"])
def mask_kernel(logits, rows, bits, vocab_size, num_words, row_stride, BLOCK: tl.constexpr):
    """BLOCK ids of row rows[program 1]; bits [M, num_words] int32. What is allowed is not read."""
    place = tl.program_id(1)
    row = tl.load(rows + place)
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab_size
    words = tl.load(bits + place.to(tl.int64) * num_words + ids // 32, mask=inside, other=0)
    allowed = (words >> (ids % 32)) & 1
    tl.store(logits + row * row_stride + ids, -float("inf"), mask=inside & (allowed == 0))


def apply_token_mask(logits: Tensor, rows: Tensor, bits: Tensor) -> None:
    """As `kernels.sample.apply_token_mask`; logits [N, V] with ids next to each other."""
    vocab_size = logits.shape[1]
    assert logits.stride(1) == 1
    assert rows.is_contiguous()
    assert bits.is_contiguous()
    assert bits.shape == (len(rows), triton.cdiv(vocab_size, 32))
    if len(rows):
        grid = (triton.cdiv(vocab_size, BLOCK), len(rows))
        mask_kernel[grid](
            logits, rows, bits, vocab_size, bits.shape[1], logits.stride(0), BLOCK=BLOCK
        )
