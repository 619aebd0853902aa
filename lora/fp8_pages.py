"""Pages in 8 bits: A and B as e4m3, and one scale for what a rank's two halves were divided by.

Rank r of a slice adds ``(x . A_r) B_r`` to its columns, so both of its scales are one factor:
``(x . Aq_r) * scale_r * Bq_r`` with ``scale_r = amax(A_r) / 448 * amax(B_r) / 448``. Only the
shrink op multiplies by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import ops
from .errors import AdapterError
from .shapes import PAGE_RANK, ModuleShapes
from .weights import AdapterWeights, GroupWeights


def choose_page_dtype(wanted: str, dtype: torch.dtype) -> torch.dtype:
    """What pages are kept in: float8_e4m3fn where "fp8" is wanted, else what is computed in."""
    return ops.FP8 if wanted == "fp8" else dtype


def page_bytes(shapes: ModuleShapes, group: str, dtype: torch.dtype) -> int:
    """Bytes of one page of a group, over all layers; in 8 bits with its scales."""
    num_bytes = shapes.page_size(group) * dtype.itemsize
    if dtype == ops.FP8:
        a_ranks = len(shapes.groups[group].slices) * PAGE_RANK
        num_bytes += shapes.num_layers * a_ranks * torch.float32.itemsize
    return num_bytes


def to_pages(
    weights: AdapterWeights, shapes: ModuleShapes, dtype: torch.dtype, page_dtype: torch.dtype
) -> AdapterWeights:
    """An adapter as a bank keeps it: what is dense in ``dtype``, pages in ``page_dtype``.

    Pages that are in 8 bits already stay as they are. Raises AdapterError where a value is too
    large.
    """
    if page_dtype != ops.FP8:
        return weights.as_dtype(dtype)
    groups = {
        name: _quantize(name, group, shapes.groups[name].slice_sizes)
        for name, group in weights.groups.items()
    }
    dense = None if weights.dense is None else weights.dense.as_dtype(dtype)
    return AdapterWeights(groups, dense, weights.vocab_size)


def _quantize(name: str, group: GroupWeights, slice_sizes: tuple[int, ...]) -> GroupWeights:
    """A group's pages in 8 bits, layer by layer for the memory's sake."""
    if group.scales is not None:
        return group
    a, b = (torch.empty_like(half, dtype=ops.FP8) for half in (group.a, group.b))
    scales = torch.empty(group.a.shape[:-1], dtype=torch.float32, device=group.a.device)
    for layer in range(len(a)):
        a[layer], scales[layer] = ops.quantize_rows(group.a[layer])
        b[layer], b_scales = _quantize_slices(group.b[layer], slice_sizes)
        scales[layer] *= b_scales
    if not scales.isfinite().all():
        raise AdapterError(name, "holds numbers too large for pages in 8 bits")
    return GroupWeights(a, b, scales)


def _quantize_slices(b: Tensor, slice_sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """b [pages, 16, N] -> e4m3 [pages, 16, N] and scales [pages, slices * 16]."""
    parts = [ops.quantize_rows(part) for part in b.split_with_sizes(slice_sizes, -1)]
    values = torch.cat([values.view(torch.uint8) for values, _ in parts], -1)
    return values.view(ops.FP8), torch.cat([scales for _, scales in parts], -1)
