"""Logprobs as the host reads them from what ``ops.report_logprobs`` left on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .types import TokenLogprobs


def read_report(
    values: list[float], token_ids: Sequence[int], counts: Sequence[int]
) -> list[TokenLogprobs]:
    """The entries of ``ops.report_logprobs``; of equal ones the lowest id comes first."""
    num_rows = len(token_ids)
    size = (len(values) - 2 * num_rows) // 3
    rows, ids, logprobs = (values[2 * num_rows + i * size :][:size] for i in range(3))
    best: list[list[tuple[float, int]]] = [[] for _ in token_ids]
    for row, token_id, logprob in zip(rows, ids, logprobs, strict=True):
        if logprob > -math.inf:
            best[int(row)].append((-logprob, int(token_id)))
    entries = []
    for i, token_id in enumerate(token_ids):
        top = sorted(best[i])[: counts[i]]
        entries.append(
            TokenLogprobs(
                token_id=token_id,
                logprob=values[i],
                rank=int(values[num_rows + i]),
                top_token_ids=[token for _, token in top],
                top_logprobs=[-negated for negated, _ in top],
            )
        )
    return entries
