"""Linears in 8 bits, against the product in float64 of what the 8 bits stand for."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.kv_cache import quantize_rows

from .bench import Bench, Case, error, wide

FP8_PRODUCT_ERROR = 0.08
"""Of factors that are each rounded by 1/16 at most, most of which cancels in a sum."""


def dequantized(rows: Tensor) -> Tensor:
    """Rows rounded to 8 bits with a scale each, in float64."""
    values, scales = quantize_rows(rows)
    return values.float().double() * scales.double()[:, None]


def weight_in_8_bits(bench: Bench) -> float:
    """Rows of very different sizes keep their own precision; a row of zeros stays one."""
    weight = bench.draw(*bench.pick((6144, 4096), (96, 64), (48, 32)))
    weight *= torch.logspace(-3, 2, len(weight), device=bench.device)[:, None].to(bench.dtype)
    weight[5] = 0
    quantized = ops.quantize_weight(weight)
    actual = quantized.values.float().double() * quantized.scales.double()[:, None]
    largest = wide(weight).abs().amax(1, keepdim=True).clamp(min=1e-12)
    return error(actual / largest, dequantized(weight) / largest)


def linear(bench: Bench, num_rows: int) -> float:
    size = bench.pick((6144, 4096), (96, 64), (48, 32))
    weight = bench.draw(*size, scale=size[1] ** -0.5)
    x = bench.draw(num_rows, size[1])
    x[0] *= 50
    actual = ops.linear(x, ops.quantize_weight(weight))
    exact = wide(x) @ wide(weight).T
    if not error(actual[1:], exact[1:]) < FP8_PRODUCT_ERROR:
        return float("inf")
    return error(actual[1:], (dequantized(x) @ dequantized(weight).T)[1:])


CASES: dict[str, Case] = {
    "weight in 8 bits": weight_in_8_bits,
    "linear in 8 bits, decode": partial(linear, num_rows=7),
    "linear in 8 bits, prefill": partial(linear, num_rows=70),
}
