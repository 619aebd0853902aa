"""What attention needs to know of a step, built once on the host and shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backend import uses_kernels

MAX_PADDED_BLOCKS = 1024
"""Up to so many block table entries, decodes of any lengths are padded to the longest."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decodes that are padded to one length: ``num_blocks`` blocks each.

    ``rows`` [n] int64 are their places among the decodes, None if these are all of them.
    ``masks`` is a memo of their additive masks by sliding window; layers share it. None where
    lengths change under it.
    """

    rows: Tensor | None
    num_blocks: int
    masks: dict[int | None, Tensor] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """The step's requests in batch order: R requests, T query tokens.

    The first ``num_decodes`` requests have one query token each; the others are prompt
    chunks. ``query_lens`` and ``seq_lens_host`` (keys up to and including this step) are
    the host's copies, so that no layer waits for the device. Only the twin reads
    ``seq_lens_host`` and ``decode_groups``: what kernels do depends on tensors and counts alone.
    """

    block_tables: Tensor  # [R, max_blocks] int32, padded with block 0
    cu_seqlens_q: Tensor  # [R + 1] int32
    seq_lens: Tensor  # [R] int32
    query_lens: tuple[int, ...]
    seq_lens_host: tuple[int, ...]
    num_decodes: int
    decode_groups: tuple[DecodeGroup, ...]

    @classmethod
    def for_decodes(cls, block_tables: Tensor, seq_lens: Tensor) -> AttentionMetadata:
        """One query a request, over tensors that their owner writes anew before each step.

        ``block_tables`` [B, W] int32, a row's entries behind its length any valid block;
        ``seq_lens`` [B] int32. A row of length 0 is padding: its output is zeros.
        """
        num_decodes, width = block_tables.shape
        return cls(
            block_tables=block_tables,
            cu_seqlens_q=torch.arange(
                num_decodes + 1, dtype=torch.int32, device=block_tables.device
            ),
            seq_lens=seq_lens,
            query_lens=(1,) * num_decodes,
            seq_lens_host=(),
            num_decodes=num_decodes,
            decode_groups=(DecodeGroup(None, width, masks=None),),
        )


def build_attention_metadata(
    block_tables: Sequence[Sequence[int]],
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    device: torch.device | str = "cpu",
) -> AttentionMetadata:
    """Lay out one step; requests with one query token must come first to count as decodes."""
    num_decodes = 0
    while num_decodes < len(query_lens) and query_lens[num_decodes] == 1:
        num_decodes += 1
    counts = [len(table) for table in block_tables]
    cu_seqlens_q, lengths, tables = _send(block_tables, max(counts), query_lens, seq_lens, device)
    groups: tuple[DecodeGroup, ...] = ()
    if not uses_kernels(tables):
        groups = _group_decodes(counts[:num_decodes], device)
    elif num_decodes:  # nobody asks, unless to compare
        groups = (DecodeGroup(None, max(counts)),)
    return AttentionMetadata(
        block_tables=tables,
        cu_seqlens_q=cu_seqlens_q,
        seq_lens=lengths,
        query_lens=tuple(query_lens),
        seq_lens_host=tuple(seq_lens),
        num_decodes=num_decodes,
        decode_groups=groups,
    )


def _send(
    block_tables: Sequence[Sequence[int]],
    width: int,
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    device: torch.device | str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``cu_seqlens_q``, ``seq_lens`` and padded tables: parts of one tensor, sent in one copy."""
    num_requests = len(query_lens)
    first_length, first_table = num_requests + 1, 2 * num_requests + 1
    size, device = first_table + num_requests * width, torch.device(device)
    packed = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
    array: NDArray[np.int32] = packed.numpy()
    array[1:first_length] = list(accumulate(query_lens))
    array[first_length:first_table] = seq_lens
    rows = array[first_table:].reshape(num_requests, width)
    for row, table in zip(rows, block_tables, strict=True):
        row[: len(table)] = table
    sent = packed.to(device, non_blocking=True)
    tables = sent[first_table:].view(num_requests, width)
    return sent[:first_length], sent[first_length:first_table], tables


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
