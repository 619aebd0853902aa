"""From logits to tokens: edits, filters, the choice itself, and logprobs."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..kernels import ops
from .allowed_ids import pack_allowed
from .grammar.masks import TokenMasks, all_allowed
from .logit_edits import RowEdits, pack_edits, row_edits
from .logprob_report import read_report
from .staging import Array, HostCopy, send
from .types import SamplingParams, TokenLogprobs

MIN_TEMPERATURE = 1e-5
"""A temperature under it is greedy, as in vLLM."""

NO_TOKEN_ID = -1
"""In place of the token of a row that failed."""

NO_TOKEN_LEFT = (
    "no token is left to choose: the grammar, allowed_token_ids, bad_words, logit_bias and "
    "min_tokens of this request, with its vocabulary, forbid every one"
)

_GREEDY_FLOATS = (0.0, 1.0, 0.0)
_GREEDY_INTEGERS = (0, 0, 0, 0, 0)


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


@dataclass(frozen=True, slots=True)
class PendingSample:
    """What a launch chooses: on the device at once, on the host when ``result`` has waited for it.

    token_ids [N] int64 are the next step's input; 0 stands in for the token of a failed row.
    """

    token_ids: Tensor
    _copy: HostCopy
    _reported: list[int]
    _counts: list[int]

    def result(self) -> SampledTokens:
        """Wait for the tokens, and for nothing that was launched after them."""
        num_rows = len(self.token_ids)
        host = self._copy.read()
        errors = _errors(host[num_rows : 2 * num_rows])
        token_ids = [NO_TOKEN_ID if i in errors else int(host[i]) for i in range(num_rows)]
        logprobs: list[TokenLogprobs | None] = [None] * num_rows
        chosen = [token_ids[i] for i in self._reported]
        entries = read_report(host[2 * num_rows :], chosen, self._counts)
        for i, entry in zip(self._reported, entries, strict=True):
            logprobs[i] = None if i in errors else entry
        return SampledTokens(token_ids, logprobs, errors)


class Sampler:
    """Chooses tokens; holds no state, so equal arguments always give equal tokens."""

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> SampledTokens:
        """``launch``, and wait for the tokens."""
        return self.launch(logits, rows).result()

    def launch(
        self, logits: Tensor, rows: Sequence[SamplingRow], masks: TokenMasks | None = None
    ) -> PendingSample:
        """One token for each row of logits [N, V] float32, which are overwritten.

        Logprobs are of the logits as they come in. Then come the masks of rows with a grammar and,
        in vLLM's order: logit_bias, min_tokens, bad words and allowed ids; repetition, frequency
        and presence penalty; temperature; min_p; top_k; top_p. A row of the lowest temperatures
        takes its largest logit, of the lowest id.
        On a GPU nothing here waits for the device.
        """
        reported = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        counts = [rows[i].params.logprobs or 0 for i in reported]
        edits = pack_edits(_edits(rows, logits.shape[1], masks.must_end if masks else ()))
        allowed = pack_allowed(_allowed(rows), logits.shape[1])
        arrays = (np.array(reported, np.int64), *_pack_draws(rows), *edits, *allowed)
        index, floats, integers, *sent = send(arrays, logits.device)

        raw = logits.index_select(0, index) if reported else None
        if masks is not None:
            ops.apply_token_mask(logits, *send((masks.rows, masks.bits), logits.device))
        if edits:
            ops.edit_logits(logits, *sent[: len(edits)])
        if allowed:
            ops.apply_token_mask(logits, *sent[len(edits) :])
        top_ids, top_logits = ops.top_tokens(logits)
        chosen = _choose(logits, top_ids, (floats, integers), rows)

        parts = [chosen, top_logits]
        if raw is not None:
            parts += ops.report_logprobs(raw, chosen.index_select(0, index), counts)
        values = torch.cat([part.to(torch.float64) for part in parts])
        token_ids = torch.where(top_logits.abs() < math.inf, chosen, 0)
        return PendingSample(token_ids, HostCopy(values), reported, counts)

    def warm_up(self, logits: Tensor) -> None:
        """Run every kernel once on logits [N, V], so that no request waits for its compilation."""
        plain = SamplingParams(temperature=1.0, seed=0)
        full = replace(plain, top_p=0.9, logit_bias={0: 0.0}, logprobs=1)
        for params in (plain, full):
            row = SamplingRow(params=params, position=0, prompt_token_ids=(), output_token_ids=())
            masks = all_allowed(*logits.shape) if params is full else None
            self.launch(logits, [row] * len(logits), masks).result()


def _edits(
    rows: Sequence[SamplingRow], vocab_size: int, must_end: Collection[int]
) -> dict[int, RowEdits]:
    edits = {}
    for i, row in enumerate(rows):
        lists = (row.prompt_token_ids, row.output_token_ids, row.eos_token_ids)
        params = replace(row.params, min_tokens=0) if i in must_end else row.params
        edit = row_edits(params, *lists, vocab_size)
        if edit is not None:
            edits[i] = edit
    return edits


def _allowed(rows: Sequence[SamplingRow]) -> dict[int, Sequence[int]]:
    ids = ((i, row.params.allowed_token_ids) for i, row in enumerate(rows))
    return {i: allowed for i, allowed in ids if allowed}


def _errors(top_logits: Sequence[float]) -> dict[int, str]:
    errors = {}
    for i, value in enumerate(top_logits):
        if value == -math.inf:
            errors[i] = NO_TOKEN_LEFT
        elif not math.isfinite(value):
            errors[i] = f"the model's logits are not finite: the largest is {value}"
    return errors


def _is_drawn(params: SamplingParams) -> bool:
    return params.temperature >= MIN_TEMPERATURE


def _is_filtered(params: SamplingParams) -> bool:
    return _is_drawn(params) and (params.top_k > 0 or params.top_p < 1 or params.min_p > 0)


def _pack_draws(rows: Sequence[SamplingRow]) -> tuple[Array, Array]:
    """What the draws need to know of each row, of no row if all are greedy.

    Temperature, top_p and min_p [3, N] float64; top_k, low and high word of the seed (any int,
    taken modulo 2**64), position and choice index [5, N] int64. Greedy rows have temperature 0
    and no filters.
    """
    if not any(_is_drawn(row.params) for row in rows):
        return np.empty((3, 0)), np.empty((5, 0), np.int64)
    floats: list[tuple[float, ...]] = []
    integers: list[tuple[int, ...]] = []
    for row in rows:
        params = row.params
        if not _is_drawn(params):
            floats.append(_GREEDY_FLOATS)
            integers.append(_GREEDY_INTEGERS)
            continue
        seed = params.seed
        assert seed is not None, "a sampled request needs a seed"
        floats.append((params.temperature, params.top_p, params.min_p))
        words = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        integers.append((params.top_k, *words, row.position, row.choice_index))
    return np.array(floats, np.float64).T.copy(), np.array(integers, np.int64).T.copy()


def _choose(
    logits: Tensor, top_ids: Tensor, draws: Sequence[Tensor], rows: Sequence[SamplingRow]
) -> Tensor:
    """Token ids [N]; the greedy ones are in top_ids [N] already."""
    floats, integers = draws
    if not floats.shape[1]:
        return top_ids
    temperature, top_p, min_p = floats
    floors = None
    if any(_is_filtered(row.params) for row in rows):
        floors = ops.filter_floors(logits, temperature, integers[0], top_p, min_p)
    return ops.sample_tokens(logits, top_ids, temperature, integers[1:], floors)
