"""Weights in 8 bits, a scale an output channel, and products of them with rows in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .kv_cache import FP8, quantize_rows

MULTIPLE = 16
"""Both sides of a weight are multiples of it, or a GPU can't multiply it in 8 bits."""
CHUNK_ELEMENTS = 4 << 20


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A linear's weight: ``values`` [N, K] e4m3 times ``scales`` [N] float32, row by row."""

    values: Tensor
    scales: Tensor


def quantize_in_chunks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows`` of ``weight`` [N, K], some rows at a time for the memory's sake."""
    values = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scales = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    num_rows = max(1, CHUNK_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), num_rows):
        part = slice(start, start + num_rows)
        values[part], scales[part] = quantize_rows(weight[part])
    return values, scales


def scaled_product(rows: Tensor, row_scales: Tensor, weight: Fp8Weight) -> Tensor:
    """y[t, n] = sum_k rows[t, k] values[n, k] * row_scales[t] * scales[n], in float32.

    rows [T, K] e4m3, row_scales [T] float32 -> [T, N] float32.
    """
    product = rows.float() @ weight.values.float().t()
    return product.mul_(row_scales.unsqueeze(1)).mul_(weight.scales)
