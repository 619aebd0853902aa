"""The gate of an MLP: act(gate) * up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import Activation

BLOCK = 1024


@triton.jit
def gated_activation_kernel(
    gate_up, out, size, stride_token, stride_out, IS_SILU: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK columns of one token; ``gate_up`` has ``size`` gates and then as many ups a row."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    place = gate_up + token * stride_token + column
    gate = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(place + size, mask=mask, other=0.0).to(tl.float32)
    slope = gate
    if not IS_SILU:  # (1 + tanh(u)) / 2 = sigmoid(2u), exact where tanh(u) is near -1 too
        slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    activated = gate / (1.0 + tl.exp(-slope))
    dtype = out.dtype.element_ty
    product = activated.to(dtype).to(tl.float32) * up
    tl.store(out + token * stride_out + column, product.to(dtype), mask=mask)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    """``gate_up`` [T, 2I] -> [T, I]."""
    assert gate_up.stride(1) == 1
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((num_tokens, size), dtype=gate_up.dtype, device=gate_up.device)
    gated_activation_kernel[(num_tokens, triton.cdiv(size, BLOCK))](
        gate_up,
        out,
        size,
        gate_up.stride(0),
        out.stride(0),
        IS_SILU=activation == "silu",
        BLOCK=BLOCK,
    )
    return out
