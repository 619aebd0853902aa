"""Rows of one adapter side by side in a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .indices import Array


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows of one adapter side by side, in token order: [num_runs] each."""

    slots: Array
    starts: Array
    lengths: Array

    def where(self, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Runs:
        """Those that the mask [num_runs] picks."""
        return Runs(self.slots[mask], self.starts[mask], self.lengths[mask])


def merge_runs(segment_slots: Sequence[int | None], segment_lengths: Sequence[int]) -> Runs:
    """Neighbouring segments of one adapter become one run; base segments (None) fall away."""
    slots = np.array([-1 if slot is None else slot for slot in segment_slots], dtype=np.int64)
    lengths = np.array(segment_lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    full = lengths > 0
    slots, starts, lengths = slots[full], starts[full], lengths[full]
    first = np.flatnonzero(np.diff(slots, prepend=-2))
    if first.size:
        lengths = np.add.reduceat(lengths, first)
    runs = Runs(slots[first], starts[first], lengths)
    return runs.where(runs.slots >= 0)
