"""What attention needs to know of a step, built once on the host and shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_PADDED_BLOCKS = 1024
"""Up to so many block table entries, decodes of any lengths are padded to the longest."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decodes that are padded to one length: ``num_blocks`` blocks each.

    ``rows`` [n] int64 are their places among the decodes, None if these are all of them.
    ``masks`` is a memo of their additive masks by sliding window; layers share it.
    """

    rows: Tensor | None
    num_blocks: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The step's requests in batch order: R requests, T query tokens.

    The first ``num_decodes`` requests have one query token each; the others are prompt
    chunks. ``query_lens`` and ``seq_lens_host`` (keys up to and including this step) are
    the host's copies, so that no layer waits for the device.
    """

    block_tables: Tensor  # [R, max_blocks] int32, padded with block 0
    cu_seqlens_q: Tensor  # [R + 1] int32
    seq_lens: Tensor  # [R] int32
    query_lens: tuple[int, ...]
    seq_lens_host: tuple[int, ...]
    num_decodes: int
    decode_groups: tuple[DecodeGroup, ...]


def build_attention_metadata(
    block_tables: Sequence[Sequence[int]],
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    device: torch.device | str = "cpu",
) -> AttentionMetadata:
    """Lay out one step; requests with one query token must come first to count as decodes."""
    width = max(len(table) for table in block_tables)
    padded = [[*table, *(0,) * (width - len(table))] for table in block_tables]
    num_decodes = 0
    while num_decodes < len(query_lens) and query_lens[num_decodes] == 1:
        num_decodes += 1
    cu_seqlens = [0]
    for length in query_lens:
        cu_seqlens.append(cu_seqlens[-1] + length)
    return AttentionMetadata(
        block_tables=torch.tensor(padded, dtype=torch.int32).to(device, non_blocking=True),
        cu_seqlens_q=torch.tensor(cu_seqlens, dtype=torch.int32).to(device, non_blocking=True),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32).to(device, non_blocking=True),
        query_lens=tuple(query_lens),
        seq_lens_host=tuple(seq_lens),
        num_decodes=num_decodes,
        decode_groups=_group_decodes([len(table) for table in block_tables[:num_decodes]], device),
    )


def _group_decodes(num_blocks: list[int], device: torch.device | str) -> tuple[DecodeGroup, ...]:
    """One group, unless one long request would make many short ones as long as itself.

    Then lengths within a power of two go together, so that padding at most doubles the work.
    """
    if not num_blocks:
        return ()
    padded = max(num_blocks) * len(num_blocks)
    if padded <= max(MAX_PADDED_BLOCKS, 2 * sum(num_blocks)):
        return (DecodeGroup(None, max(num_blocks)),)
    rows_of: dict[int, list[int]] = {}
    for row, count in enumerate(num_blocks):
        rows_of.setdefault((count - 1).bit_length(), []).append(row)
    return tuple(
        DecodeGroup(torch.tensor(rows).to(device), max(num_blocks[row] for row in rows))
        for rows in rows_of.values()
    )
