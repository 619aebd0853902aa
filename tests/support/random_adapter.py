"""Random values for all that an adapter brings, large enough to show and small enough to matter."""

from __future__ import annotations

import torch
from peft import PeftModel
from torch import Tensor

_PAIRS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


def randomize_adapter(model: PeftModel, seed: int, scale: float = 0.5) -> None:
    """Random pairs, their deltas ``scale`` times as large as the weights they change; all else
    that PEFT would save is moved away from where it begins, by a fair share of its size.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_saved(name):
                parameter.copy_(_moved(name, parameter, generator))
        for module in model.modules():
            for a, b in _pairs_of(module):
                a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
                b.copy_(torch.randn(b.shape, generator=generator))
                delta = module.get_delta_weight("default").norm()
                b.mul_(scale * module.get_base_layer().weight.norm() / delta)


def perturb_pairs(model: PeftModel, seed: int, scale: float = 0.3) -> None:
    """Move pairs from where a decomposition of the base put them, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for pair in _pairs_of(module):
                for half in pair:
                    noise = torch.randn(half.shape, generator=generator)
                    half.add_(noise * (scale * half.norm() / noise.norm()))


def _pairs_of(module: torch.nn.Module) -> list[tuple[Tensor, Tensor]]:
    if "default" in (getattr(module, "lora_embedding_A", None) or {}):
        return [(module.lora_embedding_A["default"], module.lora_embedding_B["default"])]
    if "default" in (getattr(module, "lora_A", None) or {}):
        return [(module.lora_A["default"].weight, module.lora_B["default"].weight)]
    return []


def _is_saved(name: str) -> bool:
    """Whether PEFT may save it, and it is no half of a pair."""
    if any(f".{half}." in name and not name.endswith(".bias") for half in _PAIRS):
        return False
    return name.endswith(".bias") or any(
        part in name
        for part in ("lora_magnitude_vector", "modules_to_save", "trainable_tokens_delta")
    )


def _moved(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if "lora_magnitude_vector" in name:
        return parameter * (1 + 0.3 * noise.clamp(-2, 2))
    if name.endswith(".bias"):
        return parameter + 0.5 * noise
    return parameter + 0.7 * noise * parameter.std()
