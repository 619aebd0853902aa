"""transformers and PEFT with the linears of their layers in 8 bits, by arithmetic of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from oracle import Reference
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

E4M3_STEPS = 8
"""Of a power of two: 3 bits of mantissa."""
LEAST_EXPONENT = -6


def round_linears(reference: Reference) -> None:
    """Have every linear of every layer, but those of adapters, multiply what e4m3 leaves."""
    for model in {id(m): m for m in (reference._model, *reference._own.values())}.values():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and ".layers." in name and "lora_" not in name:
                module.forward = _rounded_forward(module)


def rounded_adapter(path: Path, out: Path) -> Path:
    """A copy of an adapter with A's rows and B's columns rounded, each rank by its own largest."""
    shutil.copytree(path, out)
    file = out / "adapter_model.safetensors"
    tensors = {
        name: rounded(half) if ".lora_A." in name else rounded(half.t()).t().contiguous()
        for name, half in load_file(file).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return out


def _rounded_forward(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = rounded(module.weight.detach())

    def forward(x: Tensor) -> Tensor:
        y = (rounded(x).double() @ weight.double().t()).float()
        return y if module.bias is None else y + module.bias

    return forward


def rounded(rows: Tensor) -> Tensor:
    """Each row [..., K] scaled to a largest magnitude of 448, rounded to e4m3, scaled back."""
    scale = rows.abs().amax(-1, keepdim=True) / 448
    scale = torch.where(scale > 0, scale, 1.0)
    scaled = (rows / scale).double()
    exponent = torch.frexp(scaled).exponent.sub(1).clamp(min=LEAST_EXPONENT)
    step = torch.exp2(exponent.double()) / E4M3_STEPS
    return ((scaled / step).round() * step * scale).float()
