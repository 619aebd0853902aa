"""Linears and norms whose rows may each carry a different adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import ops
from .bank import AdapterBank, GroupPool
from .dense_mapping import StepDense
from .mapping import AdapterMapping


@dataclass(frozen=True, slots=True)
class StepLora:
    """The adapters of one step: where their weights are and which rows want them.

    ``dense`` None: none of them brings more than low-rank pairs.
    """

    bank: AdapterBank
    mapping: AdapterMapping
    dense: StepDense | None = None


@dataclass(frozen=True, slots=True)
class Norm:
    """An RMSNorm of the base model; adapters know it by its name and layer (``NormShape``)."""

    weight: torch.Tensor
    eps: float
    offset: float
    name: str
    layer: int = 0


def project(
    x: torch.Tensor,
    weight: ops.LinearWeight,
    bias: torch.Tensor | None,
    layer_index: int,
    group: str,
    lora: StepLora | None,
) -> torch.Tensor:
    """``x @ weight.T + bias``; on an adapter's rows ``(... + x @ A.T @ B) * scale + shift``.

    x: [num_tokens, in_features], weight: [out_features, in_features] -> [num_tokens, out_features].
    The base GEMM runs over all rows at once. Rows without an adapter are not touched again, so they
    are bit-equal to those of a batch of this shape without adapters; or, if it runs last, to those
    of any batch of this shape for which it does.
    """
    routing = None if lora is None else lora.mapping.groups.get(group)
    if lora is None or routing is None:
        y = ops.linear(x, weight, bias)
    else:
        y = _adapted_linear(x, weight, bias, layer_index, lora.bank.pools[group], routing)
    dense = None if lora is None else lora.dense
    if dense is not None and group in dense.groups:
        ops.scale_rows(y, *dense.pool.affine(group, layer_index), dense.vectors)
    return y


def _adapted_linear(
    x: torch.Tensor,
    weight: ops.LinearWeight,
    bias: torch.Tensor | None,
    layer_index: int,
    pool: GroupPool,
    routing: ops.LoraRouting | ops.LoraWork,
) -> torch.Tensor:
    """``x @ weight.T + bias``, and on the routed rows ``x @ A.T @ B``."""
    a, b, sizes = pool.a_layers[layer_index], pool.b_layers[layer_index], pool.slice_sizes
    scales = pool.scale_layers[layer_index]
    if (
        isinstance(weight, torch.Tensor)
        and isinstance(routing, ops.LoraWork)
        and runs_base_last(routing, weight, bias)
    ):
        y = x.new_empty(x.shape[0], sum(sizes))
        ops.write_expand(ops.shrink(x, a, routing, scales), b, sizes, routing, y)
        return y.addmm_(x, weight.t())
    y, hidden = ops.beside(
        x.device, lambda: ops.linear(x, weight, bias), lambda: ops.shrink(x, a, routing, scales)
    )
    ops.expand(hidden, b, sizes, routing, y)
    return y


def runs_base_last(work: ops.LoraWork, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the base GEMM adds to what the adapters wrote, and not the other way round.

    That saves reading and writing the rows again, where the work covers them all
    (``work.choose_tiling``) and the GEMM is a plain one.
    """
    return work.whole and bias is None and not weight.is_mkldnn


def normalize(x: torch.Tensor, norm: Norm, lora: StepLora | None) -> torch.Tensor:
    """RMSNorm of x [num_tokens, size] or [num_tokens, heads, size], by each row's own weights."""
    y = ops.rms_norm(x, norm.weight, norm.eps, norm.offset)
    _renormalize(y, x, norm, lora)
    return y


def add_and_normalize(
    x: torch.Tensor, residual: torch.Tensor, norm: Norm, lora: StepLora | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMSNorm of x + residual, x + residual); all [num_tokens, size]."""
    y, total = ops.fused_add_rms_norm(x, residual, norm.weight, norm.eps, norm.offset)
    _renormalize(y, total, norm, lora)
    return y, total


def _renormalize(y: torch.Tensor, x: torch.Tensor, norm: Norm, lora: StepLora | None) -> None:
    """Norm the rows again whose adapters may have norms of their own."""
    dense = None if lora is None else lora.dense
    if dense is not None and norm.name in dense.norms:
        weights = dense.pool.norm(norm.name, norm.layer)
        ops.norm_rows(y, x, weights, norm.eps, norm.offset, dense.vectors)
