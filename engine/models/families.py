"""What tells the supported architectures apart, beyond what config.json spells out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Windows = Literal["none", "all", "by_layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts of one architecture; defaults are those transformers takes for absent fields.

    ``windows``: whether ``sliding_window`` holds for no layer, for all or by
    ``layer_types``; ``window_period`` p is the default layout of Gemma (every p-th layer
    sees everything) and ``use_sliding_window`` the switch of the Qwens and SmolLM3.
    ``attention_bias`` and ``mlp_bias``: True if config.json may switch those biases on.
    ``offset_norms``: RMSNorm weights are stored minus one. ``sandwich_norms``: a norm after
    attention and MLP too. ``fused_projections``: the checkpoint holds qkv_proj and
    gate_up_proj.
    """

    windows: Windows = "none"
    default_window: int | None = None
    window_period: int | None = None
    window_switch: bool = False
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    gemma: bool = False
    soft_caps: tuple[float | None, float | None] | None = None
    two_ropes: bool = False
    partial_rotary: bool = False
    skips_rope: bool = False
    fused_projections: bool = False
    tied_by_default: bool = False
    default_head_dim: int | None = None
    default_theta: float = 10_000.0
    default_eps: float = 1e-6
    refused: tuple[str, ...] = ()


FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(attention_bias=True, mlp_bias=True),
    "MistralForCausalLM": Family(windows="all", default_window=4096),
    "Qwen2ForCausalLM": Family(
        windows="by_layer",
        default_window=4096,
        window_switch=True,
        qkv_bias=True,
        refused=("use_mrope",),
    ),
    "Qwen3ForCausalLM": Family(
        windows="by_layer",
        default_window=4096,
        window_switch=True,
        attention_bias=True,
        qk_norm=True,
        default_head_dim=128,
    ),
    "Gemma2ForCausalLM": Family(
        gemma=True,
        windows="by_layer",
        default_window=4096,
        window_period=2,
        attention_bias=True,
        soft_caps=(50.0, 30.0),
        tied_by_default=True,
        default_head_dim=256,
        refused=("use_bidirectional_attention",),
    ),
    "Gemma3ForCausalLM": Family(
        gemma=True,
        windows="by_layer",
        default_window=4096,
        window_period=6,
        attention_bias=True,
        qk_norm=True,
        soft_caps=(None, None),
        two_ropes=True,
        tied_by_default=True,
        default_head_dim=256,
        # transformers reads the attention cap of a Gemma 3 file and never applies it
        refused=("use_bidirectional_attention", "attn_logit_softcapping"),
    ),
    "Phi3ForCausalLM": Family(
        windows="all", partial_rotary=True, fused_projections=True, default_eps=1e-5
    ),
    "SmolLM3ForCausalLM": Family(
        windows="by_layer",
        window_switch=True,
        attention_bias=True,
        mlp_bias=True,
        skips_rope=True,
        tied_by_default=True,
        default_theta=2_000_000.0,
    ),
}

ALSO_COVERS = "Llama 2 to 3.2 and SmolLM2 are LlamaForCausalLM; of Gemma 3 the text models"

REFUSED_EVERYWHERE = (
    "quantization_config",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "text_config",
    "vision_config",
)
