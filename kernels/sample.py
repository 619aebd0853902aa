"""Choosing tokens: a counter-based generator, exact Gumbel-max sampling, and filters.

A row's token is ``argmax(logit + temperature * noise)`` with one standard Gumbel variable
for each id, so that its probability is softmax(logit / temperature). The noise of an id is
a pure function of its row's stream (seed, position, choice index), whatever the batch or
the vocabulary's size, and comes from Philox4x32-10 (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", 2011) with the key (low, high word of the seed).

Drawing noise for a whole vocabulary would cost more than a small model's step. In the view
of an exponential race, noise = -log(arrival) and the arrivals are exponential. The first
of the `GROUP` arrivals in an aligned group of ids is exponential with rate `GROUP`, each
member is first with equal chance, and, since exponentials have no memory, every other
arrival is the first one plus a fresh exponential:

    first(group)  = E(word 0 of Philox(group, position, choice index, 1)) / GROUP
    winner(group) = word 1 of the same block, modulo GROUP
    arrival(id)   = first(group)                                            if id is the winner
                  = first(group) + E(word 0 of Philox(id, position, choice index, 0))    if not
    E(word)       = -log((2 * (word >> 9) + 1) / 2**24)

So one draw a group bounds all of its members, and only ids that can still win are drawn.
The result is that of drawing them all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GROUP = 128
"""Ids that share one first draw; part of the definition of the noise."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10

_SLACK = 1e-6  # far above a float64 score's rounding; it only admits more candidates
_WIDTHS = (256, 8192)  # how many of a row's largest logits filters look at before all
_WEIGHT_UNIT = 2.0**42


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10: counter [4, ...] and key [2, ...], broadcastable, to words [4, ...].

    All are int64 tensors of 32-bit words; the same blocks as Random123 and ``tl.philox``.
    """
    # Pairs of words share their operations: (c0, c2) and (c1, c3). Only the low halves of
    # `right` count, so it is masked once, at the end.
    left, right = counter[0::2], counter[1::2]
    pair = (2, *(1 for _ in counter.shape[1:]))
    multipliers = torch.tensor(_MULTIPLIERS, device=counter.device).view(pair)
    key_steps = torch.tensor(_KEY_STEPS, device=counter.device).view(pair)
    for round_index in range(_NUM_ROUNDS):
        if round_index:
            key = key + key_steps
        product = (left * multipliers).flip(0)
        left = product >> 32
        left.bitwise_xor_(right).bitwise_xor_(key).bitwise_and_(_MASK)
        right = product
    return torch.stack((left[0], right[0] & _MASK, left[1], right[1] & _MASK))


def top_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's argmax [N], the lowest id on a tie, and its logit [N]; logits [N, V].

    A row with a NaN gives a NaN. Maxima of groups vectorise where an argmax does not.
    """
    vocab_size = logits.shape[1]
    group = _group_maxima(logits).argmax(1, keepdim=True)
    ids = group * GROUP + torch.arange(GROUP, device=logits.device)
    ids.clamp_(max=vocab_size - 1)
    values, lanes = logits.gather(1, ids).max(1, keepdim=True)
    return ids.gather(1, lanes)[:, 0], values[:, 0]


def gumbel_noise(streams: Tensor, ids: Tensor) -> Tensor:
    """Noise [...] float64 of ids [...] under streams [4, ...] (see `sample_tokens`)."""
    group = torch.div(ids, GROUP, rounding_mode="floor")
    words = _draw(
        streams.unsqueeze(1),
        torch.stack((group, ids)),
        torch.arange(1, -1, -1, device=ids.device).view(2, *(1 for _ in ids.shape)),
    )
    is_winner = words[1, 0] % GROUP == ids - group * GROUP
    others = _exponential(words[0, 1]).masked_fill_(is_winner, 0.0)
    return -torch.log(_exponential(words[0, 0]) / GROUP + others)


def sample_tokens(
    logits: Tensor,
    top_ids: Tensor,
    temperature: Tensor,
    streams: Tensor,
    floors: Tensor | None = None,
) -> Tensor:
    """Ids [N] of ``argmax(logits + temperature * gumbel_noise)`` over logits at or above floors.

    logits [N, V] float32; top_ids [N], each row's argmax; temperature [N] float64;
    streams [4, N] int64: low and high word of the seed, position, choice index; floors [N]
    float64. The lowest id wins an exact tie. A row without a finite maximum gets its top id, and
    so does one of temperature 0.
    """
    if floors is None:
        floors = torch.full_like(temperature, -math.inf)
    rows = torch.nonzero(temperature)[:, 0]
    if not len(rows):
        return top_ids
    if len(rows) == len(logits):
        return _race(logits, top_ids, temperature, streams, floors)
    some = (logits[rows], top_ids[rows], temperature[rows], streams[:, rows], floors[rows])
    return top_ids.index_copy(0, rows, _race(*some))


