"""Which tensors Triton's kernels take: those on a GPU, and any under Triton's interpreter."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


def uses_kernels(where: Tensor | torch.device) -> bool:
    """Whether the ops on a tensor, or on a device, are Triton's kernels, not their plain twins.

    With ``TRITON_INTERPRET=1`` in the environment Triton runs its kernels on the host, slowly:
    then they take the host's tensors too, so that they can be tested without a GPU.
    """
    is_cuda = where.type == "cuda" if isinstance(where, torch.device) else where.is_cuda
    return (is_cuda and _has_triton()) or interprets()


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
