"""Sampling's ops: Triton's kernels or their twins in `kernels.sample`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import sample
from .backend import uses_kernels


def top_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's argmax and largest logit."""
    if uses_kernels(logits):
        from .gpu.sample import top_tokens as kernel

        return kernel(logits)
    return sample.top_tokens(logits)


def sample_tokens(
    logits: Tensor,
    top_ids: Tensor,
    temperature: Tensor,
    streams: Tensor,
    floors: Tensor | None = None,
) -> Tensor:
    """Tokens drawn from the softmax of the logits at or above the rows' floors."""
    if uses_kernels(logits):
        from .gpu.sample import sample_tokens as kernel

        return kernel(logits, top_ids, temperature, streams, floors)
    return sample.sample_tokens(logits, top_ids, temperature, streams, floors)


def filter_floors(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The least logit that each row's filters keep."""
    if uses_kernels(logits):
        from .gpu.sample_filters import filter_floors as kernel

        return kernel(logits, temperature, top_k, top_p, min_p)
    return sample.filter_floors(logits, temperature, top_k, top_p, min_p)


def edit_logits(logits: Tensor, where: Tensor, changes: Tensor) -> None:
    """Bias and penalties of single logits, in place."""
    if uses_kernels(logits):
        from .gpu.sample_edits import edit_logits as kernel

        return kernel(logits, where, changes)
    return sample.edit_logits(logits, where, changes)


def apply_token_mask(logits: Tensor, rows: Tensor, bits: Tensor) -> None:
    """Rows of which only some ids are left, in place."""
    if uses_kernels(logits):
        from .gpu.sample_mask import apply_token_mask as kernel

        return kernel(logits, rows, bits)
    return sample.apply_token_mask(logits, rows, bits)


def report_logprobs(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Logprobs and ranks of one id a row, and each row's best ids."""
    if uses_kernels(logits):
        from .gpu.sample_report import report_logprobs as kernel

        return kernel(logits, token_ids, counts)
    return sample.report_logprobs(logits, token_ids, counts)
