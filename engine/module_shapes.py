"""From a model's configuration to what adapters can change in it."""

from __future__ import annotations

from ..lora.shapes import ModuleShapes
from .models.config import ModelConfig


def module_shapes(model: ModelConfig) -> ModuleShapes:
    """The modules of ``model`` that an adapter can change."""
    return ModuleShapes.for_decoder(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        fused=model.fused_projections,
        sandwich_norms=model.sandwich_norms,
        qk_norm=model.qk_norm,
        vocab_size=model.vocab_size,
        tied=model.tie_word_embeddings,
    )
