"""What config.json says of a model, parsed once into facts the decoder can run (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .families import ALSO_COVERS, FAMILIES, REFUSED_EVERYWHERE, Family
from .fields import Fields, UnsupportedModelError
from .layer_config import LayerConfig, read_layers
from .rope_config import RopeConfig, read_global_and_local_rope, read_rope

__all__ = ["LayerConfig", "ModelConfig", "UnsupportedModelError"]

DTYPES = ("float32", "bfloat16", "float16")
ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder's architecture.

    ``dtype`` is what the checkpoint was saved in, None if it doesn't say. ``norm_offset`` is
    added to RMSNorm weights. ``sandwich_norms``: attention and MLP outputs are normed before
    they join the residual. ``fused_projections``: the checkpoint holds ``qkv_proj`` and
    ``gate_up_proj`` (so its adapters name them too).
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    rms_norm_eps: float
    eos_token_ids: tuple[int, ...]
    dtype: str | None
    activation: Literal["silu", "gelu_tanh"]
    attention_scale: float
    attention_soft_cap: float | None
    logit_soft_cap: float | None
    embedding_scale: float | None
    norm_offset: float
    sandwich_norms: bool
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    fused_projections: bool
    ropes: tuple[RopeConfig, ...]
    layers: tuple[LayerConfig, ...]

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelConfig:
        """Read ``config.json`` and ``generation_config.json``.

        Raises UnsupportedModelError for another architecture or a field we can't honour.
        """
        fields = Fields.from_file(Path(path) / "config.json")
        architecture = _architecture(fields)
        family = FAMILIES[architecture]
        _refuse(fields, (*REFUSED_EVERYWHERE, *family.refused))
        hidden_size = fields.integer("hidden_size")
        num_heads = fields.integer("num_attention_heads")
        head_dim = fields.integer("head_dim", family.default_head_dim or hidden_size // num_heads)
        attention_bias = family.attention_bias and fields.boolean("attention_bias", False)
        attention_cap, logit_cap = _soft_caps(fields, family)
        return cls(
            architecture=architecture,
            hidden_size=hidden_size,
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_num_kv_heads(fields, num_heads),
            head_dim=head_dim,
            intermediate_size=fields.integer("intermediate_size"),
            vocab_size=fields.integer("vocab_size"),
            max_position_embeddings=fields.integer("max_position_embeddings"),
            tie_word_embeddings=fields.boolean("tie_word_embeddings", family.tied_by_default),
            rms_norm_eps=fields.number("rms_norm_eps", family.default_eps),
            eos_token_ids=_eos_token_ids(fields, Path(path) / "generation_config.json"),
            dtype=_dtype(fields),
            activation=_activation(fields, family),
            attention_scale=_attention_scale(fields, family, head_dim),
            attention_soft_cap=attention_cap,
            logit_soft_cap=logit_cap,
            embedding_scale=hidden_size**0.5 if family.gemma else None,
            norm_offset=1.0 if family.gemma else 0.0,
            sandwich_norms=family.gemma,
            qk_norm=family.qk_norm,
            qkv_bias=family.qkv_bias or attention_bias,
            o_bias=attention_bias,
            mlp_bias=family.mlp_bias and fields.boolean("mlp_bias", False),
            fused_projections=family.fused_projections,
            ropes=_ropes(fields, family, head_dim),
            layers=read_layers(fields, family),
        )


def _architecture(fields: Fields) -> str:
    named = fields.values.get("architectures")
    if isinstance(named, list) and len(named) == 1 and named[0] in FAMILIES:
        return str(named[0])
    supported = ", ".join(FAMILIES)
    raise fields.error("architectures", f"one of {supported} ({ALSO_COVERS})")


def _refuse(fields: Fields, names: tuple[str, ...]) -> None:
    for name in names:
        if fields.values.get(name):
            raise fields.error(name, "absent: not supported for this architecture")


def _num_kv_heads(fields: Fields, num_heads: int) -> int:
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of {num_heads}, the attention heads")
    return num_kv_heads


def _eos_token_ids(fields: Fields, generation: Path) -> tuple[int, ...]:
    ids = fields.token_ids("eos_token_id")
    if generation.exists():
        ids = (*ids, *Fields.from_file(generation).token_ids("eos_token_id"))
    return tuple(dict.fromkeys(ids))


def _dtype(fields: Fields) -> str | None:
    """``dtype`` since transformers 5, ``torch_dtype`` before."""
    name = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    return fields.choice(name, DTYPES) if fields.values.get(name) is not None else None


def _activation(fields: Fields, family: Family) -> Literal["silu", "gelu_tanh"]:
    name, default = (
        ("hidden_activation", "gelu_pytorch_tanh") if family.gemma else ("hidden_act", "silu")
    )
    return ACTIVATIONS[fields.choice(name, tuple(ACTIVATIONS), default)]


def _attention_scale(fields: Fields, family: Family, head_dim: int) -> float:
    scalar = fields.number("query_pre_attn_scalar", 256.0) if family.gemma else float(head_dim)
    return float(scalar**-0.5)


def _soft_caps(fields: Fields, family: Family) -> tuple[float | None, float | None]:
    if family.soft_caps is None:
        return None, None
    attention, logits = family.soft_caps
    return (
        fields.optional_number("attn_logit_softcapping", attention),
        fields.optional_number("final_logit_softcapping", logits),
    )


def _ropes(fields: Fields, family: Family, head_dim: int) -> tuple[RopeConfig, ...]:
    if family.two_ropes:
        return read_global_and_local_rope(fields, head_dim)
    return (read_rope(fields, head_dim, family.default_theta, family.partial_rotary),)
