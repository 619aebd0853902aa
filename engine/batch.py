"""A step plan as tensors: built on the CPU a request at a time, copied to the device once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels import ops
from ..lora.bank import AdapterBank
from ..lora.dense_mapping import build_step_dense
from ..lora.layers import StepLora
from ..lora.mapping import AdapterMapping, build_mapping
from .blocks import SCRAP_BLOCK
from .plan import ScheduledChunk, StepPlan


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step on the device: T tokens of R requests, N of which give a token."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, the KV slot of each token
    logits_indices: Tensor  # [N] int64, the rows whose logits are wanted
    follows: Tensor | None  # [2, F] int64: input rows, and whose sample of the step before they are
    attention: ops.AttentionMetadata
    lora: StepLora | None


def build_batch(
    plan: StepPlan, block_size: int, bank: AdapterBank | None, device: torch.device
) -> StepBatch:
    """Lay the plan's chunks out one behind the other."""
    chunks = plan.chunks
    lengths = [chunk.num_scheduled_tokens for chunk in chunks]
    num_tokens = sum(lengths)
    packed, num_sampling = _pack(chunks, num_tokens, block_size)
    follows = _follows(chunks)
    on_device = torch.from_numpy(packed).to(device, non_blocking=True)
    return StepBatch(
        input_ids=on_device[:num_tokens],
        positions=on_device[num_tokens : 2 * num_tokens],
        slot_mapping=on_device[2 * num_tokens : 3 * num_tokens],
        logits_indices=on_device[3 * num_tokens : 3 * num_tokens + num_sampling],
        follows=None if follows is None else follows.to(device, non_blocking=True),
        attention=ops.build_attention_metadata(
            _block_tables(chunks, block_size),
            lengths,
            [chunk.start + chunk.num_scheduled_tokens for chunk in chunks],
            device,
        ),
        lora=_step_lora(chunks, lengths, bank),
    )


def _pack(
    chunks: tuple[ScheduledChunk, ...], num_tokens: int, block_size: int
) -> tuple[NDArray[np.int64], int]:
    """Ids, positions, KV slots and logits rows in one array, so that one copy moves them.

    A token that is not known yet is 0 here. Tokens computed again over the tree's blocks leave
    those alone: their KV goes to the scrap block.
    """
    packed = np.empty(4 * num_tokens, dtype=np.int64)
    ids, positions, slots, rows = packed.reshape(4, num_tokens)
    offset = num_sampling = 0
    for chunk in chunks:
        start, length = chunk.start, chunk.num_scheduled_tokens
        end = offset + length
        token_ids, block_ids = chunk.request.token_ids, chunk.request.blocks.block_ids
        if length == 1:
            ids[offset] = token_ids[start] if chunk.follows is None else 0
            positions[offset] = start
            slots[offset] = block_ids[start // block_size] * block_size + start % block_size
        else:
            ids[offset:end] = token_ids[start : start + length]
            position = np.arange(start, start + length)
            positions[offset:end] = position
            blocks = np.asarray(block_ids, dtype=np.int64)
            slots[offset:end] = blocks[position // block_size] * block_size + position % block_size
        num_shared = chunk.request.blocks.num_shared_tokens - start
        if num_shared > 0:
            slots[offset : min(offset + num_shared, end)] = SCRAP_BLOCK * block_size
        if chunk.samples:
            rows[num_sampling] = end - 1
            num_sampling += 1
        offset = end
    return packed, num_sampling


def _follows(chunks: tuple[ScheduledChunk, ...]) -> Tensor | None:
    """Such chunks are of one token, so they are the first and their rows are their numbers."""
    pairs = [(i, chunk.follows) for i, chunk in enumerate(chunks) if chunk.follows is not None]
    return torch.tensor(pairs, dtype=torch.int64).T if pairs else None


def _block_tables(chunks: tuple[ScheduledChunk, ...], block_size: int) -> list[list[int]]:
    """Each request's blocks up to the last token of this step."""
    tables = []
    for chunk in chunks:
        num_blocks = -(-(chunk.start + chunk.num_scheduled_tokens) // block_size)
        tables.append(chunk.request.blocks.block_ids[:num_blocks])
    return tables


def _step_lora(
    chunks: tuple[ScheduledChunk, ...], lengths: list[int], bank: AdapterBank | None
) -> StepLora | None:
    if bank is None:
        return None
    slots: list[int | None] = []
    segments: list[int] = []
    for chunk, length in zip(chunks, lengths, strict=True):
        lease = chunk.request.slot
        if lease is not None:  # an activated LoRA leaves the tokens before its start to the base
            num_base = min(max(chunk.request.adapter_start - chunk.start, 0), length)
            slots.append(None)
            segments.append(num_base)
            length -= num_base
        slots.append(None if lease is None else lease.slot)
        segments.append(length)
    mapping = build_mapping(slots, segments, bank)
    leases = [chunk.request.slot for chunk in chunks]
    dense = build_step_dense(
        [None if lease is None else lease.slot for lease in leases],
        lengths,
        [chunk.samples for chunk in chunks],
        bank.dense,
    )
    if mapping is None and dense is None:
        return None
    return StepLora(bank, mapping or AdapterMapping({}), dense)
