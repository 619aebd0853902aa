"""A step plan laid out on the host: what the device is to be sent, as arrays and lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import SCRAP_BLOCK
from .plan import ScheduledChunk, StepPlan

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class StepAdapters:
    """Which adapter slots a step's tokens meet; None stands for the base model.

    ``slots`` are the requests' own [R]. ``segment_slots`` and ``segment_lengths`` cut the tokens
    further: an activated LoRA leaves those before its start to the base.
    """

    slots: list[int | None]
    segment_slots: list[int | None]
    segment_lengths: list[int]


@dataclass(frozen=True, slots=True)
class StepLayout:
    """T tokens of R requests, N of which give a token; requests with one token come first."""

    input_ids: Int64s  # [T], 0 for a token that is not known yet
    positions: Int64s  # [T]
    slot_mapping: Int64s  # [T], the KV slot of each token
    logits_indices: Int64s  # [N], the rows whose logits are wanted
    follows: Int64s  # [2, F], input rows, and whose sample of the step before they are
    zero_block_ids: Int64s  # [Z], blocks to clear beforehand
    query_lens: list[int]  # [R], tokens of each request
    seq_lens: list[int]  # [R], its keys up to and including this step
    block_tables: list[list[int]]  # [R], its blocks up to the last token of this step
    samples: list[bool]  # [R], whether the request gives a token
    adapters: StepAdapters

    @property
    def num_tokens(self) -> int:
        """Tokens of all requests."""
        return len(self.input_ids)

    @property
    def num_decodes(self) -> int:
        """Requests of one token, which come first."""
        longer = (i for i, length in enumerate(self.query_lens) if length > 1)
        return next(longer, len(self.query_lens))

    @property
    def is_decode(self) -> bool:
        """Whether it is one token a request, and each gives the next one."""
        return self.num_tokens == len(self.logits_indices)


def decode_layout(
    token_ids: list[int],
    positions: list[int],
    block_tables: list[list[int]],
    slots: list[int | None],
    block_size: int,
) -> StepLayout:
    """A step of decodes, each of a request of its own [R]; of none at all too."""
    num_rows = len(token_ids)
    places = zip(positions, block_tables, strict=True)
    kv_slots = [
        table[place // block_size] * block_size + place % block_size for place, table in places
    ]
    return StepLayout(
        input_ids=np.array(token_ids, dtype=np.int64),
        positions=np.array(positions, dtype=np.int64),
        slot_mapping=np.array(kv_slots, dtype=np.int64),
        logits_indices=np.arange(num_rows),
        follows=np.empty((2, 0), dtype=np.int64),
        zero_block_ids=np.empty(0, dtype=np.int64),
        query_lens=[1] * num_rows,
        seq_lens=[place + 1 for place in positions],
        block_tables=block_tables,
        samples=[True] * num_rows,
        adapters=StepAdapters(slots, slots, [1] * num_rows),
    )


def lay_out(plan: StepPlan, block_size: int) -> StepLayout:
    """Lay the plan's chunks out one behind the other."""
    chunks = plan.chunks
    lengths = [chunk.num_scheduled_tokens for chunk in chunks]
    ids, positions, slots, rows = _tokens(chunks, sum(lengths), block_size)
    return StepLayout(
        input_ids=ids,
        positions=positions,
        slot_mapping=slots,
        logits_indices=rows,
        follows=_follows(chunks),
        zero_block_ids=np.array(plan.zero_block_ids, dtype=np.int64),
        query_lens=lengths,
        seq_lens=[chunk.end for chunk in chunks],
        block_tables=[
            chunk.request.blocks.block_ids[: -(-chunk.end // block_size)] for chunk in chunks
        ],
        samples=[chunk.samples for chunk in chunks],
        adapters=_adapters(chunks),
    )


def _tokens(
    chunks: tuple[ScheduledChunk, ...], num_tokens: int, block_size: int
) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Ids, positions and KV slots [T] and logits rows [N].

    Tokens computed again over the tree's blocks leave those alone: their KV goes to the scrap
    block.
    """
    ids, positions, slots, rows = np.empty((4, num_tokens), dtype=np.int64)
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
    return ids, positions, slots, rows[:num_sampling]


def _follows(chunks: tuple[ScheduledChunk, ...]) -> Int64s:
    """Such chunks are of one token, so they are the first and their rows are their numbers."""
    pairs = [(i, chunk.follows) for i, chunk in enumerate(chunks) if chunk.follows is not None]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def _adapters(chunks: tuple[ScheduledChunk, ...]) -> StepAdapters:
    slots: list[int | None] = []
    segment_slots: list[int | None] = []
    segment_lengths: list[int] = []
    for chunk in chunks:
        lease, length = chunk.request.slot, chunk.num_scheduled_tokens
        slots.append(None if lease is None else lease.slot)
        if lease is not None:
            num_base = min(max(chunk.request.adapter_start - chunk.start, 0), length)
            if num_base:
                segment_slots.append(None)
                segment_lengths.append(num_base)
            length -= num_base
        segment_slots.append(slots[-1])
        segment_lengths.append(length)
    return StepAdapters(slots, segment_slots, segment_lengths)
