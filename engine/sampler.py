"""From logits to tokens: edits, filters, the choice itself, and logprobs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from .logit_edits import RowEdits, edit_logits, row_edits
from .types import SamplingParams, TokenLogprobs

MIN_TEMPERATURE = 1e-5
"""A temperature under it is greedy, as in vLLM."""

NO_TOKEN_ID = -1
"""In place of the token of a row that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """What decides one row's token besides its logits.

    ``position`` is the index of the token being chosen in the whole sequence, prompt and
    output. The token id lists are the request's own and are only read.
    """

    params: SamplingParams
    position: int
    choice_index: int = 0
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One token a row; ``errors`` maps the rows that have none to the reason."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Chooses tokens; holds no state, so equal arguments always give equal tokens."""

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SampledTokens:
        """One token for each row of logits [N, V] float32, which are overwritten.

        Logprobs are of the logits as they come in. Then, in vLLM's order: logit_bias and
        min_tokens; repetition, frequency and presence penalty; temperature; min_p; top_k;
        top_p. A row of the lowest temperatures takes its largest logit, of the lowest id.
        """
        reported = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        raw = logits[reported] if reported else None
        edit_logits(logits, _edits(rows, logits.shape[1]))
        top_ids, top_logits = ops.top_tokens(logits)
        chosen = _choose(logits, top_ids, rows)

        parts = [chosen.to(torch.float64), top_logits.to(torch.float64)]
        counts = [rows[i].params.logprobs or 0 for i in reported]
        if raw is not None:
            parts += _report(raw, chosen[reported], counts)
        host: list[float] = torch.cat(parts).tolist()  # one copy to the host for all rows

        errors = _errors(host[len(rows) : 2 * len(rows)])
        token_ids = [NO_TOKEN_ID if i in errors else int(host[i]) for i in range(len(rows))]
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        entries = _read_report(host[2 * len(rows) :], [token_ids[i] for i in reported], counts)
        for i, entry in zip(reported, entries, strict=True):
            logprobs[i] = None if i in errors else entry
        return SampledTokens(token_ids, logprobs, errors)


def _edits(rows: Sequence[SamplingRow], vocab_size: int) -> dict[int, RowEdits]:
    edits = {}
    for i, row in enumerate(rows):
        lists = (row.prompt_token_ids, row.output_token_ids, row.eos_token_ids)
        edit = row_edits(row.params, *lists, vocab_size)
        if edit is not None:
            edits[i] = edit
    return edits


def _errors(top_logits: Sequence[float]) -> dict[int, str]:
    errors = {}
    for i, value in enumerate(top_logits):
        if value == -math.inf:
            errors[i] = "no token is allowed here: every logit is -inf"
        elif not math.isfinite(value):
            errors[i] = f"the model's logits are not finite: the largest is {value}"
    return errors


def _choose(logits: Tensor, top_ids: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Token ids [N]; the greedy ones are in top_ids [N] already."""
    picks = [i for i, row in enumerate(rows) if row.params.temperature >= MIN_TEMPERATURE]
    if not picks:
        return top_ids
    if len(picks) == len(rows):
        return _draw(logits, top_ids, rows)
    index = torch.tensor(picks).to(logits.device)
    drawn = _draw(logits[index], top_ids[index], [rows[i] for i in picks])
    return top_ids.index_copy(0, index, drawn)


def _draw(logits: Tensor, top_ids: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    device = logits.device
    temperature = torch.tensor([row.params.temperature for row in rows], dtype=torch.float64)
    temperature = temperature.to(device, non_blocking=True)
    streams = torch.from_numpy(np.array([_stream(row) for row in rows]).T).to(device)
    floors = _floors(logits, temperature, rows)
    return ops.sample_tokens(logits, top_ids, temperature, streams, floors)


def _stream(row: SamplingRow) -> tuple[int, int, int, int]:
    """Low and high word of the seed (any int, taken modulo 2**64), position, choice index."""
    seed = row.params.seed
    assert seed is not None, "a sampled request needs a seed"
    return seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, row.position, row.choice_index


def _floors(logits: Tensor, temperature: Tensor, rows: Sequence[SamplingRow]) -> Tensor | None:
    """The least logits [N] that the rows' filters keep; None if no row has a filter."""
    picks = [i for i, row in enumerate(rows) if _is_filtered(row.params)]
    if not picks:
        return None
    params = [rows[i].params for i in picks]
    top_k = torch.tensor([p.top_k for p in params]).to(logits.device)
    shares = torch.tensor([(p.top_p, p.min_p) for p in params], dtype=torch.float64)
    top_p, min_p = shares.to(logits.device).unbind(1)
    if len(picks) == len(rows):
        return ops.filter_floors(logits, temperature, top_k, top_p, min_p)
    index = torch.tensor(picks).to(logits.device)
    kept = ops.filter_floors(logits[index], temperature[index], top_k, top_p, min_p)
    return torch.full_like(temperature, -math.inf).index_copy_(0, index, kept)


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _report(raw: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """For `_read_report`, float64: logprob [L] and rank [L] of token_ids [L], then the row,
    id and logprob, [C] each, of every id that may belong to its row's ``counts`` best.
    """
    vocab_size = raw.shape[1]
    logprobs = raw.log_softmax(-1)
    chosen = token_ids[:, None]
    ranks = (raw > raw.gather(1, chosen)).sum(1) + 1
    # All that tie with the last of the best go along: which of them count is for the host.
    widest = min(max(max(counts), 1), vocab_size)
    last = torch.tensor([min(max(n, 1), widest) - 1 for n in counts]).to(raw.device)
    bar = raw.topk(widest, dim=1).values.gather(1, last[:, None])
    wanted = torch.tensor([n > 0 for n in counts]).to(raw.device)[:, None]
    # An id that a row's vocabulary does not have is at -inf, and never among the best.
    found = torch.nonzero((raw >= bar) & wanted & (raw > -math.inf), as_tuple=True)
    parts = (logprobs.gather(1, chosen)[:, 0], ranks, *found, logprobs[found])
    return [part.to(torch.float64) for part in parts]


def _read_report(
    values: list[float], token_ids: Sequence[int], counts: Sequence[int]
) -> list[TokenLogprobs]:
    num_rows = len(token_ids)
    size = (len(values) - 2 * num_rows) // 3
    rows, ids, logprobs = (values[2 * num_rows + i * size :][:size] for i in range(3))
    best: list[list[tuple[float, int]]] = [[] for _ in token_ids]
    for row, token_id, logprob in zip(rows, ids, logprobs, strict=True):
        best[int(row)].append((-logprob, int(token_id)))
    entries = []
    for i, token_id in enumerate(token_ids):
        top = sorted(best[i])[: counts[i]]
        entries.append(
            TokenLogprobs(
                token_id=token_id,
                logprob=values[i],
                rank=int(values[num_rows + i]),
                top_token_ids=[token for _, token in top],
                top_logprobs=[-negated for negated, _ in top],
            )
        )
    return entries
