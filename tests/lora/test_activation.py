"""find_activation against PEFT's own search, and what is taken as an invocation."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft.tuners.lora.variants import calculate_alora_offsets

from branchline.lora.activation import (
    MAX_INVOCATION_TOKENS,
    find_activation,
    parse_invocation,
    require_in_vocabulary,
)
from branchline.lora.errors import AdapterError


def peft_activation(prompt: list[int], invocation: list[int]) -> int | None:
    """What PEFT's ``generate`` makes of a prompt: it counts from the end."""
    configs = {"a": SimpleNamespace(alora_invocation_tokens=invocation)}
    [offset] = calculate_alora_offsets(configs, "a", torch.tensor([prompt], dtype=torch.long))
    return None if offset is None else len(prompt) - offset


@pytest.mark.parametrize(
    ("prompt", "invocation", "start"),
    [
        ([7, 8, 9], [7, 8, 9], 0),
        ([7, 8, 1, 2, 3], [7, 8], 0),
        ([1, 7, 8, 2, 3], [7, 8], 1),
        ([1, 2, 3, 7, 8], [7, 8], 3),
        ([1, 2, 3, 7], [7, 8], None),
        ([7, 8, 1, 7, 8, 1], [7, 8], 3),
        ([5, 5, 5, 5], [5, 5], 2),
        ([1, 2, 1, 2, 1, 3], [1, 2, 1], 2),
        ([1, 2, 1, 1, 2], [1, 2, 1], 0),
        ([5], [5], 0),
        ([4], [5], None),
        ([5], [5, 5], None),
        ([0, 0, 1], [0], 1),
        ([1, 2, 3], [1, 3], None),
    ],
)
def test_the_last_occurrence_counts(
    prompt: list[int], invocation: list[int], start: int | None
) -> None:
    assert find_activation(prompt, tuple(invocation)) == start
    assert peft_activation(prompt, invocation) == start


@given(
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    invocation=st.lists(st.integers(0, 2), min_size=1, max_size=6),
)
@example(prompt=[0, 1, 0, 0, 1, 0, 1, 0, 0], invocation=[0, 1, 0, 0])
def test_any_prompt_as_peft_has_it(prompt: list[int], invocation: list[int]) -> None:
    assert find_activation(prompt, tuple(invocation)) == peft_activation(prompt, invocation)


def test_a_prompt_of_32k_tokens_is_searched_in_no_time() -> None:
    """Also where every token nearly begins the invocation; a linear search needs some 6 ms."""
    random_prompt = [random.Random(1).randrange(1000) for _ in range(1 << 15)]
    ones = [1] * (1 << 15)
    for prompt, invocation, start in (
        (random_prompt, (1001, 1, 2), None),
        ([1001, 1, 2, *random_prompt], (1001, 1, 2), 0),
        (ones, (1,) * 2000 + (2,) + (1,) * 2000, None),
        ([2, *ones], (2,) + (1,) * (MAX_INVOCATION_TOKENS - 1), 0),
    ):
        started = time.process_time()
        assert find_activation(prompt, invocation) == start
        assert time.process_time() - started < 0.1


@pytest.mark.parametrize("value", [None, [], False, ""])
def test_what_peft_takes_for_plain_lora(value: object) -> None:
    assert parse_invocation(value) is None


def test_what_is_taken() -> None:
    assert parse_invocation([1, 0, 1023]) == (1, 0, 1023)
    assert parse_invocation([3] * MAX_INVOCATION_TOKENS) == (3,) * MAX_INVOCATION_TOKENS


@pytest.mark.parametrize(
    "value",
    ["assistant", 5, True, {"1": 2}, [1, "2"], [1, None], [1.0], [True], [-1], [[1]]],
    ids=repr,
)
def test_what_is_no_list_of_ids_is_refused(value: object) -> None:
    with pytest.raises(AdapterError, match=r"^alora_invocation_tokens: must be a list") as caught:
        parse_invocation(value)
    assert caught.value.field == "alora_invocation_tokens"


def test_refuses_too_long_an_invocation() -> None:
    with pytest.raises(AdapterError, match="has 4097 tokens, at most 4096"):
        parse_invocation([1] * (MAX_INVOCATION_TOKENS + 1))


def test_ids_have_to_be_in_the_vocabulary() -> None:
    require_in_vocabulary((0, 259), vocab_size=260)
    with pytest.raises(AdapterError, match="token 260 is not in the base model's vocabulary of 2"):
        require_in_vocabulary((0, 260), vocab_size=260)
