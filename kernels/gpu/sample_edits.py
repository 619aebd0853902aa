"""Changes to single logits: bias, then penalties, of all rows at once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 256


@triton.jit(do_not_specialize=["where", "changes", "num_edits"])
def edit_kernel(logits, where, changes, num_edits, row_stride, BLOCK: tl.constexpr):
    """BLOCK edits; where [2, num_edits] int64, changes [3, num_edits] float32."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_edits
    row = tl.load(where + index, mask=inside, other=0)
    column = tl.load(where + num_edits + index, mask=inside, other=0)
    bias = tl.load(changes + index, mask=inside, other=0.0)
    repetition = tl.load(changes + num_edits + index, mask=inside, other=1.0)
    amount = tl.load(changes + 2 * num_edits + index, mask=inside, other=0.0)
    place = logits + row * row_stride + column
    values = tl.load(place, mask=inside, other=0.0) + bias
    values = tl.where(values > 0, tl.div_rn(values, repetition), values * repetition)
    tl.store(place, values - amount, mask=inside)


def edit_logits(logits: Tensor, where: Tensor, changes: Tensor) -> None:
    """As `kernels.sample.edit_logits`; logits [N, V] with ids next to each other."""
    assert logits.stride(1) == 1
    assert where.is_contiguous()
    assert changes.is_contiguous()
    num_edits = where.shape[1]
    if num_edits:
        grid = (triton.cdiv(num_edits, BLOCK),)
        edit_kernel[grid](logits, where, changes, num_edits, logits.stride(0), BLOCK)