def _race(
    logits: Tensor, top_ids: Tensor, temperature: Tensor, streams: Tensor, floors: Tensor
) -> Tensor:
    """`sample_tokens` of rows that all have a temperature."""
    num_rows, vocab_size = logits.shape
    top_logits = logits.gather(1, top_ids[:, None])[:, 0]
    bar = top_logits + temperature * gumbel_noise(streams, top_ids)
    rows, ids = _candidates(logits, bar, temperature, streams, floors)

    values = logits[rows, ids].to(torch.float64)
    values += temperature[rows] * gumbel_noise(streams[:, rows], ids)
    best = values.new_full((num_rows,), -math.inf)
    best.scatter_reduce_(0, rows, values, "amax")
    ids = ids.masked_fill(values < best[rows], vocab_size)
    winners = top_ids.new_full((num_rows,), vocab_size).scatter_reduce_(0, rows, ids, "amin")
    return torch.where(winners < vocab_size, winners, top_ids)


def _candidates(
    logits: Tensor, bar: Tensor, temperature: Tensor, streams: Tensor, floors: Tensor
) -> tuple[Tensor, Tensor]:
    """(rows [C], ids [C]) of all ids that may score ``bar`` [N] or more."""
    vocab_size = logits.shape[1]
    peaks = _group_maxima(logits)
    groups = torch.arange(peaks.shape[1], device=logits.device)
    words = _draw(streams[:, :, None], groups.expand_as(peaks), 1)
    lift = temperature[:, None] * -torch.log(_exponential(words[0]) / GROUP)

    winner_ids = groups * GROUP + words[1] % GROUP
    winners = logits.gather(1, winner_ids.clamp(max=vocab_size - 1))
    out = (winner_ids >= vocab_size) | (winners < floors[:, None])
    bar = torch.maximum(bar, (winners + lift).masked_fill_(out, -math.inf).amax(1)) - _SLACK

    least = torch.maximum(bar[:, None] - lift, floors[:, None])  # the logit that a member needs
    rows, group_ids = torch.nonzero(peaks >= least, as_tuple=True)
    # Whole windows of a flat view copy fast. A row's last one may reach back into the group
    # before, which only adds candidates.
    width = min(GROUP, vocab_size)
    starts = (group_ids * GROUP).clamp(max=vocab_size - width)
    members = logits.reshape(-1).unfold(0, width, 1)[rows * vocab_size + starts]
    able = members >= least[rows, group_ids][:, None]
    which, lanes = torch.nonzero(able, as_tuple=True)
    return rows[which], starts[which] + lanes


def _group_maxima(logits: Tensor) -> Tensor:
    """[N, V] -> [N, ceil(V / GROUP)]; the last group may be short."""
    whole = logits.shape[1] // GROUP * GROUP
    peaks = logits[:, :whole].view(len(logits), -1, GROUP).amax(-1) if whole else logits[:, :0]
    if whole == logits.shape[1]:
        return peaks
    return torch.cat((peaks, logits[:, whole:].amax(1, keepdim=True)), dim=1)


def _draw(streams: Tensor, index: Tensor, kind: Tensor | int) -> Tensor:
    """Philox words [4, ...] for counters (index, position, choice index, kind)."""
    counter = torch.empty((4, *index.shape), dtype=torch.int64, device=index.device)
    counter[0] = index
    counter[1:3] = streams[2:]
    counter[3] = kind
    return philox(counter, streams[:2])


def _exponential(words: Tensor) -> Tensor:
    # 24 bits, never 0 or 1: exact in float32 too, so that a float32 kernel draws the same.
    return -torch.log(((words >> 9) * 2 + 1).to(torch.float64) * 2.0**-24)


