"""The sampling rule in plain numpy and float64: written from its definition, for one row at a time.

It shares no code with the product, so that the product can be found wrong by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchline.engine.types import SamplingParams

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

GROUP = 128


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rule says of one position, given logits that may be off by half a margin.

    ``scores`` [V] are edited logits plus temperature times noise, so a margin is in units
    of logits. ``acceptable`` holds every id that could be the choice, the best one first;
    more than one make a near tie. ``gap`` is the lead over the next best.
    """

    scores: Floats
    acceptable: list[int]
    gap: float


@dataclass(frozen=True, slots=True)
class Context:
    """The sequence so far, and what tells one random stream from another."""

    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: Sequence[int] = ()
    choice_index: int = 0

    @property
    def position(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)


def decide(
    logits: npt.ArrayLike, params: SamplingParams, context: Context, margin: float = 0.0
) -> Decision:
    """The choice for one row of logits [V] under ``params``."""
    edited = edit(np.asarray(logits, dtype=np.float64), params, context)
    scores = edited
    surely = perhaps = edited > -np.inf
    if params.temperature >= 1e-5:
        scores = edited + params.temperature * noise(
            len(edited), params.seed or 0, context.position, context.choice_index
        )
        surely, perhaps = keep(edited, params, -margin), keep(edited, params, margin)
    best = np.max(scores[surely])
    candidates = np.nonzero(perhaps)[0]
    ranked = candidates[np.argsort(-scores[candidates], kind="stable")]
    acceptable = [int(i) for i in ranked if scores[i] >= best - margin]
    gap = scores[ranked[0]] - scores[ranked[1]] if len(ranked) > 1 else np.inf
    return Decision(scores, acceptable if margin else acceptable[:1], float(gap))


def edit(logits: Floats, params: SamplingParams, context: Context) -> Floats:
    """Bias, forbidden ids, then repetition, frequency and presence penalty."""
    logits = logits.copy()
    for token_id, bias in params.logit_bias.items():
        logits[token_id] += bias
    if len(context.output_token_ids) < params.min_tokens:
        for token_id in (*context.eos_token_ids, *params.stop_token_ids):
            logits[token_id] = -np.inf
    for token_id in {*context.prompt_token_ids, *context.output_token_ids}:
        if logits[token_id] > 0:
            logits[token_id] /= params.repetition_penalty
        else:
            logits[token_id] *= params.repetition_penalty
    for token_id, count in Counter(context.output_token_ids).items():
        logits[token_id] -= params.frequency_penalty * count + params.presence_penalty
    return logits


def keep(logits: Floats, params: SamplingParams, slack: float = 0.0) -> Bools:
    """What min_p, top_k and top_p, in that order, leave over.

    ``slack`` over 0 keeps what a change of logit differences by so much might keep, under
    0 only what stays kept despite one.
    """
    top = logits.max()
    kept = logits > -np.inf
    if params.min_p > 0:
        kept &= logits >= top + params.temperature * np.log(params.min_p) - slack
    if 0 < params.top_k < kept.sum():
        kept &= logits >= np.sort(logits[kept])[-params.top_k] - slack
    if params.top_p < 1:
        weights = np.where(kept, np.exp((logits - top) / params.temperature), 0.0)
        limit = params.top_p * weights.sum() * np.exp(slack / params.temperature)
        order = np.argsort(-logits, kind="stable")
        mass = np.concatenate(([0.0], np.cumsum(weights[order])))
        # The mass of what is larger; with a negative slack also of what is about as large.
        num_larger = np.searchsorted(-logits[order], -logits - slack, side="left")
        own = weights if slack < 0 else 0.0
        kept &= mass[num_larger] - own < limit
    return kept | (logits == top)


def noise(vocab_size: int, seed: int, position: int, choice_index: int) -> Floats:
    """Standard Gumbel variables [vocab_size], as the head of `kernels.sample` defines them."""
    ids = np.arange(vocab_size, dtype=np.uint64)
    groups = ids // np.uint64(GROUP)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    group_words = philox4x32_10(groups, position, choice_index, 1, key)
    own_words = philox4x32_10(ids, position, choice_index, 0, key)
    first = _exponential(group_words[0]) / GROUP
    is_winner = group_words[1] % np.uint64(GROUP) == ids % np.uint64(GROUP)
    return -np.log(np.where(is_winner, first, first + _exponential(own_words[0])))


def _exponential(words: Words) -> Floats:
    odd = 2 * (words >> np.uint64(9)) + 1
    return -np.log(odd.astype(np.float64) / 2**24)


def philox4x32_10(
    c0: Words, c1: int, c2: int, c3: int, key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of counters (c0[i], c1, c2, c3), from Salmon et al., 2011."""
    low = np.uint64(0xFFFFFFFF)
    x0 = c0.astype(np.uint64) & low
    x1, x2, x3 = (np.full_like(x0, word & 0xFFFFFFFF) for word in (c1, c2, c3))
    k0, k1 = key
    for _ in range(10):
        a = np.uint64(0xD2511F53) * x0
        b = np.uint64(0xCD9E8D57) * x2
        x0 = (b >> np.uint64(32)) ^ x1 ^ np.uint64(k0)
        x1 = b & low
        x2 = (a >> np.uint64(32)) ^ x3 ^ np.uint64(k1)
        x3 = a & low
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return x0, x1, x2, x3
