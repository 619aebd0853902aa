"""What a device must be able to do for 8 bits, and a model's linears must look like."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..kernels import ops
from .config import EngineConfig
from .errors import EngineStartError

FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs with float8 units: Ada, then Hopper."""


def require_float8(config: EngineConfig, device: torch.device) -> None:
    """Raise EngineStartError where a GPU lacks what the configuration asks for."""
    wanted = [
        name
        for name, value in (
            ("quantization", config.quantization),
            ("kv_cache_dtype", config.kv_cache_dtype),
            ("adapter_dtype", config.adapter_dtype),
        )
        if value == "fp8"
    ]
    if device.type != "cuda" or not wanted:
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        least, its = (".".join(map(str, pair)) for pair in (FP8_CAPABILITY, capability))
        raise EngineStartError(
            f"{wanted[0]}: fp8 needs compute capability {least} or more; this GPU has {its}"
        )


def require_multiples(shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise EngineStartError for a weight [N, K] that a GPU can't multiply in 8 bits."""
    for name, shape in shapes.items():
        if any(size % ops.FP8_MULTIPLE for size in shape):
            raise EngineStartError(
                f"quantization: fp8 needs linears whose sides are multiples of "
                f"{ops.FP8_MULTIPLE}; that of {name} is {list(shape)}"
            )
