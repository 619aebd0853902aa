"""Rows that may only choose among some token ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
Bits = npt.NDArray[np.int32]

WORD = 32
MAX_REMEMBERED = 1024
"""Lists of ids; more than a step has rows, so that none is worked out at every step."""

_remembered: OrderedDict[int, tuple[tuple[int, ...], int, Bits]] = OrderedDict()
_lock = Lock()


def pack_allowed(
    allowed: Mapping[int, Sequence[int]], vocab_size: int
) -> tuple[()] | tuple[Rows, Bits]:
    """Rows [R] and the tokens they may choose [R, ceil(V / 32)], as ``ops.apply_token_mask`` takes
    them; ids outside the vocabulary are left out. () where no row is limited.
    """
    if not allowed:
        return ()
    bits = np.stack([_bits_of(ids, vocab_size) for ids in allowed.values()])
    return np.fromiter(allowed, np.int64, len(allowed)), bits


def _bits_of(ids: Sequence[int], vocab_size: int) -> Bits:
    """Remembered by the tuple itself, which a request has for all its steps: to look at thousands
    of numbers for every row of a step takes too long."""
    if not isinstance(ids, tuple):
        return _pack(ids, vocab_size)
    with _lock:
        known = _remembered.get(id(ids))
        if known is not None and known[0] is ids and known[1] == vocab_size:
            _remembered.move_to_end(id(ids))
            return known[2]
    bits = _pack(ids, vocab_size)
    with _lock:  # what is kept here keeps its identity to itself
        _remembered[id(ids)] = ids, vocab_size, bits
        while len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
    return bits


def _pack(ids: Sequence[int], vocab_size: int) -> Bits:
    places = np.fromiter(ids, np.int64, len(ids))
    is_allowed = np.zeros(-(-vocab_size // WORD) * WORD, np.bool_)
    is_allowed[places[(places >= 0) & (places < vocab_size)]] = True
    return np.packbits(is_allowed, bitorder="little").view("<i4")
