"""vLLM's fields, which SDKs send as extras; each test fails if its field is ignored."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
A, B = ord("A"), ord("B")
SCHEMA = {
    "type": "object",
    "properties": {"sky": {"enum": ["clear", "cloudy"]}, "windy": {"type": "boolean"}},
    "required": ["sky", "windy"],
    "additionalProperties": False,
}
SKY = re.compile(r"(clear|cloudy) [0-9]{2}")
LARK = 'start: "yes" | "no" | "perhaps"'


class Ask:
    """A text completion and a chat, with fields that the SDK has no words for."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def complete(self, prompt: Any = "abc", **extra: Any) -> Any:
        extra = {"max_tokens": 24, "temperature": 1.0, "seed": 3, **extra}
        return self._client.completions.create(model="base", prompt=prompt, extra_body=extra)

    def ids(self, **extra: Any) -> list[int]:
        answer = self.complete(return_token_ids=True, ignore_eos=True, **extra)
        return list(answer.choices[0].token_ids)

    def chat(self, **extra: Any) -> str:
        extra = {"max_tokens": 100, "temperature": 1.0, "seed": 3, **extra}
        answer = self._client.chat.completions.create(
            model="base", messages=MESSAGES, extra_body=extra
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].message.content or ""


@pytest.fixture(scope="module")
def ask(client: openai.OpenAI) -> Ask:
    return Ask(client)


def test_allowed_token_ids_are_all_there_is(ask: Ask) -> None:
    assert not set(ask.ids()) <= {A, B}
    assert set(ask.ids(allowed_token_ids=[A, B])) == {A, B}


def test_bad_words_are_never_said(ask: Ask) -> None:
    wanted = {"logit_bias": {str(A): 100, str(B): 80}, "temperature": 0}
    assert ask.complete(**wanted).choices[0].text == "A" * 24
    assert ask.complete(bad_words=["AA"], **wanted).choices[0].text == "AB" * 12
    assert ask.complete(bad_words=["A"], **wanted).choices[0].text == "B" * 24


def test_prompt_logprobs_are_of_the_prompts_tokens(ask: Ask) -> None:
    answer = ask.complete([97, 98, 99], prompt_logprobs=2, max_tokens=1)
    found = answer.choices[0].prompt_logprobs
    assert len(found) == 3
    assert found[0] is None
    for token_id, position in zip([98, 99], found[1:], strict=True):
        assert str(token_id) in position
        assert 2 <= len(position) <= 3
        assert all(entry["logprob"] <= 0 for entry in position.values())


def test_a_truncated_prompt_keeps_its_end(ask: Ask) -> None:
    whole = ask.complete("abcdef", truncate_prompt_tokens=3, temperature=0)
    assert whole.usage.prompt_tokens == 3
    assert whole.choices[0].text == ask.complete("def", temperature=0).choices[0].text


def test_beam_search_finds_what_is_likelier(ask: Ask) -> None:
    def score(**extra: Any) -> float:
        answer = ask.complete(temperature=0, max_tokens=6, logprobs=0, ignore_eos=True, **extra)
        return float(sum(answer.choices[0].logprobs.token_logprobs))

    beams = ask.complete(use_beam_search=True, n=3, temperature=0, max_tokens=6, ignore_eos=True)
    assert len({choice.text for choice in beams.choices}) == 3
    assert score(use_beam_search=True, n=3) >= score() - 1e-4


def test_length_penalty_prefers_long_or_short_answers(ask: Ask) -> None:
    def num_tokens(penalty: float) -> int:
        answer = ask.complete(
            use_beam_search=True,
            n=4,
            temperature=0,
            max_tokens=12,
            length_penalty=penalty,
            stop_token_ids=list(range(64)),
            return_token_ids=True,
        )
        return len(answer.choices[0].token_ids)

    assert num_tokens(-4.0) < num_tokens(4.0)


def test_best_of_gives_the_likeliest_of_several(ask: Ask) -> None:
    def score(**extra: Any) -> float:
        answer = ask.complete(max_tokens=8, logprobs=0, ignore_eos=True, **extra)
        return float(sum(answer.choices[0].logprobs.token_logprobs))

    assert score(best_of=8) > score()
    assert ask.complete(best_of=8).usage.completion_tokens > 24


def test_a_chat_that_goes_on_begins_with_what_was_there(client: openai.OpenAI) -> None:
    opened: list[Any] = [*MESSAGES, {"role": "assistant", "content": "well, "}]

    def say(**extra: Any) -> str:
        extra |= {"continue_final_message": True, "add_generation_prompt": False}
        answer = client.chat.completions.create(
            model="base", messages=opened, temperature=0, max_tokens=8, extra_body=extra
        )
        return answer.choices[0].message.content or ""

    assert say(echo=True) == "well, " + say()


@pytest.mark.parametrize("field", ["structured_outputs", "guided"])
def test_a_choice_a_regex_a_grammar_and_a_schema(ask: Ask, field: str) -> None:
    def wanted(kind: str, value: Any) -> dict[str, Any]:
        return {f"guided_{kind}": value} if field == "guided" else {field: {kind: value}}

    assert ask.chat(**wanted("choice", ["red", "blue"])) in ("red", "blue")
    assert SKY.fullmatch(ask.chat(**wanted("regex", SKY.pattern)))
    assert ask.chat(**wanted("grammar", LARK)) in ("yes", "no", "perhaps")
    assert json.loads(ask.chat(**wanted("json", SCHEMA)))["sky"] in ("clear", "cloudy")


def test_one_call_where_parallel_calls_are_off(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
    for seed in range(6):
        answer = client.chat.completions.create(
            model="base",
            messages=MESSAGES,
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=400,
            seed=seed,
        )
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        assert len(calls) == 1
