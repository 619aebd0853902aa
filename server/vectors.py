"""Embeddings as clients get them: cut, of unit length, as numbers or base64."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..engine.types import SamplingParams

Vector = npt.NDArray[np.float32]

POOLED = SamplingParams(temperature=0.0, seed=0, max_tokens=1, ignore_eos=True)
"""What goes with ``pooling``, which chooses no token."""


def unit_vector(values: Sequence[float], dimensions: int | None = None) -> Vector:
    """The first ``dimensions`` values [dimensions], scaled to length 1; zeros stay zeros."""
    vector = np.asarray(values[:dimensions], np.float64)
    length = np.linalg.norm(vector)
    return (vector / length if length > 0 else vector).astype(np.float32)


def as_base64(vector: Vector) -> str:
    """Little-endian float32, as OpenAI encodes it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
