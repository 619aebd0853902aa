"""The sampling kernels against their twins: the same words, tokens, floors and reports.

The kernels look at 512 ids at a time when they are interpreted, so that 1000 are several tiles.
"""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels import sample as twin
from branchline.kernels.gpu.sample_random import draw, exponential, philox

VOCAB_SIZES = [1, 127, 128, 129, 1000]


def random_logits(num_rows: int, vocab_size: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def random_words(*shape: int) -> Tensor:
    return torch.randint(0, 2**32, shape, generator=torch.Generator().manual_seed(1))


@triton.jit
def philox_kernel(counters, keys, words, SIZE: tl.constexpr):
    """words [4, SIZE] of counters [4, SIZE] and keys [2, SIZE], all int64."""
    at = tl.arange(0, SIZE)
    c0, c1, c2, c3, k0, k1 = (
        tl.load(counters + at).to(tl.uint32),
        tl.load(counters + SIZE + at).to(tl.uint32),
        tl.load(counters + 2 * SIZE + at).to(tl.uint32),
        tl.load(counters + 3 * SIZE + at).to(tl.uint32),
        tl.load(keys + at).to(tl.uint32),
        tl.load(keys + SIZE + at).to(tl.uint32),
    )
    w0, w1, w2, w3 = philox(c0, c1, c2, c3, k0, k1)
    tl.store(words + at, w0.to(tl.int64))
    tl.store(words + SIZE + at, w1.to(tl.int64))
    tl.store(words + 2 * SIZE + at, w2.to(tl.int64))
    tl.store(words + 3 * SIZE + at, w3.to(tl.int64))


@triton.jit
def draw_kernel(streams, num_rows, words, arrivals, KIND: tl.constexpr, SIZE: tl.constexpr):
    """Words 0 and 1 [N, 2, SIZE] of ids 0 to SIZE - 1, and word 0's exponential [N, SIZE]."""
    row = tl.program_id(0)
    ids = tl.arange(0, SIZE)
    word_0, word_1 = draw(streams, row, num_rows, ids, KIND)
    tl.store(words + row * 2 * SIZE + ids, word_0.to(tl.int64))
    tl.store(words + row * 2 * SIZE + SIZE + ids, word_1.to(tl.int64))
    tl.store(arrivals + row * SIZE + ids, exponential(word_0))


def test_philox_gives_the_twins_words(device: torch.device) -> None:
    size = 256
    counters, keys = random_words(4, size), random_words(2, size) ^ 0xFFFF
    counters[:, 0], keys[:, 0] = 0, 0
    counters[:, 1], keys[:, 1] = 0xFFFFFFFF, 0xFFFFFFFF
    words = torch.full((4, size), -1, device=device)
    philox_kernel[(1,)](counters.to(device), keys.to(device), words, size)
    assert torch.equal(words.cpu(), twin.philox(counters, keys))


@pytest.mark.parametrize("kind", [0, 1])
def test_draws_are_the_twins(device: torch.device, kind: int) -> None:
    size, num_rows = 256, 3
    streams = random_words(4, num_rows)
    words = torch.full((num_rows, 2, size), -1, device=device)
    arrivals = torch.full((num_rows, size), math.nan, device=device)
    draw_kernel[(num_rows,)](streams.to(device), num_rows, words, arrivals, kind, size)
    index = torch.arange(size).expand(num_rows, size)
    expected = twin._draw(streams[:, :, None], index, kind)
    assert torch.equal(words.cpu(), expected[:2].transpose(0, 1))
    torch.testing.assert_close(
        arrivals.cpu().double(), twin._exponential(expected[0]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_the_top_is_the_twins(device: torch.device, vocab_size: int) -> None:
    logits = random_logits(20, vocab_size)
    logits[::2] = logits[::2].round()  # ties, and zeros of both signs
    logits[3] = -math.inf
    logits[5], logits[5, -1] = -0.0, 0.0
    logits[7, vocab_size // 2] = math.inf
    logits[9, -1] = math.nan
    logits[11] = -math.nan
    ids, values = ops.top_tokens(logits.to(device))
    expected_ids, expected = twin.top_tokens(logits)
    finite = expected == expected
    assert torch.equal(ids.cpu()[finite], expected_ids[finite])
    torch.testing.assert_close(values.cpu(), expected, rtol=0, atol=0, equal_nan=True)
    assert bool(((ids >= 0) & (ids < vocab_size)).all())


def drawn(logits: Tensor, temperature: Tensor, streams: Tensor, floors: Tensor | None) -> Tensor:
    top_ids = ops.top_tokens(logits)[0]
    return ops.sample_tokens(logits, top_ids, temperature, streams, floors).cpu()


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("has_floors", [False, True])
def test_tokens_are_the_twins(device: torch.device, vocab_size: int, has_floors: bool) -> None:
    num_rows = 64 if vocab_size == 129 and not has_floors else 6
    logits = random_logits(num_rows, vocab_size)
    logits[1] *= 0.01
    logits[2] *= 100
    logits[3, vocab_size // 3 :] = -math.inf
    logits[3, 0] = 0.0
    streams = random_words(4, num_rows)
    temperature = torch.linspace(0.1, 2.0, num_rows, dtype=torch.float64)
    temperature[4] = 0.0
    temperature[5] = 100.0
    floors = None
    if has_floors:
        floors = logits.double().quantile(0.7, dim=1)
        floors[::3] = -math.inf
    tokens = drawn(
        logits.to(device),
        temperature.to(device),
        streams.to(device),
        None if floors is None else floors.to(device),
    )
    top_ids = twin.top_tokens(logits)[0]
    expected = twin.sample_tokens(logits, top_ids, temperature, streams, floors)
    assert tokens.tolist() == expected.tolist()
    assert tokens[4] == top_ids[4]


def test_a_token_depends_on_nothing_but_its_row(device: torch.device) -> None:
    logits, streams = random_logits(6, 300).to(device), random_words(4, 6).to(device)
    temperature = torch.ones(6, dtype=torch.float64, device=device)
    together = drawn(logits, temperature, streams, None)
    for row in range(6):
        one = slice(row, row + 1)
        assert drawn(logits[one], temperature[one], streams[:, one], None) == together[row]


def test_a_bad_row_leaves_the_others_alone(device: torch.device) -> None:
    logits, streams = random_logits(4, 300), random_words(4, 4).to(device)
    ones = torch.ones(4, dtype=torch.float64, device=device)
    filters = (ones, torch.full((4,), 9, device=device), ones * 0.9, ones * 0.01)
    last = slice(3, 4)
    floors = ops.filter_floors(logits[last].to(device), *(column[last] for column in filters))
    good = drawn(logits[last].to(device), ones[last], streams[:, last], floors)
    logits[0, 17], logits[1], logits[2, 299] = math.nan, -math.inf, math.inf
    bad = logits.to(device)
    tokens = drawn(bad, ones, streams, ops.filter_floors(bad, *filters))
    assert tokens[3] == good[0]
    assert bool(((tokens >= 0) & (tokens < 300)).all())


def kept_by_twin(logits: Tensor, filters: tuple[Tensor, ...]) -> Tensor:
    return logits >= twin.filter_floors(logits, *filters)[:, None]


FILTERS = [  # top_k, top_p, min_p
    (0, 1.0, 0.0),
    (-1, 0.9, 0.0),
    (0, 0.999999, 0.0),
    (0, 1e-9, 0.0),
    (0, 0.0, 0.0),
    (1, 1.0, 0.0),
    (3, 1.0, 0.0),
    (50, 0.5, 0.0),
    (10**6, 0.5, 0.0),
    (10**6, 1.0, 0.0),
    (40, 0.8, 0.02),
    (900, 0.99, 1e-5),
    (0, 0.7, 1e-3),
    (0, 1.0, 1.0),
    (5, 1.0, 0.9),
]


@pytest.mark.parametrize(
    ("vocab_size", "has_ties"), [(1, False), (127, True), (128, False), (129, True), (1000, False)]
)
def test_floors_are_the_twins(device: torch.device, vocab_size: int, has_ties: bool) -> None:
    logits = random_logits(len(FILTERS), vocab_size)
    if has_ties:
        logits = logits.round()
        logits[:, vocab_size // 2 + 1 :: 3] = -math.inf
    top_k, top_p, min_p = (torch.tensor(column) for column in zip(*FILTERS, strict=True))
    temperature = torch.linspace(0.2, 1.5, len(FILTERS), dtype=torch.float64)
    filters = (temperature, top_k, top_p.double(), min_p.double())
    on_device = tuple(column.to(device) for column in filters)
    floors = ops.filter_floors(logits.to(device), *on_device).cpu()
    assert torch.equal(logits >= floors[:, None], kept_by_twin(logits, filters))
    assert floors[0] == -math.inf


@pytest.mark.parametrize("top_p", [0.3, 0.9])
def test_floors_of_flat_rows(device: torch.device, top_p: float) -> None:
    """All ids count, and all are equal or nearly so."""
    logits = random_logits(2, 600, spread=1e-3)
    logits[1] = 2.5
    double = torch.ones(2, dtype=torch.float64)
    filters = (double, torch.zeros(2, dtype=torch.int64), double * top_p, double * 0)
    on_device = tuple(column.to(device) for column in filters)
    floors = ops.filter_floors(logits.to(device), *on_device).cpu()
    kept = logits >= floors[:, None]
    assert int(kept[0].sum()) == pytest.approx(600 * top_p, abs=1)
    assert kept[1].all()


def test_edits_are_the_twins(device: torch.device) -> None:
    logits = random_logits(4, 1000)
    where = torch.stack((torch.arange(600) % 4, torch.arange(600)))
    changes = torch.randn(3, 600, generator=torch.Generator().manual_seed(2))
    changes[0, 5] = -math.inf
    changes[1] = changes[1].abs() + 0.1
    wide = torch.full((4, 1024), math.nan)
    wide[:, :1000] = logits
    wide = wide.to(device)
    ops.edit_logits(wide[:, :1000], where.to(device), changes.to(device))
    expected = logits.clone()
    twin.edit_logits(expected, where, changes)
    assert not torch.equal(expected, logits)
    torch.testing.assert_close(wide[:, :1000].cpu(), expected, rtol=1e-6, atol=1e-6)
    assert bool(wide[:, 1000:].isnan().all())
    ops.edit_logits(wide, where[:, :0].to(device), changes[:, :0].to(device))


@pytest.mark.parametrize("vocab_size", [*VOCAB_SIZES, 1024, 2500])
def test_token_masks_are_the_twins(device: torch.device, vocab_size: int) -> None:
    wide = torch.full((5, vocab_size + 40), 7.0)
    wide[:, :vocab_size] = random_logits(5, vocab_size)
    rows = torch.tensor([3, 0, 4])
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (3, -(-vocab_size // 32)), generator=generator)
    bits[1] = -1
    bits[2] = 0
    expected = wide.clone()
    for row, words in zip(rows.tolist(), bits.tolist(), strict=True):
        for token_id in range(vocab_size):
            if not words[token_id // 32] >> token_id % 32 & 1:
                expected[row, token_id] = -math.inf
    packed = bits.to(torch.int32)
    for op, place in ((ops.apply_token_mask, device), (twin.apply_token_mask, "cpu")):
        masked = wide.to(place, copy=True)
        op(masked[:, :vocab_size], rows.to(place), packed.to(place))
        assert torch.equal(masked.cpu(), expected)
        op(masked[:, :vocab_size], rows[:0].to(place), packed[:0].to(place))


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_reports_are_the_twins(device: torch.device, vocab_size: int) -> None:
    logits = random_logits(5, vocab_size)
    logits[1] = logits[1].round()
    logits[2] = 1.0
    logits[3, 1:] = -math.inf
    token_ids = torch.tensor([0, vocab_size // 2, vocab_size - 1, 0, vocab_size // 3])
    counts = [3, 20, 4, 2, 0]
    ours = ops.report_logprobs(logits.to(device), token_ids.to(device), counts)
    theirs = twin.report_logprobs(logits, token_ids, counts)
    torch.testing.assert_close(ours[0].cpu(), theirs[0], rtol=0, atol=2e-6)
    assert ours[1].tolist() == theirs[1].tolist()
    for row, count in enumerate(counts):
        ids, logprobs = best_of(ours, row, count)
        expected_ids, expected = best_of(theirs, row, count)
        assert ids == expected_ids
        assert logprobs == pytest.approx(expected, abs=2e-6)


def best_of(report: list[Tensor], row: int, count: int) -> tuple[list[int], list[float]]:
    """As the sampler reads a report."""
    rows, ids, logprobs = (part.tolist() for part in report[2:])
    entries = [(-p, i) for r, i, p in zip(rows, ids, logprobs, strict=True) if r == row]
    entries = sorted(entry for entry in entries if entry[0] < math.inf)[:count]
    return [i for _, i in entries], [-p for p, _ in entries]
