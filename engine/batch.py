"""A step on the device: laid out on the host, sent there in one copy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from ..lora.bank import AdapterBank
from ..lora.dense_mapping import build_step_dense
from ..lora.indices import spans
from ..lora.layers import StepLora
from ..lora.mapping import AdapterMapping, build_mapping
from .blocks import PADDING_BLOCK
from .plan import StepPlan
from .staging import send
from .step_layout import Int32s, StepAdapters, StepLayout, lay_out

TABLE_STEP = 16
"""Block tables on a GPU are a multiple of it wide: kernels are compiled for strides that are."""


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step on the device: T tokens of R requests, N of which give a token."""

    input_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64, the KV slot of each token
    logits_indices: Tensor | None  # [N] int64, the rows whose logits are wanted; None: all
    follows: Tensor | None  # [2, F] int64: input rows, and whose sample of the step before they are
    zero_blocks: Tensor | None  # [Z] int64, blocks to clear beforehand
    attention: ops.AttentionMetadata
    lora: StepLora | None


def build_batch(
    plan: StepPlan, block_size: int, bank: AdapterBank | None, device: torch.device
) -> StepBatch:
    """The plan's step on the device."""
    return send_batch(lay_out(plan, block_size), bank, device)


def send_batch(layout: StepLayout, bank: AdapterBank | None, device: torch.device) -> StepBatch:
    """The step on the device; on a GPU nothing here waits for it.

    One copy takes all of it there, from pinned memory that PyTorch's host allocator hands out
    afresh and takes back when the copy is through: no step writes over what another still reads.
    """
    lora = _step_lora(layout, bank)
    if not ops.uses_kernels(device):
        attention = ops.build_attention_metadata(
            layout.block_tables, layout.query_lens, layout.seq_lens, device
        )
        return _batch(layout, send(_tokens(layout), device), attention, lora)
    tables = pad_tables(layout.block_tables, len(layout.block_tables))
    cu_seqlens = np.cumsum([0, *layout.query_lens], dtype=np.int32)
    seq_lens = np.array(layout.seq_lens, dtype=np.int32)
    *tokens, tables_there, cu_seqlens_there, seq_lens_there = send(
        [*_tokens(layout), tables, cu_seqlens, seq_lens], device
    )
    attention = ops.AttentionMetadata(
        block_tables=tables_there,
        cu_seqlens_q=cu_seqlens_there,
        seq_lens=seq_lens_there,
        query_lens=tuple(layout.query_lens),
        seq_lens_host=tuple(layout.seq_lens),
        num_decodes=layout.num_decodes,
        decode_groups=(),  # kernels read the lengths
    )
    return _batch(layout, tokens, attention, lora)


def _tokens(layout: StepLayout) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    return [
        layout.input_ids,
        layout.positions,
        layout.slot_mapping,
        layout.logits_indices,
        layout.follows,
        layout.zero_block_ids,
    ]


def _batch(
    layout: StepLayout,
    sent: list[Tensor],
    attention: ops.AttentionMetadata,
    lora: StepLora | None,
) -> StepBatch:
    input_ids, positions, slot_mapping, logits_indices, follows, zero_blocks = sent
    return StepBatch(
        input_ids=input_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        logits_indices=logits_indices,
        follows=follows if layout.follows.size else None,
        zero_blocks=zero_blocks if layout.zero_block_ids.size else None,
        attention=attention,
        lora=lora,
    )


def pad_tables(block_tables: list[list[int]], num_rows: int, filler: int = PADDING_BLOCK) -> Int32s:
    """[num_rows, width]: the tables, and ``filler`` behind them and in further rows."""
    lengths = np.array([len(table) for table in block_tables], dtype=np.int64)
    width = -(-int(lengths.max(initial=1)) // TABLE_STEP) * TABLE_STEP
    padded = np.full(num_rows * width, filler, dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(block_tables), np.int32, int(lengths.sum()))
    padded[spans(np.arange(len(lengths)) * width, lengths)] = flat
    return padded.reshape(num_rows, width)


def _step_lora(layout: StepLayout, bank: AdapterBank | None) -> StepLora | None:
    if bank is None:
        return None
    adapters = layout.adapters
    mapping = build_mapping(adapters.segment_slots, adapters.segment_lengths, bank)
    dense = build_step_dense(adapters.slots, layout.query_lens, layout.samples, bank.dense)
    if mapping is None and dense is None:
        return None
    return StepLora(bank, mapping or AdapterMapping({}), dense)


def has_dense(adapters: StepAdapters, bank: AdapterBank) -> bool:
    """Whether any adapter of a step brings more than low-rank pairs."""
    pool = bank.dense
    return pool is not None and any(
        slot is not None and pool.held(slot) is not None for slot in set(adapters.slots)
    )
