"""The generator and the Gumbel-max choice, against plain float64 and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sampling_rule
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from branchline.kernels import ops
from branchline.kernels.sample import GROUP, gumbel_noise, philox

# Published in Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def make_streams(seeds: list[int], position: int = 5, choice_index: int = 0) -> Tensor:
    low = [seed & 0xFFFFFFFF for seed in seeds]
    high = [seed >> 32 & 0xFFFFFFFF for seed in seeds]
    size = len(seeds)
    return torch.tensor([low, high, [position] * size, [choice_index] * size])


def random_logits(num_rows: int, vocab_size: int, spread: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def all_noise(streams: Tensor, vocab_size: int) -> Tensor:
    ids = torch.arange(vocab_size).expand(streams.shape[1], vocab_size)
    return gumbel_noise(streams[:, :, None], ids)


def sample(
    logits: Tensor, streams: Tensor, temperature: float = 1.0, floors: Tensor | None = None
) -> Tensor:
    temperatures = torch.full((len(logits),), temperature, dtype=torch.float64)
    return ops.sample_tokens(logits, ops.top_tokens(logits)[0], temperatures, streams, floors)


def filter_floors(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    def column(value: float) -> Tensor:
        return torch.full((len(logits),), value, dtype=torch.float64, device=logits.device)

    top_ks = torch.full((len(logits),), top_k, device=logits.device)
    return ops.filter_floors(logits, column(1.0), top_ks, column(top_p), column(min_p))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    words = philox(torch.tensor(counter)[:, None], torch.tensor(key)[:, None])
    assert tuple(words[:, 0].tolist()) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_rules_own_philox_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = sampling_rule.philox4x32_10(np.array([counter[0]]), *counter[1:], key=key)
    assert tuple(int(word[0]) for word in words) == expected


@settings(max_examples=30)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    position=st.integers(0, 2**31),
    choice_index=st.integers(0, 2**31),
)
def test_noise_is_that_of_the_rule(seed: int, position: int, choice_index: int) -> None:
    ours = all_noise(make_streams([seed], position, choice_index), 2 * GROUP + 5)[0]
    theirs = sampling_rule.noise(2 * GROUP + 5, seed, position, choice_index)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


def test_noise_has_the_gumbel_distribution() -> None:
    """Kolmogorov-Smirnov; the bound is crossed once in 1e8 by a sound generator."""
    values = np.sort(all_noise(make_streams(list(range(100))), 2000).numpy().ravel())
    expected = np.exp(-np.exp(-values))
    steps = np.arange(len(values) + 1) / len(values)
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert distance < math.sqrt(math.log(2e8) / 2 / len(values))


def test_noise_of_ids_in_a_group_is_independent() -> None:
    """A group's first draw is shared: neither neighbours nor maxima may show it."""
    noise = all_noise(make_streams(list(range(5_000))), GROUP).numpy()
    uniform = np.exp(-np.exp(-noise))
    bound = 5.5 / math.sqrt(len(noise))
    correlations = np.corrcoef(uniform[:, :20].T)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < bound
    largest = uniform.max(axis=1) ** GROUP  # uniform again if the members are independent
    assert abs(largest.mean() - 0.5) < bound
    winners = np.bincount(uniform.argmax(axis=1), minlength=GROUP)
    assert chi_square(winners, np.full(GROUP, 1 / GROUP)) < chi_square_bound(GROUP - 1)


@pytest.mark.parametrize("change", ["seed", "high word", "position", "choice_index"])
def test_streams_decorrelate(change: str) -> None:
    streams = make_streams([42, 42], position=9, choice_index=3)
    streams[["seed", "high word", "position", "choice_index"].index(change), 1] += 1
    first, second = np.exp(-np.exp(-all_noise(streams, 20_000).numpy()))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5.5 / math.sqrt(20_000)
    assert (first == second).mean() < 0.01


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_bound(freedom: int) -> float:
    """Wilson and Hilferty's quantile at 5.5 sigma: crossed about once in 5e7."""
    return float(freedom * (1 - 2 / (9 * freedom) + 5.5 * math.sqrt(2 / (9 * freedom))) ** 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_have_the_softmax_distribution(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 2.5, 0.5, -3.0])
    probabilities = (logits.double() / temperature).softmax(0).numpy()
    seeds = [int(x) for x in np.random.default_rng(1).integers(0, 2**63, 40_000)]
    tokens = sample(logits.expand(len(seeds), -1), make_streams(seeds), temperature)
    counts = np.bincount(tokens.numpy(), minlength=len(logits))
    assert chi_square(counts, probabilities) < chi_square_bound(len(logits) - 1)


