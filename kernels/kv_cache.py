"""The keys and values of one layer, in blocks; in full precision, or in 8 bits with scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max


@dataclass(frozen=True, slots=True)
class KvCache:
    """``keys``, ``values`` [num_blocks, block_size, Hkv, D]; strided over blocks.

    In float8_e4m3fn each row of D has a scale of its own in ``key_scales``, ``value_scales``
    [num_blocks, block_size, Hkv] float32: the row's largest magnitude over 448, so that nothing
    overflows whatever the model. Scales are None for other dtypes.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens a block."""
        return self.keys.shape[1]


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` [..., D] -> e4m3 [..., D] and scales [...] float32; a row of zeros has scale 1."""
    wide = rows.float()
    scales = wide.abs().amax(-1) / FP8_MAX
    scales = torch.where(scales > 0, scales, 1.0)
    return (wide / scales.unsqueeze(-1)).clamp_(-FP8_MAX, FP8_MAX).to(FP8), scales
