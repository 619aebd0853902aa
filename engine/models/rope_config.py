"""Which rotary embedding a model uses, from either layout of config.json (torch-free)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .fields import Fields, UnsupportedModelError

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Every frequency divided by ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True)
class DynamicScaling:
    """NTK scaling by the current length: no scaling at all up to ``max_length``.

    Beyond it frequencies change while a sequence grows, which its cached keys can't follow,
    so a longer context is refused.
    """

    max_length: int


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Low frequencies divided by ``factor``, high ones kept, a smooth passage between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_length: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071)."""

    factor: float
    original_length: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): one factor a frequency, a short and a long set."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_length: int
    attention_factor: float


Scaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """One kind of rotary embedding: the first ``rotary_dim`` of each head's dims turn."""

    theta: float
    rotary_dim: int
    scaling: Scaling | None


def read_rope(config: Fields, head_dim: int, theta: float, partial: bool) -> RopeConfig:
    """The one rotary embedding of most families, ``theta`` its default base.

    transformers 5 writes ``rope_parameters``; older files have ``rope_theta``,
    ``rope_scaling`` and ``partial_rotary_factor`` side by side. ``partial``: whether the
    family can rotate a part of each head (Phi-3).
    """
    section = config.section("rope_scaling") or config.section("rope_parameters")
    theta = config.number("rope_theta", theta)
    return _rope(config, section or Fields({}, config.where), head_dim, theta, partial)


def read_global_and_local_rope(config: Fields, head_dim: int) -> tuple[RopeConfig, RopeConfig]:
    """Gemma 3's two: for layers with full and with sliding attention."""
    nested = config.section("rope_parameters")
    empty = Fields({}, config.where)
    if nested is None:
        full = config.section("rope_scaling") or empty
        local = empty
    else:
        if not (nested.has("full_attention") and nested.has("sliding_attention")):
            allowed = "an object with full_attention and sliding_attention"
            raise config.error("rope_parameters", allowed)
        full = nested.section("full_attention") or empty
        local = nested.section("sliding_attention") or empty
    global_theta = config.number("rope_theta", 1_000_000.0)
    local_theta = config.number("rope_local_base_freq", 10_000.0)
    return (
        _rope(config, full, head_dim, global_theta, partial=False),
        _rope(config, local, head_dim, local_theta, partial=False),
    )


def _rope(
    config: Fields, section: Fields, head_dim: int, theta: float, partial: bool
) -> RopeConfig:
    for name, value in section.values.items():
        if isinstance(value, dict) or (name == "mrope_section" and value is not None):
            raise section.error(name, "absent: not supported for this architecture")
    part = section.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * part)
    if part != 1.0 and not partial:
        raise UnsupportedModelError(
            f"{section.where}: partial_rotary_factor is {part}; this architecture allows only 1.0"
        )
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise UnsupportedModelError(
            f"{section.where}: head_dim {head_dim} with partial_rotary_factor {part} gives "
            f"{rotary_dim} rotary dims; must be even, over 0 and at most head_dim"
        )
    scaling = _scaling(config, section, rotary_dim, phi3=partial)
    return RopeConfig(section.number("rope_theta", theta), rotary_dim, scaling)


def _scaling(config: Fields, section: Fields, rotary_dim: int, phi3: bool) -> Scaling | None:
    key = "rope_type" if section.values.get("rope_type") is not None else "type"
    # Phi-3 files of 2024 name LongRoPE "su" or "yarn".
    aliases = ("su", "yarn") if phi3 else ()
    rope_type = section.choice(key, tuple(dict.fromkeys((*ROPE_TYPES, *aliases))), "default")
    if rope_type in aliases:
        rope_type = "longrope"
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return LinearScaling(section.number("factor"))
    if rope_type == "dynamic":
        section.number("factor")
        return DynamicScaling(config.integer("max_position_embeddings"))
    original = _original_length(config, section)
    if rope_type == "llama3":
        return _llama3(section, original)
    if rope_type == "yarn":
        return _yarn(config, section, original)
    return _longrope(config, section, original, rotary_dim)


def _original_length(config: Fields, section: Fields) -> int:
    """The length trained before scaling; the top-level field goes first, as in transformers."""
    name = "original_max_position_embeddings"
    inner = section.integer(name, config.integer("max_position_embeddings"))
    return config.integer(name, inner)


def _llama3(section: Fields, original: int) -> Llama3Scaling:
    low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
    if high <= low:
        raise section.error("high_freq_factor", f"over low_freq_factor, which is {low}")
    return Llama3Scaling(section.number("factor"), low, high, original)


def _yarn(config: Fields, section: Fields, original: int) -> YarnScaling:
    implied = config.integer("max_position_embeddings") / original
    factor = section.number("factor", implied)
    attention_factor = section.optional_number("attention_factor")
    if attention_factor is None:
        attention_factor = _yarn_attention_factor(section, factor)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        truncate=section.boolean("truncate", True),
        attention_factor=attention_factor,
    )


def _yarn_attention_factor(section: Fields, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = section.values.get("mscale"), section.values.get("mscale_all_dim")
    if above and below:
        return mscale(section.number("mscale")) / mscale(section.number("mscale_all_dim"))
    return mscale(1.0)


def _longrope(config: Fields, section: Fields, original: int, rotary_dim: int) -> LongRopeScaling:
    factor = section.number("factor", config.integer("max_position_embeddings") / original)
    attention_factor = section.optional_number("attention_factor")
    if attention_factor is None:
        grown = 1 + math.log(factor) / math.log(original) if factor > 1 else 1.0
        attention_factor = math.sqrt(grown)
    return LongRopeScaling(
        short_factor=section.numbers("short_factor", rotary_dim // 2),
        long_factor=section.numbers("long_factor", rotary_dim // 2),
        original_length=original,
        attention_factor=attention_factor,
    )
