"""The doors to linears in 8 bits."""

from __future__ import annotations

import torch
from torch import Tensor

from . import fp8
from .backend import uses_kernels
from .fp8 import Fp8Weight
from .kv_cache import quantize_rows


def quantize_weight(weight: Tensor) -> Fp8Weight:
    """``weight`` [N, K] in 8 bits: each row's largest magnitude becomes 448."""
    if uses_kernels(weight):
        return Fp8Weight(*_quantize(weight))
    return Fp8Weight(*fp8.quantize_in_chunks(weight))


def fp8_linear(x: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """x W^T + b; ``x`` [T, K] is rounded to 8 bits row by row -> [T, N] of its dtype."""
    rows, scales = _quantize(x)
    multiply = _scaled_mm if x.is_cuda else fp8.scaled_product
    y = multiply(rows, scales, weight).to(x.dtype)
    return y if bias is None else y.add_(bias)


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [T, K] -> e4m3 [T, K] and its rows' scales [T] float32."""
    if uses_kernels(x):
        from .gpu.fp8 import quantize_rows as kernel

        return kernel(x)
    return quantize_rows(x)


def _scaled_mm(rows: Tensor, row_scales: Tensor, weight: Fp8Weight) -> Tensor:
    """``scaled_product`` by the GPU's 8 bit units, rounded to bfloat16, the one dtype it has.

    Fast accumulation is what Hopper's units do at full speed: sums keep 14 bits between the
    float32 ones, far more than the 4 of the factors.
    """
    y: Tensor = torch._scaled_mm(
        rows,
        weight.values.t(),
        scale_a=row_scales.unsqueeze(1),
        scale_b=weight.scales.unsqueeze(0),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return y
