"""LoRA adapters for tiny models, made and saved by PEFT itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reference_adapters import load_base

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = "all-linear"


def make_adapter(
    model_dir: Path,
    out_dir: Path,
    rank: int,
    *,
    target_modules: Sequence[str] | str = ALL_LINEAR,
    seed: int = 0,
    alpha: float | None = None,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    scale: float = 0.5,
    dtype: torch.dtype = torch.float32,
    **lora_config: Any,
) -> Path:
    """Save a random adapter whose deltas are ``scale`` times as large as the weights they change.

    ``alpha`` None is twice the rank. Both A and B are random and non-zero, so that greedy outputs
    change. ``alora_invocation_tokens=[...]`` makes it an activated LoRA. Returns ``out_dir``, which
    then holds what ``save_pretrained`` writes.
    """
    base = load_base(model_dir)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        use_rslora=use_rslora,
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        task_type="CAUSAL_LM",
        **lora_config,
    )
    model = get_peft_model(base, config)
    assert isinstance(model, PeftModel)
    _randomize(model, seed, scale)
    model.to(dtype).save_pretrained(str(out_dir))
    return out_dir


def _randomize(model: PeftModel, seed: int, scale: float) -> None:
    """Random pairs, each delta's norm ``scale`` times that of the weight it changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if not (getattr(module, "lora_A", None) and "default" in module.lora_A):
                continue
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
            b.copy_(torch.randn(b.shape, generator=generator))
            delta = module.get_delta_weight("default").norm()
            b.mul_(scale * module.get_base_layer().weight.norm() / delta)
