"""Each row's largest logit, and the exact Gumbel-max choice (see `kernels.sample`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend import interprets
from .sample_order import (
    NOTHING,
    key_values,
    order_keys,
    pack_pairs,
    pair_ids,
    pair_keys,
)
from .sample_random import GROUP, GROUP_DRAW, GROUP_SHARE, OWN_DRAW, draw, exponential

GROUPS = 32
"""Groups of ids a program looks at."""

INTERPRETED_GROUPS = 4

FIRSTS = 128
"""Groups that a program draws the first arrivals of."""


@triton.jit
def top_kernel(logits, pairs, vocab_size, GROUPS: tl.constexpr):
    """The largest (logit, id) pair of a chunk of a row; pairs [N, chunks] int64."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    ids = chunk * GROUPS * GROUP + tl.arange(0, GROUPS * GROUP)
    inside = ids < vocab_size
    values = tl.load(logits + row.to(tl.int64) * vocab_size + ids, mask=inside, other=0.0)
    found = tl.where(inside, pack_pairs(order_keys(values), ids), NOTHING)
    tl.store(pairs + row * tl.num_programs(1) + chunk, tl.max(found, axis=0))


@triton.jit(do_not_specialize=["temperatures", "streams", "num_rows"])
def firsts_kernel(
    temperatures, streams, firsts, winners, num_rows, num_groups, BLOCK: tl.constexpr
):
    """The first arrival in each group, and which member it is; both [N, num_groups].

    Inside the race every thread would draw for all groups that it has a member of.
    """
    row = tl.program_id(0)
    if tl.load(temperatures + row) == 0.0:
        return
    groups = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    words, picks = draw(streams, row, num_rows, groups, GROUP_DRAW)
    place = row * num_groups + groups
    tl.store(firsts + place, exponential(words) * GROUP_SHARE, mask=groups < num_groups)
    tl.store(winners + place, (picks % GROUP).to(tl.int32), mask=groups < num_groups)


@triton.jit(do_not_specialize=["temperatures", "streams", "floors", "num_rows"])
def race_kernel(
    logits, top_ids, temperatures, streams, floors, all_firsts, all_winners, pairs,
    num_rows, vocab_size, num_groups, GROUPS: tl.constexpr,
):  # fmt: skip
    """The winner (score, id) of a chunk of a row, if it has any that may win the whole row.

    Groups are drawn in the order of what they could score at most, until none can win.
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * vocab_size
    pairs += row * tl.num_programs(1) + chunk
    temperature = tl.load(temperatures + row).to(tl.float32)
    if temperature == 0.0:
        tl.store(pairs, NOTHING)
        return

    # The first arrivals of the chunk's groups, and what they win with.
    groups = chunk * GROUPS + tl.arange(0, GROUPS)
    ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    values = _load_kept(logits, ids, vocab_size, floors, row)
    all_firsts += row * num_groups
    all_winners += row * num_groups
    firsts = tl.load(all_firsts + groups, mask=groups < num_groups, other=1.0)
    winners = tl.load(all_winners + groups, mask=groups < num_groups, other=0)
    lifts = -temperature * tl.log(firsts)
    is_first = tl.arange(0, GROUP)[None, :] == winners[:, None]
    of_firsts = tl.max(tl.where(is_first, values, float("-inf")), axis=1)
    peaks = tl.max(values, axis=1) + lifts
    bar = _score_of(logits, tl.load(top_ids + row), temperature, streams, row, num_rows)
    bar = tl.maximum(bar, tl.max(of_firsts + lifts, axis=0))

    best = tl.full((), NOTHING, tl.int64)
    peak = tl.max(peaks, axis=0)
    slack = 1e-6 * (tl.abs(bar) + 20.0 * temperature)  # more than float32's rounding
    while (peak >= bar - slack) & (peak > float("-inf")):
        index = tl.min(tl.where(peaks == peak, tl.arange(0, GROUPS), GROUPS), axis=0)
        group = chunk * GROUPS + index
        first = tl.load(all_firsts + group)
        is_winner = tl.arange(0, GROUP) == tl.load(all_winners + group)
        members = group * GROUP + tl.arange(0, GROUP)
        own, _ = draw(streams, row, num_rows, members, OWN_DRAW)
        others = tl.where(is_winner, 0.0, exponential(own))
        kept = _load_kept(logits, members, vocab_size, floors, row)
        scores = kept - temperature * tl.log(first + others)
        found = tl.where(kept > float("-inf"), pack_pairs(order_keys(scores), members), NOTHING)
        best = tl.maximum(best, tl.max(found, axis=0))
        bar = tl.maximum(bar, tl.max(scores, axis=0))
        peaks = tl.where(tl.arange(0, GROUPS) == index, float("-inf"), peaks)
        peak = tl.max(peaks, axis=0)
    tl.store(pairs, best)


@triton.jit
def _load_kept(logits, ids, vocab_size, floors, row):
    """Logits of ids; -inf for what is under the floor, outside the vocabulary or NaN."""
    values = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf"))
    if floors is not None:
        kept = values.to(tl.float64) >= tl.load(floors + row)
        return tl.where(kept, values, float("-inf"))
    return tl.where(values == values, values, float("-inf"))


@triton.jit
def _score_of(logits, token_id, temperature, streams, row, num_rows):
    """The score of one id."""
    words, picks = draw(streams, row, num_rows, token_id // GROUP, GROUP_DRAW)
    own, _ = draw(streams, row, num_rows, token_id, OWN_DRAW)
    is_first = (picks % GROUP).to(tl.int64) == token_id % GROUP
    arrival = exponential(words) * GROUP_SHARE + tl.where(is_first, 0.0, exponential(own))
    return tl.load(logits + token_id) - temperature * tl.log(arrival)


@triton.jit
def best_kernel(pairs, fallback_ids, ids, values, num_chunks, CHUNKS: tl.constexpr):
    """The best pair of each row: its id and, where asked for, its value."""
    row = tl.program_id(0)
    chunks = tl.arange(0, CHUNKS)
    inside = chunks < num_chunks
    found = tl.load(pairs + row * num_chunks + chunks, mask=inside, other=NOTHING)
    best = tl.max(found, axis=0)
    token_id = pair_ids(best)
    if fallback_ids is not None:
        token_id = tl.where(best == NOTHING, tl.load(fallback_ids + row), token_id)
    tl.store(ids + row, token_id)
    if values is not None:
        tl.store(values + row, key_values(pair_keys(best)))


def top_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's argmax [N], the lowest id on a tie, and its logit [N]; logits [N, V]."""
    num_rows, vocab_size = logits.shape
    logits = logits.contiguous()
    groups = _num_groups()
    pairs = _chunk_pairs(logits, groups)
    ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    values = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    top_kernel[tuple(pairs.shape)](logits, pairs, vocab_size, groups)
    _launch_best(pairs, None, ids, values)
    return ids, values


