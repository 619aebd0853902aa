"""Which layers of a model slide a window and which have no rotary embedding (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass

from .families import Family
from .fields import Fields

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What differs between layers: the window and which of ``ModelConfig.ropes`` (None: NoPE)."""

    sliding_window: int | None
    rope: int | None


def read_layers(fields: Fields, family: Family) -> tuple[LayerConfig, ...]:
    """The facts of every layer; raises UnsupportedModelError for a layout we can't run."""
    num_layers = fields.integer("num_hidden_layers")
    rotates = _rotating_layers(fields, family, num_layers)
    windows = _windows(fields, family, num_layers, rotates)
    ropes = [int(family.two_ropes and window is not None) for window in windows]
    return tuple(
        LayerConfig(window, rope if turned else None)
        for window, rope, turned in zip(windows, ropes, rotates, strict=True)
    )


def _rotating_layers(fields: Fields, family: Family, num_layers: int) -> list[bool]:
    """SmolLM3's ``no_rope_layers`` holds 0 where a layer has no rotary embedding."""
    if not family.skips_rope:
        return [True] * num_layers
    listed = fields.list_of("no_rope_layers", num_layers)
    if listed is None:
        interval = fields.integer("no_rope_layer_interval", 4)
        return [(index + 1) % interval != 0 for index in range(num_layers)]
    if any(entry not in (0, 1) for entry in listed):
        raise fields.error("no_rope_layers", "a list of 0 and 1")
    return [bool(entry) for entry in listed]


def _windows(
    fields: Fields, family: Family, num_layers: int, rotates: list[bool]
) -> list[int | None]:
    """The sliding window of each layer, None where it sees everything."""
    window = fields.optional_integer("sliding_window", family.default_window)
    if family.window_switch and not fields.boolean("use_sliding_window", False):
        window = None
    slides = _sliding_layers(fields, family, num_layers, rotates, window)
    if any(slides) and window is None:
        raise fields.error("layer_types", "full_attention only, as sliding_window is off")
    return [window if sliding else None for sliding in slides]


def _sliding_layers(
    fields: Fields, family: Family, num_layers: int, rotates: list[bool], window: int | None
) -> list[bool]:
    listed = fields.list_of("layer_types", num_layers)
    if listed is not None and any(entry not in LAYER_TYPES for entry in listed):
        raise fields.error("layer_types", f"a list of {' and '.join(LAYER_TYPES)}")
    if family.windows != "by_layer":
        all_slide = family.windows == "all" and window is not None
        if listed is not None and len(set(listed)) > 1:
            raise fields.error("layer_types", "the same for all layers of this architecture")
        return [all_slide] * num_layers
    if listed is not None:
        return [entry == "sliding_attention" for entry in listed]
    if family.window_period is not None:
        period = fields.integer("sliding_window_pattern", family.window_period)
        return [(index + 1) % period != 0 for index in range(num_layers)]
    if family.skips_rope:
        return [window is not None and not turned for turned in rotates]
    first = fields.integer("max_window_layers", 28)
    return [window is not None and index >= first for index in range(num_layers)]
