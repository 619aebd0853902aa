"""Every sampling field through the SDK; each test fails if its field is ignored."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from tiny_models import EOS_TOKEN_ID

pytestmark = pytest.mark.timeout(120)

A, END_OF_TEXT = ord("A"), 256
ALWAYS_A = {str(A): 100.0}
ALWAYS_END = {str(EOS_TOKEN_ID): 100.0}
# Fields of vLLM's that the SDK has no argument for.
EXTRAS = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"}
) | {"include_stop_str_in_output", "skip_special_tokens", "return_token_ids"}


class Ask:
    """A text completion with few words: fields go where the SDK wants them."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def __call__(self, model: str = "base", prompt: str = "abc", **fields: Any) -> Any:
        fields = {"max_tokens": 24, "return_token_ids": True, **fields}
        extra = {name: fields.pop(name) for name in EXTRAS & set(fields)}
        return self._client.completions.create(
            model=model, prompt=prompt, extra_body=extra, **fields
        )

    def text(self, **fields: Any) -> str:
        return str(self(**fields).choices[0].text)

    def ids(self, **fields: Any) -> list[int]:
        return list(self(**fields).choices[0].token_ids)

    def greedy(self, **fields: Any) -> list[int]:
        return self.ids(temperature=0, **fields)


@pytest.fixture(scope="module")
def ask(client: openai.OpenAI) -> Ask:
    return Ask(client)


def test_temperature(ask: Ask) -> None:
    assert ask.greedy(seed=1) == ask.greedy(seed=2)
    cool, hot = ask.ids(temperature=0.05, seed=3), ask.ids(temperature=2.0, seed=3)
    agree = sum(a == b for a, b in zip(cool, ask.greedy(), strict=False))
    assert agree > sum(a == b for a, b in zip(hot, ask.greedy(), strict=False))


def test_seed(ask: Ask) -> None:
    assert ask.ids(seed=7) == ask.ids(seed=7)
    assert ask.ids(seed=7) != ask.ids(seed=8)
    assert ask.ids() != ask.ids(), "an absent seed is drawn anew"


@pytest.mark.parametrize("field", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_filters_down_to_the_likeliest(ask: Ask, field: dict[str, float]) -> None:
    assert ask.ids(seed=5, **field) == ask.greedy()
    assert ask.ids(seed=5) != ask.greedy()


def test_top_k_lets_k_tokens_through(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "abc"}],
        logprobs=True,
        top_logprobs=2,
        temperature=2.0,
        seed=1,
        max_tokens=24,
        extra_body={"top_k": 2, "ignore_eos": True},
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert len(content) == 24
    ranks = [[top.bytes for top in entry.top_logprobs].index(entry.bytes) for entry in content]
    assert set(ranks) == {0, 1}


def test_repetition_penalty(ask: Ask) -> None:
    fields = {"max_tokens": 64, "ignore_eos": True}
    assert len(set(ask.greedy(**fields))) < 64
    assert len(set(ask.greedy(repetition_penalty=100.0, **fields))) == 64


def test_frequency_penalty_grows_with_use(ask: Ask) -> None:
    fields = {"max_tokens": 80, "logit_bias": {str(A): 60.0}}
    assert ask.greedy(**fields) == [A] * 80
    penalized = ask.greedy(frequency_penalty=2.0, **fields)
    assert penalized[0] == A
    assert penalized[-20:] != [A] * 20


def test_presence_penalty_does_not_grow(ask: Ask) -> None:
    fields = {"max_tokens": 80}
    assert ask.greedy(presence_penalty=2.0, logit_bias={str(A): 60.0}, **fields) == [A] * 80
    plain, penalized = ask.greedy(**fields), ask.greedy(presence_penalty=2.0, **fields)
    assert len(set(penalized)) > len(set(plain))


def test_logit_bias_forces_and_bans(ask: Ask) -> None:
    assert ask.text(logit_bias=ALWAYS_A, seed=1, max_tokens=5) == "AAAAA"
    likeliest = ask.greedy(max_tokens=1)[0]
    assert ask.greedy(max_tokens=1, logit_bias={str(likeliest): -100}) != [likeliest]


def test_max_tokens(ask: Ask, client: openai.OpenAI) -> None:
    answer = ask(max_tokens=7, ignore_eos=True)
    assert answer.usage.completion_tokens == 7
    assert answer.choices[0].finish_reason == "length"
    assert ask(max_tokens=openai.omit, ignore_eos=True).usage.completion_tokens == 16
    chat = client.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "a"}],
        max_completion_tokens=3,
        extra_body={"ignore_eos": True},
    )
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 3


def test_ignore_eos(ask: Ask) -> None:
    ended = ask(logit_bias=ALWAYS_END, max_tokens=5)
    assert ended.choices[0].finish_reason == "stop"
    assert ended.choices[0].token_ids == [EOS_TOKEN_ID]
    assert ended.choices[0].text == ""
    assert ask.ids(logit_bias=ALWAYS_END, max_tokens=5, ignore_eos=True) == [EOS_TOKEN_ID] * 5


def test_min_tokens(ask: Ask) -> None:
    ids = ask.ids(logit_bias=ALWAYS_END, min_tokens=4, max_tokens=10)
    assert ids[-1] == EOS_TOKEN_ID
    assert len(ids) == 5
    assert EOS_TOKEN_ID not in ids[:4]


def test_min_tokens_holds_off_stop_strings(ask: Ask) -> None:
    fields = {"logit_bias": ALWAYS_A, "stop": "AA", "max_tokens": 10}
    assert ask(**fields).usage.completion_tokens == 2
    assert ask(min_tokens=5, **fields).usage.completion_tokens == 5


def test_stop_strings_over_token_boundaries(ask: Ask) -> None:
    text = ask.text(temperature=0)
    stop = text[5:8]
    answer = ask(temperature=0, stop=["never seen", stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop
    assert answer.usage.completion_tokens < 24


def test_include_stop_str_in_output(ask: Ask) -> None:
    fields = {"logit_bias": ALWAYS_A, "stop": "AAA"}
    assert ask.text(**fields) == ""
    assert ask.text(include_stop_str_in_output=True, **fields) == "AAA"


def test_stop_token_ids(ask: Ask) -> None:
    ids = ask.greedy()
    stop = ids[4]
    answer = ask(temperature=0, stop_token_ids=[stop])
    assert answer.choices[0].token_ids == ids[: ids.index(stop) + 1]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == stop


def test_skip_special_tokens(ask: Ask) -> None:
    fields = {"logit_bias": {str(END_OF_TEXT): 100.0}, "max_tokens": 2}
    assert ask.text(**fields) == ""
    assert ask.text(skip_special_tokens=False, **fields) == "<|endoftext|>" * 2


def test_n_choices_are_different_and_repeatable(ask: Ask) -> None:
    first = [choice.text for choice in ask(n=3, seed=4).choices]
    assert len(set(first)) == 3
    assert [choice.text for choice in ask(n=3, seed=4).choices] == first
    assert ask.text(seed=4) == first[0], "the first choice does not depend on the others"


def test_n_choices_stream_side_by_side(ask: Ask) -> None:
    whole = ask(n=2, seed=4, max_tokens=12)
    texts = ["", ""]
    for chunk in ask(n=2, seed=4, max_tokens=12, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_continuous_usage(ask: Ask) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = ask(stream=True, stream_options=options, logit_bias=ALWAYS_A, max_tokens=4)
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == [1, 2, 3, 4, 4]


def test_each_prompt_of_a_batch_draws_for_itself(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt=["abc", "abc"], max_tokens=24)
    assert answer.choices[0].text != answer.choices[1].text
