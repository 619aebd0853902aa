"""How attention is cut into programs."""

from __future__ import annotations

from dataclasses import dataclass

NUM_MULTIPROCESSORS = 132
PROGRAMS_EACH = 4
MAX_SPLITS = 64
TILE_NUMBERS = 8192
"""Of keys, and of values as many, in one tile of a decode: 16 KB each in bfloat16."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A program's tile: ``rows`` of queries (tokens times heads) by ``keys``."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def power_of_two(number: int, least: int = 16) -> int:
    """The least power of two that is ``number`` or more, and ``least`` or more."""
    return max(least, 1 << (number - 1).bit_length())


def decode_blocks(group: int, head_dim: int, dtype_bytes: int, interpreted: bool) -> Blocks:
    """Blocks of a decode with ``group`` query heads a KV head. Chosen for an H200, not tuned yet.

    With five stages two tiles are on their way (the others are for the block table, which a
    tile's addresses come from): 64 KB in bfloat16, where about 40 KB a multiprocessor hide the
    latency of memory, and three programs fit one.
    """
    rows = power_of_two(group)
    if interpreted:
        return Blocks(rows, 16, 4, 1)
    if dtype_bytes == 4:  # no tensor cores: small tiles that fit the registers
        return Blocks(rows, 32, 4, 3)
    return Blocks(rows, min(max(TILE_NUMBERS // power_of_two(head_dim), 32), 128), 4, 5)


def prefill_blocks(group: int, head_dim: int, dtype_bytes: int, interpreted: bool) -> Blocks:
    """Blocks of a prompt's chunk. Chosen for an H200, not tuned yet.

    A warpgroup multiplies 64 rows; two of them share the keys. The accumulator takes
    rows * head_dim / threads registers of a thread: 64 for 128 dims, 128 for 256.
    """
    rows = power_of_two(group)
    if interpreted:
        return Blocks(max(rows, 32), 16, 4, 1)
    if dtype_bytes == 4:
        return Blocks(max(rows, 32), 32, 4, 2)
    if head_dim > 128:
        return Blocks(max(rows, 128), 32, 8, 3)
    return Blocks(max(rows, 128), 64, 8, 3)


def count_splits(num_decodes: int, num_kv_heads: int, max_keys: int, tile_keys: int) -> int:
    """Parts, a power of two, that each decode of at most ``max_keys`` keys is cut into.

    Of sizes that a captured graph never changes, so that its grid fits whatever it replays.
    Enough for four programs a multiprocessor, none below two tiles. Not tuned yet.
    """
    programs = max(1, num_decodes * num_kv_heads)
    wanted = -(-NUM_MULTIPROCESSORS * PROGRAMS_EACH // programs)
    useful = max(1, max_keys // (2 * tile_keys))
    bound = min(useful, MAX_SPLITS)
    return min(power_of_two(wanted, 1), 1 << (bound.bit_length() - 1))
