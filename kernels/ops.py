"""The one door to the device arithmetic; which backend answers is decided here."""

from .attention_ops import paged_attention
from .copying import CopyThread, copy_on_one_core, pin_host, unpin_host
from .dense import VectorRows
from .fp8 import MULTIPLE as FP8_MULTIPLE
from .fp8 import Fp8Weight
from .fp8_ops import quantize_weight
from .kv_cache import FP8, KvCache, quantize_rows
from .linear import LinearWeight, linear, pack_linear, packs_linear
from .lora_ops import (
    LoraRouting,
    LoraRun,
    LoraTiles,
    LoraWork,
    Selection,
    beside,
    expand,
    shrink,
    uses_kernels,
    write_expand,
)
from .metadata import AttentionMetadata, build_attention_metadata
from .reference import Activation, apply_rope, kv_write
from .sample_ops import (
    apply_token_mask,
    edit_logits,
    filter_floors,
    report_logprobs,
    sample_tokens,
    top_tokens,
)
from .small_ops import (
    fused_add_rms_norm,
    gated_activation,
    norm_rows,
    rms_norm,
    rope_and_kv_write,
    scale_rows,
)

__all__ = [
    "FP8",
    "FP8_MULTIPLE",
    "Activation",
    "AttentionMetadata",
    "CopyThread",
    "Fp8Weight",
    "KvCache",
    "LinearWeight",
    "LoraRouting",
    "LoraRun",
    "LoraTiles",
    "LoraWork",
    "Selection",
    "VectorRows",
    "apply_rope",
    "apply_token_mask",
    "beside",
    "build_attention_metadata",
    "copy_on_one_core",
    "edit_logits",
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
    "quantize_rows",
    "quantize_weight",
    "report_logprobs",
    "rms_norm",
    "rope_and_kv_write",
    "sample_tokens",
    "scale_rows",
    "shrink",
    "top_tokens",
    "unpin_host",
    "uses_kernels",
    "write_expand",
]
