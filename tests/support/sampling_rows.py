"""Rows for a sampler, of some kinds of parameters in turn."""

from __future__ import annotations

from collections.abc import Sequence

from branchline.engine.sampler import SamplingRow
from branchline.engine.types import SamplingParams


def sampling_rows(
    kinds: Sequence[SamplingParams], num_rows: int, eos_token_id: int
) -> list[SamplingRow]:
    """Row i is of kind i, the first again after the last; all have one past."""
    return [
        SamplingRow(
            params=kinds[i % len(kinds)],
            position=7,
            choice_index=i,
            prompt_token_ids=[1, 2, 3, 4],
            output_token_ids=[4, 4, 5],
            eos_token_ids=[eos_token_id],
        )
        for i in range(num_rows)
    ]
