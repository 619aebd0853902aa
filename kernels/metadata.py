"""What attention needs to know of a step, built once on the host and shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


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
    decode_masks: dict[int | None, Tensor] = field(default_factory=dict)
    """Memo of the decode rows' additive masks by sliding window; layers share them."""


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
    )