def sample_tokens(
    logits: Tensor,
    top_ids: Tensor,
    temperature: Tensor,
    streams: Tensor,
    floors: Tensor | None = None,
) -> Tensor:
    """As `kernels.sample.sample_tokens`, scored in float32."""
    num_rows, vocab_size = logits.shape
    logits = logits.contiguous()
    groups = _num_groups()
    pairs = _chunk_pairs(logits, groups)
    ids = torch.empty_like(top_ids)
    temperature, streams = temperature.contiguous(), streams.contiguous()
    num_groups = triton.cdiv(vocab_size, GROUP.value)
    firsts = torch.empty(num_rows, num_groups, dtype=torch.float32, device=logits.device)
    winners = torch.empty(num_rows, num_groups, dtype=torch.int32, device=logits.device)
    firsts_kernel[(num_rows, triton.cdiv(num_groups, FIRSTS))](
        temperature, streams, firsts, winners, num_rows, num_groups, FIRSTS
    )
    race_kernel[tuple(pairs.shape)](
        logits, top_ids, temperature, streams, floors, firsts, winners, pairs,
        num_rows, vocab_size, num_groups, groups,
    )  # fmt: skip
    _launch_best(pairs, top_ids, ids, None)
    return ids


def _num_groups() -> int:
    return INTERPRETED_GROUPS if interprets() else GROUPS


def _chunk_pairs(logits: Tensor, groups: int) -> Tensor:
    num_rows, vocab_size = logits.shape
    num_chunks = triton.cdiv(vocab_size, groups * GROUP.value)
    return torch.empty(num_rows, num_chunks, dtype=torch.int64, device=logits.device)


def _launch_best(
    pairs: Tensor, fallback_ids: Tensor | None, ids: Tensor, values: Tensor | None
) -> None:
    num_rows, num_chunks = pairs.shape
    width = triton.next_power_of_2(num_chunks)
    best_kernel[(num_rows,)](pairs, fallback_ids, ids, values, num_chunks, width, num_warps=1)
