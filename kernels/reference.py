"""The small ops in plain PyTorch: the CPU backend and the oracle of the kernels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .kv_cache import KvCache, quantize_rows

Activation = Literal["silu", "gelu_tanh"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), in float32 (arXiv 1910.07467).

    ``x`` [..., N], ``weight`` [N]. With an offset (Gemma) the product is taken in float32
    too; without one (Llama) the normed value is rounded to the dtype of ``x`` first.
    """
    wide = x.float()
    normed = wide * wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    if weight_offset:
        return normed.mul_(weight.float() + weight_offset).to(x.dtype)
    return normed.to(x.dtype).mul_(weight)


def fused_add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, weight_offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual); all [..., N]."""
    total = x + residual
    return rms_norm(total, weight, eps, weight_offset), total


def apply_rope(heads: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first R of D dims of each head in place (RoFormer, arXiv 2104.09864).

    ``heads`` [T, heads, D], queries and keys alike; ``cos``, ``sin`` [T, R]. Dim i turns with
    dim i + R/2 ("rotate half" layout), so both halves of a row are alike but for the sign:
    ``sin`` comes with its first half negated.
    """
    rotated = heads[..., : cos.shape[-1]]
    first, second = rotated.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    rotated.mul_(cos.unsqueeze(1)).addcmul_(swapped, sin.unsqueeze(1))


def kv_write(k: Tensor, v: Tensor, cache: KvCache, slot_mapping: Tensor) -> None:
    """Put this step's keys and values [T, Hkv, D] where ``slot_mapping`` [T] says.

    A slot is ``block_id * block_size + offset``; every slot is distinct but those of the scrap
    block, which nobody reads.
    """
    if cache.key_scales is None or cache.value_scales is None:
        cache.keys.view(-1, *cache.keys.shape[2:]).index_copy_(0, slot_mapping, k)
        cache.values.view(-1, *cache.values.shape[2:]).index_copy_(0, slot_mapping, v)
        return
    blocks, offsets = slot_mapping // cache.block_size, slot_mapping % cache.block_size
    for rows, stored, stored_scales in (
        (k, cache.keys, cache.key_scales),
        (v, cache.values, cache.value_scales),
    ):
        quantized, scales = quantize_rows(rows)
        stored[blocks, offsets] = quantized
        stored_scales[blocks, offsets] = scales


def rope_and_kv_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: tuple[Tensor, Tensor] | None,
    cache: KvCache,
    slot_mapping: Tensor,
) -> None:
    """Rotate ``q`` [T, Hq, D] in place, and put rotated ``k`` and ``v`` [T, Hkv, D] in the cache.

    ``rope`` is cos and sin as ``apply_rope`` wants them, None for a layer without. What is in
    ``k`` afterwards is nobody's business.
    """
    if rope is not None:
        beside = _side_by_side(q, k)
        for heads in (q, k) if beside is None else (beside,):
            apply_rope(heads, *rope)
    kv_write(k, v, cache, slot_mapping)


def _side_by_side(q: Tensor, k: Tensor) -> Tensor | None:
    """``q`` and ``k`` as one view [T, Hq + Hkv, D], if each token's keys follow its queries."""
    num_tokens, num_heads, head_dim = q.shape
    shape = (num_tokens, num_heads + k.shape[1], head_dim)
    behind = q.data_ptr() + num_heads * q.stride(1) * q.element_size()
    if k.data_ptr() != behind or k.stride() != q.stride() or q.stride(0) < shape[1] * q.stride(1):
        return None
    return q.as_strided(shape, q.stride())


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up for ``gate_up`` [T, 2I]; returns [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    if activation == "silu":
        return functional.silu(gate).mul_(up)
    return functional.gelu(gate, approximate="tanh").mul_(up)
