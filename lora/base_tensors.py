"""The base's weights, which some adapters are measured against."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .errors import AdapterError

BaseTensors = Callable[[str], Tensor | None]
"""A base tensor by its name in the checkpoint, as it is served; None for one it has not."""


def absent(name: str) -> Tensor | None:
    """Where an adapter is read without its base."""
    return None


def require_base(base: BaseTensors, name: str) -> Tensor:
    """A base tensor that an adapter can't do without; raises AdapterError if it is absent."""
    tensor = base(name)
    if tensor is None:
        raise AdapterError(name, "this adapter needs it, and the base model does not have it")
    return tensor
