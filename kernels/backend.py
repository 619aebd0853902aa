"""Which tensors Triton's kernels take: those on a GPU, and any under Triton's interpreter."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

from torch import Tensor


def uses_kernels(tensor: Tensor) -> bool:
    """Whether the ops on ``tensor`` are Triton's kernels, not their plain PyTorch twins.

    With ``TRITON_INTERPRET=1`` in the environment Triton runs its kernels on the host, slowly:
    then they take the host's tensors too, so that they can be tested without a GPU.
    """
    return (tensor.is_cuda and _has_triton()) or interprets()


@cache
def interprets() -> bool:
    """Whether Triton is there and interprets its kernels."""
    if not _has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
