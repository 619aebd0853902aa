"""The one door to the device arithmetic; which backend answers is decided here."""

from .attention_reference import paged_attention
from .copying import CopyThread, copy_on_one_core, pin_host, unpin_host
from .dense import VectorRows, norm_rows, scale_rows
from .kv_cache import KvCache
from .linear import linear, pack_linear, packs_linear
from .lora import LoraRouting, LoraRun, LoraTiles, Selection, expand, shrink
from .metadata import AttentionMetadata, build_attention_metadata
from .reference import (
    Activation,
    apply_rope,
    fused_add_rms_norm,
    gated_activation,
    kv_write,
    rms_norm,
)
from .sample import filter_floors, sample_tokens, top_tokens

__all__ = [
    "Activation",
    "AttentionMetadata",
    "CopyThread",
    "KvCache",
    "LoraRouting",
    "LoraRun",
    "LoraTiles",
    "Selection",
    "VectorRows",
    "apply_rope",
    "build_attention_metadata",
    "copy_on_one_core",
    "expand",
    "filter_floors",
    "fused_add_rms_norm",
    "gated_activation",
    "kv_write",
    "linear",
    "norm_rows",
    "pack_linear",
    "packs_linear",
    "paged_attention",
    "pin_host",
    "rms_norm",
    "sample_tokens",
    "scale_rows",
    "shrink",
    "top_tokens",
    "unpin_host",
]
