"""DoRA (arXiv 2402.09353): norms of the weights as they are with a low-rank pair added.

A column of the paper is an output of the linear, so a row here. Rows are taken in turns, so that
no second copy of a weight is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import AdapterError

_NUMBERS_AT_ONCE = 1 << 24


def row_norms(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Norms of the rows of ``weight + left @ right``, float32.

    weight: [n, k], left: [n, r], right: [r, k] -> [n].
    """
    return torch.cat([rows.norm(dim=1) for rows in _sums(weight, left, right)])


def column_norms(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Norms of the columns of ``weight + left @ right``, float32.

    weight: [n, k], left: [n, r], right: [r, k] -> [k].
    """
    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for rows in _sums(weight, left, right):
        squares += rows.square().sum(dim=0, dtype=torch.float64)
    return squares.sqrt().float()


def magnitude_scale(name: str, magnitude: Tensor, norms: Tensor) -> Tensor:
    """Magnitudes over norms; raises AdapterError where a norm is 0, or all but."""
    scale = magnitude / norms
    if not scale.isfinite().all():
        raise AdapterError(name, "the weight it scales is zero in some direction")
    return scale


def _sums(weight: Tensor, left: Tensor, right: Tensor) -> Iterator[Tensor]:
    count = max(1, _NUMBERS_AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), count):
        rows = weight[start : start + count].float()
        yield rows.addmm(left[start : start + count], right)
