"""Changes to single logits before a token is chosen: bias, forbidden ids, penalties."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .types import SamplingParams

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowEdits:
    """For each of E ids, ascending: logit -> penalised(logit + bias) - amount.

    ``penalised`` divides what is over zero by ``repetition`` and multiplies the rest.
    """

    ids: Ids  # [E]
    bias: Floats  # [E]
    repetition: Floats  # [E]
    amount: Floats  # [E]


def row_edits(
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    eos_token_ids: Sequence[int],
    vocab_size: int,
) -> RowEdits | None:
    """What one row's parameters change, None for nothing. Ids outside the vocabulary do not count.

    The repetition penalty is for ids of the prompt and the output (Keskar et al., "CTRL",
    2019; as in transformers), presence and frequency for those of the output (as OpenAI's).
    Until ``min_tokens`` tokens are out, EOS and ``stop_token_ids`` are forbidden, and always what
    would complete a bad word.
    """
    biased = list(params.logit_bias)
    waits = len(output_token_ids) < params.min_tokens
    ends = (*eos_token_ids, *params.stop_token_ids) if waits else ()
    forbidden = (*ends, *completing_ids(params.bad_word_ids, output_token_ids))
    counts = params.presence_penalty != 0 or params.frequency_penalty != 0
    repeats = params.repetition_penalty != 1
    if not (biased or forbidden or repeats or (counts and output_token_ids)):
        return None

    bias = dict(params.logit_bias) | dict.fromkeys(forbidden, -math.inf)
    bias_ids = _array(bias)
    output = _array(output_token_ids if counts or repeats else ())
    output_ids, num_seen = np.unique(output, return_counts=True)
    repeated = np.union1d(_array(prompt_token_ids), output_ids) if repeats else _array(())
    all_ids = np.unique(np.concatenate((bias_ids, output_ids, repeated)))
    width = len(all_ids)
    edits = RowEdits(all_ids, *(np.full(width, x, np.float32) for x in (0, 1, 0)))
    edits.bias[np.searchsorted(all_ids, bias_ids)] = list(bias.values())
    edits.repetition[np.searchsorted(all_ids, repeated)] = params.repetition_penalty
    penalties = params.frequency_penalty * num_seen + params.presence_penalty
    edits.amount[np.searchsorted(all_ids, output_ids)] = penalties
    inside = (all_ids >= 0) & (all_ids < vocab_size)
    return RowEdits(
        all_ids[inside], edits.bias[inside], edits.repetition[inside], edits.amount[inside]
    )


def completing_ids(
    bad_word_ids: Sequence[Sequence[int]], output_token_ids: Sequence[int]
) -> list[int]:
    """The ids that would end one of these sequences behind the output, as vLLM's ``bad_words``.

    A sequence that began in the prompt is not seen.
    """
    num_output = len(output_token_ids)
    return [
        word[-1]
        for word in bad_word_ids
        if len(word) <= num_output + 1
        and list(output_token_ids[num_output + 1 - len(word) :]) == list(word[:-1])
    ]


def pack_edits(edits: Mapping[int, RowEdits]) -> tuple[()] | tuple[Ids, Floats]:
    """All rows' (key) edits as ``ops.edit_logits`` takes them: [2, E] and [3, E]; () for none."""
    if not edits:
        return ()
    rows = np.repeat(list(edits), [len(edit.ids) for edit in edits.values()])
    where = np.stack((rows, np.concatenate([edit.ids for edit in edits.values()])))
    fields = ((edit.bias, edit.repetition, edit.amount) for edit in edits.values())
    return where, np.concatenate([np.stack(field) for field in fields], axis=1)


def _array(ids: Iterable[int]) -> Ids:
    return np.fromiter(ids, dtype=np.int64)
