"""Text completions that are scored: best_of, echo, prompt logprobs, no tokens at all."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_engine import FakeEngine, say

from branchline.engine.types import GenerationRequest, TokenLogprobs, TokenOutput
from branchline.server.app import create_app
from branchline.server.completion_writer import CompletionWriter
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, Harness, events, make_client, make_services


class GradedEngine(FakeEngine):
    """Choice i says its own letter i times; its tokens are the likelier the later it is."""

    def __init__(self) -> None:
        super().__init__(self._letters)

    def _letters(self, request: GenerationRequest) -> list[int]:
        index = request.choice_index
        return [97 + index] * (index + 1) + [258]

    async def _outputs(self, request: GenerationRequest) -> Any:
        logprob = -5.0 + request.choice_index
        async for output in super()._outputs(request):
            entries = [TokenLogprobs(one, logprob, 1, [], []) for one in output.token_ids]
            wanted = request.params.logprobs is not None
            yield TokenOutput(
                request_id=output.request_id,
                token_ids=output.token_ids,
                logprobs=entries if wanted else None,
                finish_reason=output.finish_reason,
                num_cached_tokens=output.num_cached_tokens,
            )


async def test_the_best_by_mean_logprob_come_first(tokenizer: Tokenizer) -> None:
    engine = GradedEngine()
    async with make_client(create_app(make_services(tokenizer, engine))) as client:
        body = {"model": BASE, "prompt": ["x", "y"], "best_of": 4, "n": 2, "max_tokens": 9}
        answer = (await client.post("/v1/completions", json=body)).json()
    choices = answer["choices"]
    assert [choice["text"] for choice in choices] == ["dddd", "ccc"] * 2
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in choices), "they were not asked for"
    assert answer["usage"]["completion_tokens"] == 2 * (2 + 3 + 4 + 5), "all were generated"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"best_of": 2, "n": 3}, "best_of", "is 2, under n of 3"),
        ({"best_of": 129}, "best_of", "is 129, the most is 128"),
        ({"best_of": 2, "stream": True}, "best_of", "stream"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
        ({"prompt_logprobs": 21}, "prompt_logprobs", "is 21, the most is 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens", "max_tokens of 0"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"),
        ({"length_penalty": 2.0}, "length_penalty", "use_beam_search"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "at least 1"),
        ({"allowed_token_ids": [260]}, "allowed_token_ids", "vocabulary of 260"),
        (
            {"allowed_token_ids": [1] * 4097},
            "allowed_token_ids",
            "has 4097 entries, the most is 4096",
        ),
        ({"bad_words": ["x"] * 129}, "bad_words", "has 129 entries, the most is 128"),
        ({"bad_words": ["x" * 257]}, "bad_words", "has 257 characters, the most is 256"),
        ({"bad_words": [" "]}, "bad_words", "empty"),
        ({"suffix": "after"}, "suffix", "not supported"),
        ({"n": 129}, "n", "is 129, the most is 128"),
        ({"logprobs": 21}, "logprobs", "is 21, the most is 20"),
        ({"stop": ["x"] * 17}, "stop", "has 17 entries, the most is 16"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids", "has 257 entries, the most is 256"),
    ],
)
async def test_refusals_name_the_field_and_what_is_allowed(
    harness: Harness, errors_of: Any, fields: dict[str, Any], param: str, words: str
) -> None:
    error = errors_of(await harness.complete("hi", **fields), 400)
    assert error["param"] == param
    assert words in error["message"]
    assert not harness.engine.requests


async def test_an_echo_with_logprobs_scores_the_prompt(harness: Harness) -> None:
    response = await harness.complete("he€y", echo=True, logprobs=2, n=2)
    for choice in response.json()["choices"]:
        assert choice["text"] == "he€yhello"
        logprobs = choice["logprobs"]
        lengths = {len(values) for values in logprobs.values()}
        assert lengths == {6 + 6}
        assert logprobs["tokens"][:2] == ["h", "e"]
        assert logprobs["token_logprobs"][0] is None
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == [-0.25] * 11
        assert len(logprobs["top_logprobs"][1]) == 2
        offsets = logprobs["text_offset"]
        assert offsets[:3] == [0, 1, 2]
        assert offsets[5:] == [3, 4, 5, 6, 7, 8, 9]
        assert choice["text"][offsets[6] :] == "hello"
    first, second = harness.engine.requests
    assert (first.params.prompt_logprobs, second.params.prompt_logprobs) == (2, None)


@pytest.mark.parametrize(
    ("fields", "param", "num_entries"),
    [
        ({"prompt_logprobs": 4}, "prompt_logprobs", 5 * 30),
        ({"echo": True, "logprobs": 4}, "logprobs", 5 * 30),
        ({"echo": True, "logprobs": 0, "prompt_logprobs": 0, "n": 4}, "prompt_logprobs", 8 * 30),
        ({"echo": True, "logprobs": 3, "stream": True, "n": 2}, "logprobs", 8 * 30),
    ],
)
async def test_scores_of_all_prompts_have_one_limit(
    tokenizer: Tokenizer, errors_of: Any, fields: dict[str, Any], param: str, num_entries: int
) -> None:
    engine = FakeEngine()
    services = make_services(tokenizer, engine, max_prompt_logprobs_entries=100)
    async with make_client(create_app(services)) as client:
        body = {"model": BASE, "prompt": ["x" * 10, "y" * 20], "max_tokens": 9, **fields}
        error = errors_of(await client.post("/v1/completions", json=body), 400)
        assert error["param"] == param
        assert f"asks for {num_entries} logprobs" in error["message"]
        assert error["message"].endswith("the most is 100")
        assert not engine.requests
        fitting = body | {"prompt": "x" * 10}
        assert (await client.post("/v1/completions", json=fitting)).status_code == 200
        chat = {"model": BASE, "messages": [{"role": "user", "content": "x" * 99}]}
        refused = await client.post("/v1/chat/completions", json=chat | {"prompt_logprobs": 1})
        assert errors_of(refused, 400)["param"] == "prompt_logprobs"
        assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200


@pytest.mark.parametrize(
    "fields", [{"prompt_logprobs": 9}, {"echo": True, "logprobs": 9, "stream": True}]
)
async def test_many_scores_are_shaped_beside_the_loop(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    threads = []
    shape = CompletionWriter._completion

    def watched(*args: Any) -> Any:
        threads.append(threading.get_ident() == loop_thread)
        return shape(*args)

    loop_thread = threading.get_ident()
    monkeypatch.setattr(CompletionWriter, "_completion", watched)
    assert (await harness.complete("x" * 400, **fields)).status_code == 200
    assert threads[0] is False
    threads.clear()
    await harness.complete("x" * 20, **fields)
    assert all(threads)


async def test_an_echo_of_token_ids_has_offsets_too(harness: Harness) -> None:
    prompt = [*"a€b".encode(), 256]
    response = await harness.complete(prompt, echo=True, logprobs=0)
    choice = response.json()["choices"][0]
    assert choice["text"] == "a€b<|endoftext|>hello"
    offsets = choice["logprobs"]["text_offset"]
    assert offsets[:6] == [0, 1, 1, 1, 2, 3]
    assert choice["text"][offsets[6] :] == "hello"
    assert choice["logprobs"]["top_logprobs"] is None


async def test_a_streamed_echo_is_scored_in_its_first_event(harness: Harness) -> None:
    response = await harness.complete("ab", echo=True, logprobs=1, n=2, stream=True)
    merged: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in events(response):
        [choice] = chunk["choices"]
        merged[choice["index"]].append(choice)
    whole = (await harness.complete("ab", echo=True, logprobs=1, n=2)).json()["choices"]
    for index, choices in merged.items():
        assert "".join(choice["text"] for choice in choices) == whole[index]["text"]
        for key, values in whole[index]["logprobs"].items():
            assert [one for choice in choices for one in choice["logprobs"][key]] == values


@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_but_the_prompts_scores(harness: Harness, stream: bool) -> None:
    fields = {"echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    response = await harness.complete("abc", **fields)
    choice = (events(response)[0] if stream else response.json())["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -0.25]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert harness.engine.requests[0].params.max_tokens == 0
    if not stream:
        assert response.json()["usage"]["completion_tokens"] == 0


async def test_a_prompt_as_long_as_the_context_can_be_scored(harness: Harness) -> None:
    fields = {"echo": True, "logprobs": 0, "max_tokens": 0}
    assert (await harness.complete("x" * 512, **fields)).status_code == 200
    refused = await harness.complete("x" * 513, **fields)
    assert refused.status_code == 400
    assert "512" in refused.json()["error"]["message"]
    assert "513" in refused.json()["error"]["message"]


async def test_prompt_logprobs_are_vllms(harness: Harness) -> None:
    answer = (await harness.complete("abc", prompt_logprobs=2, n=2)).json()
    for choice in answer["choices"]:
        assert choice["logprobs"] is None
        first, second, _ = choice["prompt_logprobs"]
        assert first is None
        assert second["98"] == {"logprob": -0.25, "rank": 1, "decoded_token": "b"}
        assert second["97"] == {"logprob": -1.25, "rank": 2, "decoded_token": "a"}
        assert len(second) == 2
    assert "prompt_logprobs" not in (await harness.complete("abc")).json()["choices"][0]


async def test_prompt_logprobs_of_a_chat_are_its_own(harness: Harness) -> None:
    answer = (await harness.chat("hi", prompt_logprobs=0)).json()
    prompt = harness.engine.requests[0].prompt_token_ids
    assert len(answer["prompt_logprobs"]) == len(prompt)
    assert answer["prompt_logprobs"][1].keys() == {str(prompt[1])}
    assert "prompt_logprobs" not in (await harness.chat("hi")).json()


async def test_a_prompts_end_is_kept(harness: Harness) -> None:
    await harness.complete("abcdef", truncate_prompt_tokens=2)
    assert harness.engine.requests[-1].prompt_token_ids == list(b"ef")
    await harness.complete("x" * 600, truncate_prompt_tokens=-1, max_tokens=10)
    assert len(harness.engine.requests[-1].prompt_token_ids) == 502
    response = await harness.complete("abcdef", truncate_prompt_tokens=2, echo=True)
    assert response.json()["choices"][0]["text"] == "efhello"
    assert response.json()["usage"]["prompt_tokens"] == 2
    await harness.chat("hi", truncate_prompt_tokens=5)
    assert (
        harness.services.tokenizer.decode(harness.engine.requests[-1].prompt_token_ids) == "tant\n"
    )


async def test_offsets_are_those_of_the_text(harness: Harness) -> None:
    harness.engine.script = say("a€b")
    choice = (await harness.complete("x", logprobs=0)).json()["choices"][0]
    assert choice["text"] == "a€b"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 3]


async def test_an_answer_that_goes_on_may_begin_with_what_there_was(harness: Harness) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Oh, "}]
    fields = {"messages": messages, "continue_final_message": True, "echo": True}
    answer = (await harness.chat(**fields)).json()
    assert answer["choices"][0]["message"]["content"] == "Oh, hello"
    chunks = events(await harness.chat(stream=True, **fields))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "Oh, "}
    assert "".join(delta.get("content", "") for delta in deltas) == "Oh, hello"
    plain = (await harness.chat("hi", echo=True)).json()
    assert plain["choices"][0]["message"]["content"] == "hello", "it is an answer of its own"
