"""The LoRA kernels compile for Hopper at the sizes of Llama-3.1-8B, by each plan."""

from __future__ import annotations

from functools import cache

import pytest

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton_compile import Compiled, compile_kernel

from branchline.kernels.gpu.lora_expand import MAX_BLOCK_ROWS, expand_kernel
from branchline.kernels.gpu.lora_plans import (
    EXPAND_PLANS,
    ExpandPlan,
    ShrinkPlan,
    candidates,
    expand_plan,
    shrink_plan,
)
from branchline.kernels.gpu.lora_shrink import shrink_kernel

GROUPS = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
FP8 = "fp8e4nv"
WORK = ("tokens", "tile_starts", "tile_counts", "tile_items", "item_pages")
COMMON = {**dict.fromkeys(WORK, "*i32"), "max_tiles": "i32", "planes": "*fp32"}


@cache
def compile_shrink(
    plan: ShrinkPlan, rows: int, group: str, dtype: str, pages: str = ""
) -> Compiled:
    """``pages``: what they are in, unless it is ``dtype``."""
    features, sizes = GROUPS[group]
    signature = {
        **COMMON,
        "x": f"*{dtype}",
        "a_pages": f"*{pages or dtype}",
        "scales": "*fp32",
        "item_tiles": "*i32",
        "x_stride": "i32",
    }
    columns = 16 * len(sizes)
    constants = {
        "K": features,
        "COLUMNS": columns,
        "ROWS": rows,
        "BLOCK_C": triton.next_power_of_2(columns),
        "BLOCK_K": plan.block_k,
        "PROGRAMS": plan.programs,
        "MAX_SPLITS": plan.max_splits,
        "HAS_SCALES": bool(pages),
        "DOT_DTYPE": DTYPES[dtype],
    }
    return compile_kernel(
        shrink_kernel, signature, constants, plan.num_warps, plan.num_stages, {"x_stride"}
    )


def compile_expand(
    plan: ExpandPlan,
    shrink: ShrinkPlan,
    rows: int,
    group: str,
    dtype: str,
    add: bool,
    pages: str = "",
) -> Compiled:
    features, sizes = GROUPS[group]
    signature = {
        **COMMON,
        "y": f"*{dtype}",
        "b_pages": f"*{pages or dtype}",
        "y_stride": "i32",
    }
    constants = {
        "N": sum(sizes),
        "SIZES": sizes,
        "ROWS": rows,
        "BLOCK_M": min(rows, MAX_BLOCK_ROWS),
        "BLOCK_N": plan.block_n,
        "K_STEPS": triton.cdiv(features, shrink.block_k),
        "PROGRAMS": shrink.programs,
        "MAX_SPLITS": shrink.max_splits,
        "BLOCK_S": triton.next_power_of_2(shrink.max_splits),
        "ADD": add,
        "DOT_DTYPE": tl.bfloat16 if pages == FP8 and dtype == "fp16" else DTYPES[dtype],
    }
    return compile_kernel(
        expand_kernel, signature, constants, plan.num_warps, plan.num_stages, {"y_stride"}
    )


def compile_both(
    rows: int, max_tiles: int, group: str, dtype: str, pages: str = ""
) -> tuple[Compiled, Compiled]:
    features, sizes = GROUPS[group]
    shrink = shrink_plan(rows, 16 * len(sizes), features, 4 if dtype == "fp32" else 2)
    expand = expand_plan(rows, max_tiles, sum(sizes))
    return (
        compile_shrink(shrink, rows, group, dtype, pages),
        compile_expand(expand, shrink, rows, group, dtype, rows == 16, pages),
    )


@pytest.mark.parametrize(
    ("group", "dtype"),
    [*((group, "bf16") for group in GROUPS), ("qkv", "fp16"), ("down", "fp16"), ("qkv", "fp32")],
)
@pytest.mark.parametrize(("rows", "max_tiles"), [(16, 4), (16, 64), (64, 128)])
def test_plans(rows: int, max_tiles: int, group: str, dtype: str) -> None:
    shrink, expand = compile_both(rows, max_tiles, group, dtype)
    for compiled in (shrink, expand):
        assert "cp.async.cg" in compiled.ptx, "loads go through shared memory, 16 bytes each"
        assert "st.local" not in compiled.ptx, "no register spills"
    product = "fma.rn.f32" if dtype == "fp32" else "mma.sync"
    assert product in expand.ptx
    assert ("wgmma" if rows == 64 and dtype != "fp32" else product) in shrink.ptx
    assert 2 * shrink.shared_bytes <= 227 * 1024, "two programs a multiprocessor"


@pytest.mark.parametrize(
    ("group", "dtype"), [*((group, "bf16") for group in GROUPS), ("qkv", "fp16"), ("qkv", "fp32")]
)
@pytest.mark.parametrize(("rows", "max_tiles"), [(16, 4), (16, 64), (64, 128)])
def test_pages_in_8_bits(rows: int, max_tiles: int, group: str, dtype: str) -> None:
    """They are loaded as bytes and become what the rows are on their way to the product."""
    shrink, expand = compile_both(rows, max_tiles, group, dtype, FP8)
    for compiled in (shrink, expand):
        assert "cvt.rn.f16x2.e4m3x2" in compiled.ptx
        assert "st.local" not in compiled.ptx, "no register spills"
    assert "cp.async.cg" in shrink.ptx
    product = "fma.rn.f32" if dtype == "fp32" else "mma.sync"
    assert product in expand.ptx
    assert ("wgmma" if rows == 64 and dtype != "fp32" else product) in shrink.ptx
    assert 2 * shrink.shared_bytes <= 227 * 1024, "two programs a multiprocessor"


def test_prefill_adds_too() -> None:
    """A long step whose linear has a bias, or few rows with adapters."""
    shrink = shrink_plan(64, 48, 4096)
    compiled = compile_expand(expand_plan(64, 40, 6144), shrink, 64, "qkv", "bf16", add=True)
    assert "st.local" not in compiled.ptx


def test_the_largest_candidates_compile() -> None:
    for rows in (16, 64):
        shrinks, expands = zip(*candidates(rows), strict=True)
        largest = max(shrinks, key=lambda plan: (plan.block_k, plan.num_stages, plan.max_splits))
        compile_shrink(largest, rows, "qkv", "bf16")
        widest = max(expands, key=lambda plan: (plan.block_n, plan.num_stages, -plan.num_warps))
        compile_expand(widest, largest, rows, "qkv", "bf16", add=True)


def test_no_block_of_128_columns() -> None:
    plans = [plan for *_, plan in EXPAND_PLANS]
    plans += [expand for rows in (16, 64) for _, expand in candidates(rows)]
    assert {plan.block_n for plan in plans} == {64, 256}


def test_every_shape_has_a_plan() -> None:
    for rows in (16, 32, 64, 128):
        for features in (16, 2048, 14336, 100_000):
            for columns in (16, 32, 48):
                assert shrink_plan(rows, columns, features).block_k >= 16
            for max_tiles in (1, 8, 9, 10_000):
                assert expand_plan(rows, max_tiles, features).block_n >= 64
