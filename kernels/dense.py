"""Rows that adapters scale, shift or norm in their own way; all other rows are left alone.

The vectors of all adapters are rows of one matrix; a view of some of its columns belongs to one
linear or norm, and each routed token names the row that its adapter has there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora import Selection
from .reference import rms_norm


@dataclass(frozen=True, slots=True)
class VectorRows:
    """Tokens and the row of the vectors that each of them meets: [n] int64, or one for all."""

    tokens: Selection
    pages: Tensor | int

    def of(self, vectors: Tensor) -> Tensor:
        """The rows of ``vectors`` [P, N] for these tokens: [n, N], or [1, N] for all."""
        if isinstance(self.pages, int):
            return vectors.narrow(0, self.pages, 1)
        return vectors.index_select(0, self.pages)


def scale_rows(y: Tensor, scales: Tensor, shifts: Tensor, routed: Sequence[VectorRows]) -> None:
    """y[t] = y[t] * scales[p] + shifts[p] for the routed tokens, in float32 and rounded once.

    y [T, N]; scales and shifts [P, N] float32.
    """
    for part in routed:
        rows = part.tokens.of(y)
        part.tokens.put(y, torch.addcmul(part.of(shifts), rows.float(), part.of(scales)))


def norm_rows(
    y: Tensor,
    x: Tensor,
    weights: Tensor,
    eps: float,
    weight_offset: float,
    routed: Sequence[VectorRows],
) -> None:
    """y[t] = rms_norm(x[t], weights[p]) for the routed tokens.

    x and y [T, N] or, head by head, [T, heads, N]; weights [P, N] float32.
    """
    for part in routed:
        weight = part.of(weights)
        if x.ndim == 3:
            weight = weight.unsqueeze(1)
        part.tokens.put(y, rms_norm(part.tokens.of(x), weight, eps, weight_offset))
