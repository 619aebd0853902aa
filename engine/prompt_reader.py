"""From a step's hidden states to what requests want of their prompts: logprobs and vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from ..lora.dense_mapping import route_heads
from ..lora.layers import StepLora
from .logprob_report import read_report
from .models.decoder import Decoder
from .prompt_output import PromptPart
from .prompt_rows import PromptRows
from .staging import Array, HostCopy, send
from .types import TokenLogprobs

SLICE_BYTES = 32 << 20
"""Of float32 logits at a time: those of a whole chunk would be a gigabyte."""

NOT_FINITE = "the model's logits are not finite at the prompt's tokens"
VECTOR_NOT_FINITE = "the model's hidden states are not finite"


@dataclass(frozen=True, slots=True)
class _Scored:
    """Rows whose logprobs are reported together, of ``num_values`` numbers."""

    token_ids: list[int]
    counts: list[int]
    num_values: int


@dataclass(frozen=True, slots=True)
class PendingPrompts:
    """What a launch reads of prompts: on the host when ``result`` has waited for it."""

    _rows: Sequence[PromptRows]
    _vectors: HostCopy | None
    _report: HostCopy | None
    _slices: list[_Scored]

    def result(self) -> dict[str, PromptPart]:
        """By request id; waits for nothing that was launched later."""
        vectors: Iterator[Array] = iter(() if self._vectors is None else self._vectors.array())
        entries = self._entries()
        return {rows.request_id: _part(rows, entries, vectors) for rows in self._rows}

    def _entries(self) -> Iterator[TokenLogprobs]:
        values = iter([] if self._report is None else self._report.read())
        for part in self._slices:
            report = list(islice(values, part.num_values))
            yield from read_report(report, part.token_ids, part.counts)


def read_prompts(
    decoder: Decoder, hidden: Tensor, rows: Sequence[PromptRows], lora: StepLora | None
) -> PendingPrompts:
    """Read ``rows`` of a step's hidden states [T, H]; on a GPU nothing here waits for it.

    ``lora`` is the step's. Of logits there are never more than ``SLICE_BYTES``.
    """
    pooled = [
        hidden[each.rows.start : each.rows.stop].sum(0, dtype=torch.float32)
        for each in rows
        if each.kind != "logprobs"
    ]
    slices: list[_Scored] = []
    reports: list[Tensor] = []
    scored = [each for each in rows if each.kind == "logprobs"]
    for part, values in _score(decoder, hidden, scored, lora) if scored else ():
        slices.append(part)
        reports.append(values)
    return PendingPrompts(
        rows,
        HostCopy(torch.stack(pooled)) if pooled else None,
        HostCopy(torch.cat(reports)) if reports else None,
        slices,
    )


def warm_up_prompts(decoder: Decoder, num_tokens: int) -> None:
    """Score one slice of a step of ``num_tokens``, and wait for it."""
    shape = (num_tokens, decoder.config.hidden_size)
    hidden = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
    rows = range(min(num_tokens, _slice_rows(decoder)))
    read_prompts(
        decoder, hidden, [PromptRows("", "logprobs", rows, len(rows), [0] * len(rows), 1)], None
    ).result()


def _slice_rows(decoder: Decoder) -> int:
    return max(1, SLICE_BYTES // (4 * decoder.config.vocab_size))


def _score(
    decoder: Decoder, hidden: Tensor, scored: Sequence[PromptRows], lora: StepLora | None
) -> Iterator[tuple[_Scored, Tensor]]:
    """Slices, and what is reported of each [num_values] float64."""
    places = np.concatenate([np.asarray(each.rows, dtype=np.int64) for each in scored])
    token_ids = list(chain.from_iterable(each.token_ids for each in scored))
    counts = [each.num_top for each in scored for _ in each.rows]
    slots = [each.slot for each in scored for _ in each.rows]
    index, chosen = send([places, np.array(token_ids, dtype=np.int64)], hidden.device)
    size = _slice_rows(decoder)
    for start in range(0, len(places), size):
        part = slice(start, start + size)
        logits = decoder.logits(hidden.index_select(0, index[part]), _with_rows(lora, slots[part]))
        report = ops.report_logprobs(logits, chosen[part], counts[part])
        values = torch.cat([each.to(torch.float64) for each in report])
        yield _Scored(token_ids[part], counts[part], len(values)), values


def _with_rows(lora: StepLora | None, slots: Sequence[int | None]) -> StepLora | None:
    """The step's adapters for rows of logits other than those that it samples."""
    if lora is None or lora.dense is None:
        return lora
    return replace(lora, dense=route_heads(lora.dense, slots))


def _part(
    rows: PromptRows, entries: Iterator[TokenLogprobs], vectors: Iterator[Array]
) -> PromptPart:
    if rows.kind == "logprobs":
        logprobs = list(islice(entries, len(rows.rows)))
        is_finite = all(math.isfinite(entry.logprob) for entry in logprobs)
        return PromptPart(rows.end, logprobs, error=None if is_finite else NOT_FINITE)
    vector = next(vectors)
    is_finite = bool(np.isfinite(vector).all())
    return PromptPart(rows.end, vector=vector, error=None if is_finite else VECTOR_NOT_FINITE)