def test_tokens_of_many_groups_have_the_softmax_distribution() -> None:
    """Positions as streams this time, and groups that only together have the mass."""
    logits = random_logits(1, 3 * GROUP + 7, spread=1.5)
    probabilities = logits[0].double().softmax(0).numpy()
    streams = make_streams([7] * 20_000)
    streams[2] = torch.arange(20_000)
    tokens = sample(logits.expand(20_000, -1), streams)
    counts = np.bincount(tokens.numpy(), minlength=logits.shape[1])
    order = np.argsort(probabilities)
    bins = np.array_split(order, 60)
    counted = np.array([counts[ids].sum() for ids in bins])
    expected = np.array([probabilities[ids].sum() for ids in bins])
    common = expected * 20_000 > 5
    counted = np.append(counted[common], counted[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert chi_square(counted, expected) < chi_square_bound(len(counted) - 1)


@settings(max_examples=60)
@given(
    num_rows=st.integers(1, 5),
    vocab_size=st.sampled_from([1, 2, 7, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP, 1000, 5000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 1000.0]),
    temperature=st.sampled_from([1e-4, 0.3, 1.0, 2.0, 100.0]),
    share=st.sampled_from([0.0, 0.5, 0.99]),
    seed=st.integers(0, 2**32),
)
def test_pruning_changes_nothing(
    num_rows: int, vocab_size: int, spread: float, temperature: float, share: float, seed: int
) -> None:
    """The token is that of noise over the whole vocabulary, with ids forbidden and floors."""
    logits = random_logits(num_rows, vocab_size, spread, seed)
    logits[:, 1:][torch.rand(num_rows, vocab_size - 1) < share] = -math.inf
    floors = logits[:, 0].double().clone()
    floors[::2] = -math.inf
    streams = make_streams([seed + row for row in range(num_rows)])
    scores = logits + temperature * all_noise(streams, vocab_size)
    expected = scores.masked_fill(logits < floors[:, None], -math.inf).argmax(1)
    assert sample(logits, streams, temperature, floors).tolist() == expected.tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_alone_or_in_any_batch_gives_the_same_token(threads: int) -> None:
    logits = random_logits(24, 5003, spread=2.0)
    streams = make_streams(list(range(24)))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        floors = filter_floors(logits, top_k=3000, top_p=0.8, min_p=1e-4)
        together = sample(logits, streams, floors=floors).tolist()
        for row in range(24):
            one = logits[row : row + 1].clone()
            floor = filter_floors(one, top_k=3000, top_p=0.8, min_p=1e-4)
            assert floor.item() == floors[row].item()
            assert sample(one, streams[:, row : row + 1], floors=floor).tolist() == [together[row]]
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        shuffled = sample(logits[order], streams[:, order], floors=floors[order])
        assert shuffled.tolist() == [together[row] for row in order]
    finally:
        torch.set_num_threads(num_threads)


def test_a_row_without_a_temperature_takes_its_top() -> None:
    logits, streams = random_logits(6, 1000, spread=1.0), make_streams(list(range(6)))
    drawn = sample(logits, streams)
    temperatures = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    top_ids = ops.top_tokens(logits)[0]
    tokens = ops.sample_tokens(logits, top_ids, temperatures, streams)
    assert tokens.tolist() == torch.where(temperatures > 0, drawn, top_ids).tolist()
    assert (drawn != top_ids)[temperatures == 0].all()
    tokens = ops.sample_tokens(logits, top_ids, temperatures * 0, streams)
    assert torch.equal(tokens, top_ids)


def test_a_bad_row_leaves_the_others_alone() -> None:
    logits = random_logits(6, 1000, spread=2.0)
    streams = make_streams(list(range(6)))
    filters = {"top_k": 5, "top_p": 0.9, "min_p": 0.01}
    good = sample(logits, streams, floors=filter_floors(logits, **filters)).tolist()
    bad = logits.clone()
    bad[0], bad[1], bad[2, 17], bad[3, 999] = math.nan, -math.inf, math.nan, math.inf
    tokens = sample(bad, streams, floors=filter_floors(bad, **filters)).tolist()
    assert tokens[4:] == good[4:]
    assert all(0 <= token < 1000 for token in tokens)


@pytest.mark.parametrize("vocab_size", [1, 5, GROUP, GROUP + 3, 5 * GROUP])
def test_top_tokens_is_argmax_with_the_lowest_id(vocab_size: int) -> None:
    logits = random_logits(200, vocab_size, spread=1.0).round()  # many ties
    ids, values = ops.top_tokens(logits)
    expected = [int(np.argmax(row)) for row in logits.numpy()]
    assert ids.tolist() == expected
    assert torch.equal(values, logits.amax(1))
    logits[3, -1] = math.nan
    assert math.isnan(ops.top_tokens(logits)[1][3])


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 260])
def test_a_mask_leaves_the_ids_of_its_set_bits(vocab_size: int) -> None:
    logits = random_logits(4, vocab_size, spread=1.0)
    allowed = [set(range(0, vocab_size, 3)), set(), set(range(vocab_size))]
    words = [
        [sum(1 << bit for bit in range(32) if word * 32 + bit in ids) for word in range(9)]
        for ids in allowed
    ]
    bits = torch.tensor(words, dtype=torch.int64)[:, : -(-vocab_size // 32)].to(torch.int32)
    masked = logits.clone()
    ops.apply_token_mask(masked, torch.tensor([2, 0, 3]), bits)
    assert torch.equal(masked[1], logits[1])
    for row, ids in zip((2, 0, 3), allowed, strict=True):
        expected = [logits[row, i] if i in ids else -math.inf for i in range(vocab_size)]
        assert masked[row].tolist() == expected


@pytest.mark.gpu
def test_a_gpu_chooses_the_same_tokens() -> None:
    logits = random_logits(32, 50_001, spread=2.0)
    streams = make_streams(list(range(32)))
    tokens = []
    for device in ("cpu", "cuda"):
        moved = logits.to(device)
        floors = filter_floors(moved, top_k=20_000, top_p=0.9, min_p=1e-5)
        temperature = torch.ones(32, dtype=torch.float64, device=device)
        top_ids = ops.top_tokens(moved)[0]
        chosen = ops.sample_tokens(moved, top_ids, temperature, streams.to(device), floors)
        tokens.append(chosen.tolist())
    assert tokens[0] == tokens[1]
