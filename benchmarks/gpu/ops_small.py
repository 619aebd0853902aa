"""Norms, activations, and the rows that adapters scale or norm."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from branchline.kernels import ops

from .bench import Bench, Case, error, wide

EPS = 1e-5


def normed(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm in float64."""
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def rms_norm(bench: Bench, weight_offset: float) -> float:
    size = bench.pick(4096, 2048, 192)
    x, weight = bench.draw(33, size), bench.draw(size)
    expected = normed(wide(x), wide(weight) + weight_offset)
    return error(ops.rms_norm(x, weight, EPS, weight_offset), expected)


def head_norm(bench: Bench) -> float:
    """Of the query heads within q, k and v side by side, as Qwen3 has it."""
    heads = bench.draw(19, 12, 128)
    weight = bench.draw(128)
    return error(ops.rms_norm(heads[:, :8], weight, EPS), normed(wide(heads[:, :8]), wide(weight)))


def fused_add_rms_norm(bench: Bench) -> float:
    size = bench.pick(4096, 2048, 192)
    x, residual, weight = bench.draw(7, size), bench.draw(7, size), bench.draw(size)
    expected_sum = wide(x) + wide(residual)
    actual, total = ops.fused_add_rms_norm(x, residual, weight, EPS)
    return max(error(total, expected_sum), error(actual, normed(expected_sum, wide(weight))))


def gated_activation(bench: Bench, activation: ops.Activation) -> float:
    gate_up = bench.draw(13, 2 * bench.pick(14336, 1024, 160))
    gate, up = wide(gate_up).chunk(2, -1)
    if activation == "silu":
        expected = gate * torch.sigmoid(gate) * up
    else:
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        expected = 0.5 * gate * (1 + inner.tanh()) * up
    return error(ops.gated_activation(gate_up, activation), expected)


def routed(bench: Bench) -> tuple[list[int], list[int], list[ops.VectorRows]]:
    """Tokens 4 to 6 by a span, 9, 2 and 12 by an index: tokens, their rows, and the routing."""
    scattered = torch.tensor([9, 2, 12], device=bench.device)
    pages = torch.tensor([3, 0, 1], device=bench.device)
    parts = [
        ops.VectorRows(ops.Selection(4, 7), 2),
        ops.VectorRows(ops.Selection(2, 13, scattered), pages),
    ]
    return [4, 5, 6, 9, 2, 12], [2, 2, 2, 3, 0, 1], parts


def scale_rows(bench: Bench) -> float:
    size = bench.pick(6144, 768, 96)
    y = bench.draw(15, size)
    scales, shifts = bench.draw(4, size).float(), bench.draw(4, size).float()
    tokens, rows, parts = routed(bench)
    expected = wide(y).clone()
    expected[tokens] = expected[tokens] * wide(scales)[rows] + wide(shifts)[rows]
    ops.scale_rows(y, scales, shifts, parts)
    return error(y, expected)


def norm_rows(bench: Bench) -> float:
    size = bench.pick(4096, 512, 96)
    x, y, weights = bench.draw(15, size), bench.draw(15, size), bench.draw(4, size).float()
    tokens, rows, parts = routed(bench)
    expected = wide(y).clone()
    expected[tokens] = normed(wide(x)[tokens], wide(weights)[rows])
    ops.norm_rows(y, x, weights, EPS, 0.0, parts)
    return error(y, expected)


CASES: dict[str, Case] = {
    "rms_norm": partial(rms_norm, weight_offset=0.0),
    "rms_norm, offset 1": partial(rms_norm, weight_offset=1.0),
    "rms_norm, by head": head_norm,
    "fused_add_rms_norm": fused_add_rms_norm,
    "gated_activation, silu": partial(gated_activation, activation="silu"),
    "gated_activation, gelu": partial(gated_activation, activation="gelu_tanh"),
    "scale_rows": scale_rows,
    "norm_rows": norm_rows,
}
