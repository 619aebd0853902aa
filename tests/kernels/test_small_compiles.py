"""The small kernels for Hopper, at the sizes of Llama-3.1-8B, Qwen3 and Gemma."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from triton_compile import Compiled, compile_kernel

from branchline.kernels.gpu import activation, dense, norm, rope
from branchline.kernels.kv_cache import FP8_MAX

DTYPES = ("bf16", "fp16", "fp32")


def assert_wide(compiled: Compiled) -> None:
    """16 bytes a thread, both ways: all that these kernels do is move memory."""
    for operation in ("ld", "st"):
        assert f"{operation}.global.v4.b32" in compiled.ptx, operation


def numbers(*names: str, of: str = "i32") -> dict[str, str]:
    return dict.fromkeys(names, of)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "offset", "residual"),
    [
        (4096, False, True),
        (4096, False, False),
        (3584, True, True),
        (128, False, False),
        (256, True, False),
    ],
)
def test_rms_norm(size: int, offset: bool, residual: bool, dtype: str) -> None:
    block, rows, num_warps = norm.tile_of(size)
    constants: dict[str, object] = {"SIZE": size, "BLOCK": block, "ROWS": rows}
    constants |= {"HAS_OFFSET": offset, "HAS_RESIDUAL": residual}
    if not residual:
        constants |= dict.fromkeys(("residual", "total"))
    pointers = numbers("x", "residual", "weight", "out", "total", of=f"*{dtype}")
    signature = pointers | numbers("num_rows", "num_heads", "stride_token", "stride_head")
    signature |= numbers("eps", "offset", of="fp32")
    strides = ("stride_token", "stride_head")
    compiled = compile_kernel(
        norm.rms_norm_kernel, signature, constants, num_warps, divisible=strides
    )
    assert_wide(compiled)


@pytest.mark.parametrize("cache", ["bf16", "fp16", "fp8e4nv"])
@pytest.mark.parametrize(
    ("head_dim", "half"), [(128, 64), (256, 128), (128, 48), (64, 32), (128, 0)]
)
def test_rope_and_kv_write(head_dim: int, half: int, cache: str) -> None:
    heads, block_half = rope.head_tile(head_dim, half)
    quantized = cache.startswith("fp8")
    constants: dict[str, object] = {"HEAD_DIM": head_dim, "HALF": half, "HEADS": heads}
    constants |= {"BLOCK_HALF": block_half, "QUANTIZED": quantized}
    constants |= {"FP8_MAX": FP8_MAX, "INTERPRETED": False}
    if not half:
        constants |= dict.fromkeys(("cos", "sin"))
    if not quantized:
        constants |= dict.fromkeys(("key_scales", "value_scales"))
    pointers = numbers("q", "k", "v", "cos", "sin", of="*bf16" if quantized else f"*{cache}")
    pointers |= numbers("keys", "values", of=f"*{cache}")
    pointers |= numbers("key_scales", "value_scales", of="*fp32") | {"slots": "*i64"}
    parts = [f"stride_{part}_{over}" for part in "qkv" for over in ("token", "head")]
    blocks = [f"stride_{part}" for part in ("keys", "values", "key_scales", "value_scales")]
    strides = [*parts, *blocks, "stride_rope"]
    signature = pointers | numbers(*parts, "stride_rope") | numbers(*blocks, of="i64")
    signature |= numbers("block_size", "num_q_heads", "num_kv_heads", "num_q_groups")
    compiled = compile_kernel(
        rope.rope_and_kv_write_kernel, signature, constants, rope.NUM_WARPS, divisible=strides
    )
    assert_wide(compiled)
    assert ("cvt.rn.satfinite.e4m3x2.f32" in compiled.ptx) == quantized


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_silu", [True, False])
def test_gated_activation(is_silu: bool, dtype: str) -> None:
    signature = numbers("gate_up", "out", of=f"*{dtype}")
    sizes = ("size", "stride_token", "stride_out")
    constants = {"IS_SILU": is_silu, "BLOCK": activation.BLOCK}
    kernel = activation.gated_activation_kernel
    assert_wide(compile_kernel(kernel, signature | numbers(*sizes), constants, divisible=sizes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_run", [True, False])
def test_scale_rows(is_run: bool, dtype: str) -> None:
    signature = {"y": f"*{dtype}"} | numbers("scales", "shifts", of="*fp32")
    strides = ("stride_token", "stride_scales", "stride_shifts")
    signature |= numbers("tokens", "pages", of="*i64")
    signature |= numbers("first_token", "first_page", "size", *strides)
    constants: dict[str, object] = {"BLOCK": dense.BLOCK}
    if is_run:
        constants |= dict.fromkeys(("tokens", "pages"))
    kernel = dense.scale_rows_kernel
    assert_wide(compile_kernel(kernel, signature, constants, divisible=(*strides, "size")))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize(("size", "offset"), [(4096, False), (128, False), (3584, True)])
def test_norm_rows(size: int, offset: bool, is_run: bool, dtype: str) -> None:
    block, rows, num_warps = norm.tile_of(size)
    constants: dict[str, object] = {"SIZE": size, "BLOCK": block, "ROWS": rows}
    constants |= {"HAS_OFFSET": offset} | (dict.fromkeys(("tokens", "pages")) if is_run else {})
    strides = [f"stride_{part}_{over}" for part in "xy" for over in ("token", "head")]
    strides.append("stride_weights")
    signature = numbers("x", "y", of=f"*{dtype}") | {"weights": "*fp32"}
    signature |= numbers("tokens", "pages", of="*i64") | numbers("eps", "offset", of="fp32")
    signature |= numbers("first_token", "first_page", "num_rows", "num_heads", *strides)
    kernel = dense.norm_rows_kernel
    assert_wide(compile_kernel(kernel, signature, constants, num_warps, divisible=strides))
