"""Tables of cosines and sines for each kind of rotary embedding (arXiv 2104.09864)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .fields import UnsupportedModelError
from .rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    YarnScaling,
)


def rope_table(
    rope: RopeConfig, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """cos and sin of every position: [2, max_model_len, rotary_dim], the two halves alike.

    Computed in float32, then rounded to ``dtype`` as transformers does. LongRoPE takes its
    long factors if ``max_model_len`` is over the length trained, its short ones otherwise:
    one choice for the server's life (transformers switches when a sequence grows past that
    length, and computes its cache anew).
    """
    inv_freq, scale = _frequencies(rope, max_model_len)
    angles = torch.arange(max_model_len, dtype=torch.float32)[:, None] * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    table = torch.empty((2, *angles.shape), dtype=dtype, device=device)
    table[0] = angles.cos() * scale
    table[1] = angles.sin() * scale
    return table


def _frequencies(rope: RopeConfig, max_model_len: int) -> tuple[Tensor, float]:
    """Inverse frequencies [rotary_dim / 2] and what cos and sin are multiplied by."""
    scaling = rope.scaling
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    wavelengths = rope.theta**exponents
    inv_freq = 1.0 / wavelengths
    if isinstance(scaling, LinearScaling):
        return inv_freq / scaling.factor, 1.0
    if isinstance(scaling, DynamicScaling):
        if max_model_len > scaling.max_length:
            raise UnsupportedModelError(
                f"max_model_len {max_model_len} is over {scaling.max_length}, the most this "
                "model allows here: its rope_type dynamic changes with the length beyond that"
            )
        return inv_freq, 1.0
    if isinstance(scaling, Llama3Scaling):
        return _llama3(inv_freq, scaling), 1.0
    if isinstance(scaling, YarnScaling):
        return _yarn(rope, scaling, wavelengths), scaling.attention_factor
    if isinstance(scaling, LongRopeScaling):
        is_long = max_model_len > scaling.original_length
        factors = scaling.long_factor if is_long else scaling.short_factor
        return 1.0 / (torch.tensor(factors) * wavelengths), scaling.attention_factor
    return inv_freq, 1.0


def _llama3(inv_freq: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's passage from unscaled (short) to scaled (long) wavelengths."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_length * inv_freq / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * inv_freq / scaling.factor + kept * inv_freq


def _yarn(rope: RopeConfig, scaling: YarnScaling, wavelengths: Tensor) -> Tensor:
    """Interpolate slow dimensions, keep fast ones (arXiv 2309.00071, section 3.2)."""

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the original length."""
        ratio = scaling.original_length / (turns * 2 * math.pi)
        return rope.rotary_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    steps = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    width = high - low if high != low else 0.001
    interpolated = ((steps - low) / width).clamp(0, 1)
    return interpolated / (scaling.factor * wavelengths) + (1 - interpolated) / wavelengths
