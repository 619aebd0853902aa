"""The sampler as a whole, row by row against the plain rule, and what it says of bad rows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling_rule import Context, decide
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from branchline.engine.grammar.masks import TokenMasks
from branchline.engine.sampler import NO_TOKEN_ID, NO_TOKEN_LEFT, Sampler, SamplingRow
from branchline.engine.types import SamplingParams, TokenLogprobs

VOCAB_SIZE = 300
EOS = 299
GREEDY = SamplingParams(temperature=0.0)
PLAIN = SamplingParams(temperature=1.0, seed=1)


def make_row(
    params: SamplingParams,
    prompt: tuple[int, ...] = (1, 2, 3),
    output: tuple[int, ...] = (4, 4, 5),
    choice_index: int = 0,
) -> SamplingRow:
    return SamplingRow(
        params=params,
        position=len(prompt) + len(output),
        choice_index=choice_index,
        prompt_token_ids=list(prompt),
        output_token_ids=list(output),
        eos_token_ids=[EOS],
    )


def make_logits(num_rows: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, VOCAB_SIZE, generator=generator) * spread


def sample(logits: Tensor, rows: list[SamplingRow]) -> list[int]:
    sampled = Sampler().sample(logits.clone(), rows)
    assert not sampled.errors
    return sampled.token_ids


def expected(logits: Tensor, row: SamplingRow) -> list[int]:
    """What the rule accepts, if float32 moves logits by no more than 1e-4."""
    context = Context(
        row.prompt_token_ids, row.output_token_ids, row.eos_token_ids, row.choice_index
    )
    return decide(logits.numpy(), row.params, context, margin=1e-4).acceptable


token_ids = st.integers(0, VOCAB_SIZE - 1)
sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.2, 0.8, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([-1, 0, 1, 5, 280]),
    min_p=st.sampled_from([0.0, 0.02, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.5]),
    presence_penalty=st.sampled_from([0.0, -1.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5, 1.5]),
    logit_bias=st.dictionaries(token_ids, st.floats(-20, 20), max_size=3),
    seed=st.integers(-(2**63), 2**64 - 1),
    stop_token_ids=st.lists(token_ids, max_size=2).map(tuple),
    min_tokens=st.sampled_from([0, 3, 4]),
    logprobs=st.sampled_from([None, 0, 3]),
)
sequences = st.lists(token_ids, max_size=8).map(tuple)
any_row = st.builds(
    make_row,
    sampling_params,
    prompt=st.lists(token_ids, min_size=1, max_size=8).map(tuple),
    output=sequences,
    choice_index=st.integers(0, 9),
)


@settings(max_examples=150)
@given(rows=st.lists(any_row, min_size=1, max_size=6), seed=st.integers(0, 10_000))
def test_a_mixed_batch_follows_the_rule_row_by_row(rows: list[SamplingRow], seed: int) -> None:
    logits = make_logits(len(rows), seed)
    tokens = sample(logits, rows)
    for i, row in enumerate(rows):
        assert tokens[i] in expected(logits[i], row)
        assert sample(logits[i : i + 1], [row]) == [tokens[i]]  # alone as in the batch


# For each field the sampler reads: parameters it works on, and a value that must matter.
EFFECTS: dict[str, tuple[SamplingParams, Any]] = {
    "temperature": (PLAIN, 0.0),
    "top_p": (PLAIN, 0.2),
    "top_k": (PLAIN, 2),
    "min_p": (PLAIN, 0.5),
    "seed": (PLAIN, 2),
    "repetition_penalty": (GREEDY, 3.0),
    "presence_penalty": (GREEDY, 2.0),
    "frequency_penalty": (GREEDY, 1.0),
    "logit_bias": (GREEDY, {7: 100.0}),
    "min_tokens": (GREEDY, 4),
    "stop_token_ids": (replace(GREEDY, min_tokens=4), (50,)),
    "logprobs": (GREEDY, 1),
    "allowed_token_ids": (GREEDY, (7, 9)),
    "bad_word_ids": (GREEDY, ((5, 4),)),
}
ELSEWHERE = {  # ends and shapes the output: the scheduler's and the server's part
    "stop",
    "include_stop_str_in_output",
    "ignore_eos",
    "max_tokens",
    "skip_special_tokens",
    "n",
    "prompt_logprobs",
    "grammar",  # comes as a mask
}


def test_every_field_is_accounted_for() -> None:
    names = {field.name for field in dataclasses.fields(SamplingParams)}
    assert names == EFFECTS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", EFFECTS)
def test_every_field_changes_something(name: str) -> None:
    params, value = EFFECTS[name]
    logits = make_logits(64)
    logits[:, [1, 4, EOS, 50]] += torch.tensor([5.0, 6.0, 4.5, 4.0])
    changed = replace(params, **{name: value})

    def outcome(params: SamplingParams) -> tuple[list[int], list[TokenLogprobs | None]]:
        rows = [make_row(params, choice_index=i) for i in range(64)]
        sampled = Sampler().sample(logits.clone(), rows)
        return sampled.token_ids, sampled.logprobs

    assert outcome(changed) != outcome(params)
    assert outcome(params) == outcome(params)


def test_greedy_takes_the_largest_and_of_equals_the_lowest_id() -> None:
    logits = make_logits(3)
    logits[1, [200, 40, 41]] = 50.0
    rows = [make_row(GREEDY), make_row(GREEDY), make_row(replace(GREEDY, temperature=1e-9))]
    assert sample(logits, rows) == [int(logits[0].argmax()), 40, int(logits[2].argmax())]


def test_seeds_count_modulo_two_to_the_64() -> None:
    logits = make_logits(1, spread=0.5)

    def tokens(seed: int) -> list[int]:
        rows = [make_row(replace(PLAIN, seed=seed), choice_index=i) for i in range(32)]
        return sample(logits.expand(32, -1), rows)

    assert tokens(-1) == tokens(2**64 - 1)
    assert tokens(5) == tokens(5 + 2**64)
    different = [tokens(seed) for seed in (0, 1, 2**31, 2**32, 2**63, -1)]
    assert len({tuple(t) for t in different}) == len(different)


def test_position_and_choice_index_pick_the_stream() -> None:
    logits = make_logits(1, spread=0.5).expand(64, -1)
    by_choice = sample(logits, [make_row(PLAIN, choice_index=i) for i in range(64)])
    by_position = sample(logits, [make_row(PLAIN, prompt=(1,) * (i + 1)) for i in range(64)])
    assert len(set(by_choice)) > 40
    assert len(set(by_position)) > 40
    assert by_choice != by_position
    # Which of the tokens are prompt and which output does not matter to the stream.
    moved = [make_row(PLAIN, prompt=(1,), output=(2,) * 5, choice_index=i) for i in range(64)]
    assert sample(logits, moved) == by_choice


def test_min_tokens_holds_back_every_way_to_stop() -> None:
    params = replace(GREEDY, min_tokens=3, stop_token_ids=(8,))
    logits = make_logits(2)
    logits[:, EOS], logits[:, 8] = 30.0, 40.0
    early, late = make_row(params, output=(5, 5)), make_row(params, output=(5, 5, 5))
    tokens = sample(logits, [early, late])
    assert tokens[0] not in (EOS, 8)
    assert tokens[1] == 8


def test_penalties_stay_in_their_row_and_count_what_they_should() -> None:
    logits = torch.zeros(5, VOCAB_SIZE)
    logits[:, 10], logits[:, 20], logits[:, 30] = 10.0, 9.0, 8.0
    output = (10,) * 5000 + (20,)
    rows = [
        make_row(GREEDY, prompt=(10, 20), output=output),
        make_row(replace(GREEDY, repetition_penalty=1.3), prompt=(10,), output=(20,)),
        make_row(replace(GREEDY, presence_penalty=1.5), prompt=(20,), output=output),
        make_row(replace(GREEDY, frequency_penalty=0.01), prompt=(20,), output=output),
        make_row(GREEDY, prompt=(10, 20), output=output),
    ]
    assert sample(logits, rows) == [10, 30, 10, 20, 10]
    rows[2] = make_row(replace(GREEDY, presence_penalty=1.5), prompt=(20,), output=(10,))
    assert sample(logits, rows)[2] == 20


def test_ids_outside_the_vocabulary_do_not_count() -> None:
    """A prompt may hold an adapter's added tokens; row 1 must not feel row 0's."""
    params = replace(GREEDY, repetition_penalty=2.0, logit_bias={VOCAB_SIZE + 1: 100.0})
    logits = make_logits(2)
    rows = [make_row(params, prompt=(VOCAB_SIZE + 3,), output=()), make_row(GREEDY)]
    assert sample(logits, rows) == logits.argmax(1).tolist()


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = make_logits(3)
    params = replace(PLAIN, temperature=1.7, logit_bias={9: 50.0}, repetition_penalty=2.0)
    counts = (3, 0, VOCAB_SIZE + 5)
    rows = [make_row(replace(params, logprobs=count)) for count in counts]
    sampled = Sampler().sample(logits.clone(), rows)
    for i, (count, entry) in enumerate(zip(counts, sampled.logprobs, strict=True)):
        want = logits[i].double().log_softmax(0)
        assert entry is not None
        assert entry.token_id == sampled.token_ids[i] == 9
        assert entry.logprob == pytest.approx(float(want[9]), abs=1e-5)
        assert entry.rank == 1 + int((logits[i] > logits[i, 9]).sum())
        best = want.topk(min(count, VOCAB_SIZE))
        assert entry.top_token_ids == best.indices.tolist()
        assert entry.top_logprobs == pytest.approx(best.values.tolist(), abs=1e-5)


def test_logprobs_of_equal_logits_come_by_id() -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, [250, 90, 130]] = 1.0
    rows = [make_row(replace(GREEDY, logprobs=2)), make_row(replace(GREEDY, logprobs=5))]
    first, second = Sampler().sample(logits, rows).logprobs
    assert first is not None
    assert second is not None
    assert (first.token_id, first.rank, first.top_token_ids) == (90, 1, [90, 130])
    assert second.top_token_ids == [90, 130, 250, 0, 1]


def test_logprobs_only_where_asked_for() -> None:
    rows = [make_row(GREEDY), make_row(replace(GREEDY, logprobs=1)), make_row(PLAIN)]
    logprobs = Sampler().sample(make_logits(3), rows).logprobs
    assert [entry is not None for entry in logprobs] == [False, True, False]


@pytest.mark.parametrize("params", [GREEDY, PLAIN, replace(PLAIN, top_p=0.9, top_k=9, min_p=0.1)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_fails_alone(params: SamplingParams, bad: float) -> None:
    logits = make_logits(4)
    rows = [make_row(replace(params, logprobs=2, seed=i)) for i in range(4)]
    good = Sampler().sample(logits.clone(), rows)
    logits[2, 123] = bad
    sampled = Sampler().sample(logits, rows)
    assert list(sampled.errors) == [2]
    assert "not finite" in sampled.errors[2]
    assert sampled.token_ids[2] == NO_TOKEN_ID
    assert sampled.logprobs[2] is None
    for i in (0, 1, 3):
        assert sampled.token_ids[i] == good.token_ids[i]
        assert sampled.logprobs[i] == good.logprobs[i]


def test_a_row_that_may_choose_nothing_fails_alone() -> None:
    logits = make_logits(3)
    logits[1, :EOS] = -math.inf  # as a grammar would; then EOS is held back too
    rows = [make_row(replace(PLAIN, min_tokens=9)) for _ in range(3)]
    sampled = Sampler().sample(logits, rows)
    assert list(sampled.errors) == [1]
    assert sampled.errors[1] == NO_TOKEN_LEFT


def test_a_mask_comes_first_and_what_can_only_end_need_not_wait() -> None:
    logits = make_logits(4)
    waits = [make_row(replace(GREEDY, min_tokens=9, logprobs=2)) for _ in range(4)]
    bits = np.zeros((3, -(-VOCAB_SIZE // 32)), np.int32)
    bits[:2, EOS // 32] = 1 << EOS % 32  # rows 0 and 1 may only end
    bits[2, 0] = 1 << 7 | 1 << 11
    masks = TokenMasks(np.array([0, 1, 3]), bits, {}, frozenset({0}))
    sampled = Sampler().launch(logits.clone(), waits, masks).result()
    assert sampled.token_ids[0] == EOS
    assert list(sampled.errors) == [1]
    assert sampled.token_ids[2] == sample(logits[2:3], waits[:1])[0]
    assert sampled.token_ids[3] == max((7, 11), key=lambda i: float(logits[3, i]))
    assert sampled.logprobs[3] is not None
    assert sampled.logprobs[3].top_logprobs[0] > sampled.logprobs[3].logprob  # the model's own


class CountCalls(TorchDispatchMode):
    """Counts what reaches torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_calls(params: SamplingParams, num_rows: int) -> int:
    logits = make_logits(num_rows)
    rows = [make_row(params) for _ in range(num_rows)]
    with CountCalls() as calls:
        Sampler().sample(logits, rows)
    return calls.count


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        PLAIN,
        replace(PLAIN, top_k=5, top_p=0.5),
        replace(GREEDY, repetition_penalty=1.2, presence_penalty=1.0, logit_bias={3: 1.0}),
        replace(PLAIN, logprobs=5),
    ],
)
def test_torch_is_called_for_the_batch_and_not_for_each_row(params: SamplingParams) -> None:
    assert count_calls(params, 64) == count_calls(params, 2)


def test_a_greedy_step_is_a_handful_of_calls() -> None:
    assert count_calls(GREEDY, 8) < 40


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    logits = make_logits(64)
    kinds = [
        GREEDY,
        replace(PLAIN, logprobs=3),
        replace(PLAIN, top_k=40, top_p=0.9, min_p=0.01),
        replace(PLAIN, repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=8),
    ]
    rows = [make_row(kinds[i % 4], choice_index=i) for i in range(64)]
    on_gpu = Sampler().sample(logits.to("cuda"), rows)
    assert on_gpu.token_ids == sample(logits, rows)
