"""Compiles kernels for a GPU that is not there, which finds what the interpreter forgives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source
from triton.runtime.jit import JITFunction

HOPPER = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024
"""Of one thread block, on Hopper."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for Hopper: what it needs of a multiprocessor."""

    shared_bytes: int
    num_warps: int
    ptx: str


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, object],
    num_warps: int = 4,
    num_stages: int = 3,
    divisible: Collection[str] = (),
) -> Compiled:
    """Compile ``kernel`` for an H200; raises what Triton finds wrong with it.

    ``signature`` has the type of each argument (``*bf16``, ``i32``, ``fp32``), ``constants`` the
    values of the constexpr ones, and of any other that is to be None. Pointers are multiples of
    16 bytes, as PyTorch's are: only then are loads wide, and go through shared memory. The numbers
    named in ``divisible`` are multiples of 16 too, which a launch finds out by itself.
    """
    function = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn)
    names = dict.fromkeys(constants, "constexpr")
    types = {**signature, **names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(function.arg_names)
        if types[name].startswith("*") or name in divisible
    }
    source = ASTSource(function, types, dict(constants), aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = compile_source(source, target=HOPPER, options=options)
    shared = int(compiled.metadata.shared)
    assert shared <= MAX_SHARED_BYTES, f"{shared} bytes of shared memory"
    return Compiled(shared, num_warps, compiled.asm["ptx"])
