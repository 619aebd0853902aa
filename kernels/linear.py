"""x W^T + b: cuBLAS on a GPU, oneDNN over weights in its own blocked layout on a CPU.

Weights in 8 bits (``Fp8Weight``) are multiplied in 8 bits on a GPU, and so rounded on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import Fp8Weight
from .fp8_ops import fp8_linear

LinearWeight = Tensor | Fp8Weight

PACKED_DTYPES = (torch.float32, torch.bfloat16)


def pack_linear(weight: Tensor) -> Tensor:
    """``weight`` [N, K] in the layout that ``linear`` multiplies fastest on its device.

    A CPU weight is reordered once into oneDNN's blocks, as TorchInductor does when it
    freezes a model: at 4 to 32 rows that halves the time of a step, which otherwise packs
    every weight again. ``to_dense()`` undoes it. Elsewhere the weight is returned as it is.
    """
    if not packs_linear(weight.dtype, weight.device):
        return weight
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """``x`` [T, K], contiguous; ``weight`` [N, K] as it is, packed or in 8 bits -> [T, N]."""
    if isinstance(weight, Fp8Weight):
        return fp8_linear(x, weight, bias)
    if weight.is_mkldnn:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y
    return F.linear(x, weight, bias)


def packs_linear(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ``pack_linear`` makes a new tensor of such a weight."""
    built: bool = torch._C._has_mkldnn
    available = built and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and device.type == "cpu" and dtype in PACKED_DTYPES
