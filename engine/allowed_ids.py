"""Rows that may only choose among some token ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

Ids = npt.NDArray[np.int64]


def pack_allowed(
    allowed: Mapping[int, Sequence[int]], vocab_size: int
) -> tuple[()] | tuple[Ids, Ids]:
    """Rows [R] and their allowed places (row, id) [2, A], ids outside the vocabulary left out.

    () where no row is limited.
    """
    if not allowed:
        return ()
    places = [
        (row, token_id)
        for row, ids in allowed.items()
        for token_id in sorted(set(ids))
        if 0 <= token_id < vocab_size
    ]
    where = np.array(places, np.int64).reshape(-1, 2).T.copy()
    return np.array(list(allowed), np.int64), where


def allow_only(logits: Tensor, rows: Tensor, where: Tensor) -> None:
    """Put -inf everywhere in ``rows`` of logits [N, V] but at ``where``; waits for no device."""
    kept = logits[where[0], where[1]]
    logits.index_fill_(0, rows, -math.inf)
    logits.index_put_((where[0], where[1]), kept)
