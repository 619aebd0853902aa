"""Where captured decode steps read their inputs: padded to a size, always at the same address."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from ..lora.bank import AdapterBank
from ..lora.layers import StepLora
from ..lora.mapping import AdapterMapping
from ..lora.work import WorkCapacity, decode_capacity, pack_work, work_views
from .batch import TABLE_STEP, StepBatch, pad_tables
from .blocks import SCRAP_BLOCK
from .staging import Array, pack, unpack
from .step_layout import StepLayout

SMALL_SIZES, SIZE_STEP = (1, 2, 4), 8
ITEMS_A_ROW = (1, 4)
"""Pages of ranks that a step has room for, by its size: adapters of rank 16, and of rank 64."""


@dataclass(frozen=True, slots=True)
class GraphKind:
    """Decode steps of up to ``size`` requests; without ``work`` none of them has an adapter."""

    size: int
    work: WorkCapacity | None = None

    def __str__(self) -> str:
        adapters = "" if self.work is None else f", {self.work.max_items} adapter pages"
        return f"{self.size} requests{adapters}"


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, 16, 24, ... and the most that there can be."""
    smaller = [*SMALL_SIZES, *range(SIZE_STEP, max_num_seqs, SIZE_STEP)]
    return [*(size for size in smaller if size < max_num_seqs), max_num_seqs]


def graph_kinds(max_num_seqs: int, bank: AdapterBank | None) -> Iterator[GraphKind]:
    """The kinds to capture, the least room first."""
    for size in graph_sizes(max_num_seqs):
        yield GraphKind(size)
        if bank is not None and any(pool.num_pages for pool in bank.pools.values()):
            most = decode_capacity(size, bank)
            for max_items in sorted({min(most.max_items, size * each) for each in ITEMS_A_ROW}):
                yield GraphKind(size, replace(most, max_items=max_items))


@dataclass(frozen=True, slots=True)
class FilledStep:
    """A step in its place, and what is left to do before it: ``ModelRunner.prepare``'s part."""

    input_ids: Tensor
    follows: Tensor | None
    zero_blocks: Tensor | None


class GraphInputs:
    """One step's inputs in device memory that stays in its place.

    Steps run one after the other on one stream, so all kinds share the memory: the copy of a
    step's inputs comes behind the step before. The host's side is pinned memory that PyTorch
    hands out afresh for each copy and takes back when that is through.

        | ids | positions | KV slots | seq_lens | adapter work | tables | follows | zero blocks |
          ..................... at one place for each kind .....  ........ as they come ........

    Block tables are copied on into ``tables``, whose rows are as long as a request can get. Rows
    behind the step's own have no keys, write to the scrap block, and nobody looks at them.
    """

    def __init__(
        self,
        kinds: list[GraphKind],
        bank: AdapterBank | None,
        block_size: int,
        max_model_len: int,
        device: torch.device,
    ) -> None:
        self._bank = bank
        self._block_size = block_size
        self._device = device
        max_size = max(kind.size for kind in kinds)
        max_blocks = -(-max_model_len // block_size)
        width = -(-max_blocks // TABLE_STEP) * TABLE_STEP
        self._max_zero_blocks = 4 * max_size
        self._tables = torch.full((max_size, width), SCRAP_BLOCK, dtype=torch.int32, device=device)
        fixed = max(len(pack(self._fixed(kind), pinned=False)) for kind in kinds)
        beside = 4 * self._tables.numel() + 8 * (2 * max_size + self._max_zero_blocks) + 3 * 16
        self._memory = torch.zeros(fixed + beside, dtype=torch.uint8, device=device)

    def batch(self, kind: GraphKind) -> StepBatch:
        """The inputs as a step of this kind finds them."""
        ids, positions, slots, seq_lens, work = unpack(self._memory, self._fixed(kind))
        lora = None
        if kind.work is not None:
            assert self._bank is not None
            groups = work_views(work, kind.work, tuple(self._bank.pools))
            lora = StepLora(self._bank, AdapterMapping(groups))
        return StepBatch(
            input_ids=ids,
            positions=positions,
            slot_mapping=slots,
            logits_indices=None,
            follows=None,
            zero_blocks=None,
            attention=ops.AttentionMetadata.for_decodes(self._tables[: kind.size], seq_lens),
            lora=lora,
        )

    def fill(self, kind: GraphKind, layout: StepLayout) -> FilledStep | None:
        """Put a step of decodes where its kind finds it; None if its adapters don't fit."""
        if layout.zero_block_ids.size > self._max_zero_blocks:
            return None
        fixed = self._fixed(kind)
        ids, positions, slots, seq_lens, work = fixed
        num_rows = layout.num_tokens
        ids[:num_rows] = layout.input_ids
        positions[:num_rows] = layout.positions
        slots[:num_rows] = layout.slot_mapping
        seq_lens[:num_rows] = layout.seq_lens
        if kind.work is not None:
            assert self._bank is not None
            adapters = layout.adapters
            segments = adapters.segment_slots, adapters.segment_lengths
            if not pack_work(*segments, self._bank, kind.work, work):
                return None
        tables = pad_tables(layout.block_tables, kind.size, SCRAP_BLOCK)
        arrays = [*fixed, tables, layout.follows, layout.zero_block_ids]
        packed = pack(arrays, pinned=self._device.type == "cuda")
        self._memory[: len(packed)].copy_(packed, non_blocking=True)
        input_ids, *_, tables_there, follows, zero_blocks = unpack(self._memory, arrays)
        self._tables[: kind.size, : tables.shape[1]].copy_(tables_there)
        return FilledStep(
            input_ids,
            follows if layout.follows.size else None,
            zero_blocks if layout.zero_block_ids.size else None,
        )

    def _fixed(self, kind: GraphKind) -> list[Array]:
        """Ids, positions, KV slots, seq_lens and adapter work of rows that are all padding."""
        num_work = 0
        if kind.work is not None:
            assert self._bank is not None
            num_work = kind.work.size(len(self._bank.pools))
        scrap_slot = SCRAP_BLOCK * self._block_size
        return [
            np.zeros(kind.size, dtype=np.int64),
            np.zeros(kind.size, dtype=np.int64),
            np.full(kind.size, scrap_slot, dtype=np.int64),
            np.zeros(kind.size, dtype=np.int32),
            np.zeros(num_work, dtype=np.int32),
        ]