def filter_floors(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """The least logit [N] float64 that each row's filters keep, in vLLM's order.

    Of softmax(logits / temperature): min_p drops what is under min_p times the largest
    probability; top_k keeps the k largest of the rest; top_p keeps the fewest of those, the
    largest first, that hold a share of top_p. An id equal to a kept one is kept too, so
    the outcome depends on no sort's order, and a floor describes it.

    logits [N, V] float32; temperature, top_p, min_p [N] float64; top_k [N] int64; off:
    top_k <= 0, top_p >= 1, min_p <= 0. A row whose filters are all off has -inf.
    """
    floors = torch.full_like(temperature, -math.inf)
    rest = torch.nonzero((top_k > 0) | (top_p < 1) | (min_p > 0))[:, 0]
    for width in (*_WIDTHS, logits.shape[1]):
        if not len(rest):
            break
        some = logits if len(rest) == len(logits) else logits[rest]
        values = some.topk(min(width, logits.shape[1]), dim=1).values
        arguments = (temperature[rest], top_k[rest], top_p[rest], min_p[rest])
        floors[rest], resolved = _floors_of_sorted(values, some, *arguments)
        rest = rest[~resolved]
    return floors


def _floors_of_sorted(
    values: Tensor, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Floors [N] from each row's largest values [N, C], descending, and whether they are final."""
    width, vocab_size = values.shape[1], logits.shape[1]
    wide = values.to(torch.float64)
    top = wide[:, 0]
    floors = torch.where(min_p > 0, top + temperature * torch.log(min_p), -math.inf)
    has_k = (top_k > 0) & (top_k < vocab_size)
    kth = wide.gather(1, (top_k.clamp(1, width) - 1)[:, None])[:, 0]
    floors = torch.where(has_k, torch.maximum(floors, kth), floors)
    # Closed: everything at or above the floor is among the values, ties included.
    closed = wide[:, -1] < floors if width < vocab_size else torch.ones_like(has_k)
    is_open = ~has_k & (min_p <= 0)  # nothing is dropped yet

    nucleus = top_p < 1
    weights = _weights(values, values[:, :1], temperature)
    weights.masked_fill_(wide < floors[:, None], 0)
    totals = weights.sum(1)
    beyond = torch.nonzero(nucleus & is_open & ~closed)[:, 0]
    if len(beyond):
        totals[beyond] = _weights(logits[beyond], values[beyond, :1], temperature[beyond]).sum(1)
    limits = (top_p * totals.to(torch.float64)).ceil().to(torch.int64).clamp(min=1)
    num_kept = (weights.cumsum(1) - weights < limits[:, None]).sum(1).clamp(min=1)
    last = wide.gather(1, (num_kept - 1)[:, None])[:, 0]

    # Without top_p a floor needs no sums, only its k-th value.
    known = torch.where(nucleus, is_open & (num_kept < width), ~has_k | (top_k <= width))
    return torch.where(nucleus, torch.maximum(floors, last), floors), closed | known


def _weights(values: Tensor, top: Tensor, temperature: Tensor) -> Tensor:
    """exp((values - top) / temperature) as int64 multiples of 2**-42.

    Integers, because their sums are exact in any order: the same on any device and batch.
    """
    scaled = (values - top).div_(temperature[:, None].to(values.dtype))
    return scaled.exp_().mul_(_WEIGHT_UNIT).to(torch.int64)


def edit_logits(logits: Tensor, where: Tensor, changes: Tensor) -> None:
    """logits[row, id] = penalised(logits[row, id] + bias) - amount, in place, no id of a row twice.

    ``penalised`` divides what is over zero by ``repetition`` and multiplies the rest.

    logits [N, V] float32; where [2, E] int64: row, id; changes [3, E] float32: bias, repetition,
    amount.
    """
    row, column = where
    bias, repetition, amount = changes
    values = logits[row, column] + bias
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[row, column] = values - amount


def apply_token_mask(logits: Tensor, rows: Tensor, bits: Tensor) -> None:
    """logits[rows[m], id] = -inf, in place, where bit ``id % 32`` of bits[m, id // 32] is clear.

    logits [N, V] float32; rows [M] int64, none twice; bits [M, ceil(V / 32)] int32.
    """
    lanes = torch.arange(32, dtype=torch.int32, device=bits.device)
    allowed = (bits[:, :, None] >> lanes & 1).flatten(1)[:, : logits.shape[1]]
    masked = logits.index_select(0, rows).masked_fill_(allowed == 0, -math.inf)
    logits.index_copy_(0, rows, masked)


def report_logprobs(logits: Tensor, token_ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Logprob [N] and rank [N] of token_ids [N], and each row's ``counts`` largest logprobs.

    These are three tensors, [C] each: row, id and logprob, in no order. There may be more of a row
    than its count, and some of -inf, which do not count; of equal logits the lowest ids are there.

    logits [N, V] float32. A rank is 1 plus the number of larger logits.
    """
    vocab_size = logits.shape[1]
    logprobs = logits.log_softmax(-1)
    chosen = token_ids[:, None]
    ranks = (logits > logits.gather(1, chosen)).sum(1) + 1
    # All that tie with the last of the best go along: which of them count is for the reader.
    widest = min(max(max(counts), 1), vocab_size)
    last = torch.tensor([min(max(n, 1), widest) - 1 for n in counts]).to(logits.device)
    bar = logits.topk(widest, dim=1).values.gather(1, last[:, None])
    wanted = torch.tensor([n > 0 for n in counts]).to(logits.device)[:, None]
    # An id that a row's vocabulary does not have is at -inf, and never among the best.
    found = torch.nonzero((logits >= bar) & wanted & (logits > -math.inf), as_tuple=True)
    return [logprobs.gather(1, chosen)[:, 0], ranks, *found, logprobs[found]]
