"""Rows in 8 bits compile for Hopper, at the sizes of Llama-3.1-8B and the largest ones."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from triton_compile import compile_kernel

from branchline.kernels.gpu.fp8 import block_of, quantize_rows_kernel


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("size", [4096, 14336])
def test_rows_compile(dtype: str, size: int) -> None:
    block, num_warps = block_of(size)
    compiled = compile_kernel(
        quantize_rows_kernel,
        {"x": f"*{dtype}", "values": "*fp8e4nv", "scales": "*fp32", "stride": "i32"},
        {"SIZE": size, "BLOCK": block, "INTERPRETED": False},
        num_warps=num_warps,
    )
    assert "e4m3x2" in compiled.ptx, "rounded by the unit that can"
