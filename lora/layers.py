"""A linear layer whose rows may each carry a different adapter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import ops
from .bank import AdapterBank
from .mapping import AdapterMapping


@dataclass(frozen=True, slots=True)
class StepLora:
    """The adapters of one step: where their weights are and which rows want them."""

    bank: AdapterBank
    mapping: AdapterMapping


def project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    layer_index: int,
    group: str,
    lora: StepLora | None,
) -> torch.Tensor:
    """``x @ weight.T + bias``, plus ``x @ A.T @ B`` on the rows that carry an adapter.

    x: [num_tokens, in_features], weight: [out_features, in_features] -> [num_tokens, out_features].
    The base GEMM runs over all rows at once and rows without an adapter are not touched again,
    so they are bit-equal to those of a batch of this shape without adapters.
    """
    y = ops.linear(x, weight, bias)
    if lora is None:
        return y
    routing = lora.mapping.groups.get(group)
    if routing is not None:
        pool = lora.bank.pools[group]
        hidden = ops.shrink(x, pool.a_layers[layer_index], routing)
        ops.expand(hidden, pool.b_layers[layer_index], pool.slice_sizes, routing, y)
    return y
