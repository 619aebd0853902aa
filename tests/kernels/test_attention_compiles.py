"""Attention's kernels compile for an H200, at the sizes of real models, within its limits."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import triton.language as tl
from triton_compile import compile_kernel

from branchline.kernels.gpu.attention_blocks import decode_blocks, power_of_two, prefill_blocks
from branchline.kernels.gpu.attention_decode import decode_kernel, merge_kernel
from branchline.kernels.gpu.attention_prefill import prefill_kernel

LLAMA = {"heads": 32, "kv_heads": 8, "dim": 128}
QWEN = {"heads": 40, "kv_heads": 8, "dim": 128}  # Qwen3-14B; Qwen3-8B is as Llama-3.1-8B
QWEN25 = {"heads": 28, "kv_heads": 4, "dim": 128}  # 7 heads a KV head
GEMMA = {"heads": 16, "kv_heads": 8, "dim": 256, "window": 4096, "cap": 50.0}
SMALL = {"heads": 9, "kv_heads": 3, "dim": 64}
PHI = {"heads": 32, "kv_heads": 32, "dim": 96}
BLOCK_SIZE = 16
DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8e4nv": 1}


def arguments(model, dtype, kv_dtype):
    """What both kernels are compiled with: (signature, constants)."""
    signature = dict.fromkeys(("out", "q"), f"*{dtype}")
    signature |= dict.fromkeys(("keys", "values"), f"*{kv_dtype}")
    signature |= dict.fromkeys(("block_tables", "seq_lens"), "*i32")
    signature |= {"scale": "fp32", "table_stride": "i32"}
    kv_heads, dim = model["kv_heads"], model["dim"]
    constants = {
        "Q_STRIDE": (model["heads"] + 2 * kv_heads) * dim,
        "Q_HEAD_STRIDE": dim,
        "BLOCK_STRIDE": BLOCK_SIZE * kv_heads * dim,
        "TOKEN_STRIDE": kv_heads * dim,
        "HEAD_STRIDE": dim,
        "SCALE_BLOCK_STRIDE": 0,
        "SCALE_TOKEN_STRIDE": 0,
        "HAS_SCALES": kv_dtype == "fp8e4nv",
        "BLOCK_SIZE": BLOCK_SIZE,
        "GROUP": model["heads"] // kv_heads,
        "HEAD_DIM": dim,
        "WINDOW": model.get("window"),
        "SOFT_CAP": model.get("cap"),
        "DOT_DTYPE": DTYPES[dtype],
        "BLOCK_D": power_of_two(dim),
    }
    if kv_dtype == "fp8e4nv":  # a block's scales lie behind its rows
        signature |= dict.fromkeys(("key_scales", "value_scales"), "*fp32")
        constants["BLOCK_STRIDE"] += BLOCK_SIZE * kv_heads * 4
        constants["SCALE_BLOCK_STRIDE"] = constants["BLOCK_STRIDE"] // 4
        constants["SCALE_TOKEN_STRIDE"] = kv_heads
    else:
        constants |= {"key_scales": None, "value_scales": None}
    return signature, constants


DECODES = [
    (LLAMA, "bf16", "bf16", True),
    (LLAMA, "bf16", "bf16", False),
    (LLAMA, "fp16", "fp8e4nv", True),
    (LLAMA, "bf16", "fp8e4nv", True),
    (QWEN25, "bf16", "bf16", True),
    (GEMMA, "bf16", "bf16", True),
    (GEMMA, "bf16", "fp8e4nv", True),
    (PHI, "fp16", "fp16", False),
    (SMALL, "fp32", "fp32", True),
]


@pytest.mark.parametrize(("model", "dtype", "kv_dtype", "is_split"), DECODES)
def test_decode_compiles(model, dtype, kv_dtype, is_split):
    signature, constants = arguments(model, dtype, kv_dtype)
    blocks = decode_blocks(constants["GROUP"], model["dim"], BYTES[dtype], False)
    constants |= {"IS_SPLIT": is_split, "BLOCK_M": blocks.rows, "BLOCK_N": blocks.keys}
    if is_split:
        signature |= {"partial_out": "*fp32", "partial_logs": "*fp32"}
    else:
        constants |= {"partial_out": None, "partial_logs": None}
    compiled = compile_kernel(
        decode_kernel, signature, constants, blocks.num_warps, blocks.num_stages
    )
    assert 2 * compiled.shared_bytes <= 227 * 1024  # two programs a multiprocessor
    assert "cp.async" in compiled.ptx


@pytest.mark.parametrize("splits", [2, 64])
def test_merge_compiles(splits):
    signature = {"out": "*bf16", "partial_out": "*fp32", "partial_logs": "*fp32"}
    constants = {"HEAD_DIM": 128, "BLOCK_D": 128, "NUM_SPLITS": splits}
    compile_kernel(merge_kernel, signature, constants)


PREFILLS = [
    (LLAMA, "bf16", "bf16"),
    (LLAMA, "bf16", "fp8e4nv"),
    (QWEN, "bf16", "bf16"),
    (GEMMA, "bf16", "bf16"),
    (GEMMA, "fp16", "fp8e4nv"),
    (PHI, "fp16", "fp16"),
    (SMALL, "fp32", "fp32"),
]


@pytest.mark.parametrize(("model", "dtype", "kv_dtype"), PREFILLS)
def test_prefill_compiles(model, dtype, kv_dtype):
    signature, constants = arguments(model, dtype, kv_dtype)
    signature |= {"cu_seqlens_q": "*i32", "num_decodes": "i32", "num_requests": "i32"}
    blocks = prefill_blocks(constants["GROUP"], model["dim"], BYTES[dtype], False)
    constants |= {"BLOCK_M": blocks.rows, "BLOCK_N": blocks.keys}
    compiled = compile_kernel(
        prefill_kernel, signature, constants, blocks.num_warps, blocks.num_stages
    )
    assert "cp.async" in compiled.ptx
    if dtype != "fp32":
        assert "wgmma" in compiled.ptx  # Hopper's own matrix instruction, not the older ones
