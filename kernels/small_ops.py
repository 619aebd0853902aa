"""The doors to norms, rotary embeddings, activations and the rows that adapters scale or norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import dense, reference
from .backend import uses_kernels
from .dense import VectorRows
from .kv_cache import KvCache
from .reference import Activation


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (weight + weight_offset); x [T, N] or [T, heads, N]."""
    if uses_kernels(x):
        from .gpu.norm import rms_norm as kernel

        return kernel(x, weight, eps, weight_offset)
    return reference.rms_norm(x, weight, eps, weight_offset)


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); all [T, N]."""
    if uses_kernels(x):
        from .gpu.norm import fused_add_rms_norm as kernel

        return kernel(x, residual, weight, eps, weight_offset)
    return reference.fused_add_rms_norm(x, residual, weight, eps, weight_offset)


def rope_and_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    cache: KvCache,
    slot_mapping: Tensor,
) -> None:
    """Rotate q [T, Hq, D] in place, and put rotated k and v [T, Hkv, D] in the cache."""
    if uses_kernels(q):
        from .gpu.rope import rope_and_kv_write as kernel

        kernel(q, k, v, rope, cache, slot_mapping)
    else:
        reference.rope_and_kv_write(q, k, v, rope, cache, slot_mapping)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up; gate_up [T, 2I] -> [T, I]."""
    if uses_kernels(gate_up):
        from .gpu.activation import gated_activation as kernel

        return kernel(gate_up, activation)
    return reference.gated_activation(gate_up, activation)


def scale_rows(y: Tensor, scales: Tensor, shifts: Tensor, routed: Sequence[VectorRows]) -> None:
    """y[t] = y[t] * scales[p] + shifts[p] for the routed tokens; scales, shifts [P, N]."""
    if uses_kernels(y):
        from .gpu.dense import scale_rows as kernel

        kernel(y, scales, shifts, routed)
    else:
        dense.scale_rows(y, scales, shifts, routed)


def norm_rows(
    y: Tensor,
    x: Tensor,
    weights: Tensor,
    eps: float,
    weight_offset: float,
    routed: Sequence[VectorRows],
) -> None:
    """y[t] = rms_norm(x[t], weights[p]) for the routed tokens; weights [P, N]."""
    if uses_kernels(y):
        from .gpu.dense import norm_rows as kernel

        kernel(y, x, weights, eps, weight_offset, routed)
    else:
        dense.norm_rows(y, x, weights, eps, weight_offset, routed)
