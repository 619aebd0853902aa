"""The endpoints over an engine in memory: answers, streams, and what the engine is asked."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine, engine_info, say
from tiny_models import make_tiny_tokenizer

from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE, TEMPLATED, Harness, events, make_client, make_services


async def test_a_chat_goes_through_the_models_template(harness: Harness) -> None:
    response = await harness.chat("hi", temperature=0)
    assert response.json()["choices"][0]["message"]["content"] == "hello"
    request = harness.engine.requests[0]
    assert request.adapter is None
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert harness.services.tokenizer.decode(request.prompt_token_ids) == expected
    assert request.params.max_tokens == 512 - len(request.prompt_token_ids), "all there is room for"


async def test_an_adapter_goes_by_its_digest(harness: Harness) -> None:
    await harness.chat("hi", model=ADAPTER)
    assert harness.engine.requests[0].adapter == "digest-a"


async def test_an_adapters_own_template_comes_first(harness: Harness) -> None:
    await harness.chat("hi", model=TEMPLATED)
    request = harness.engine.requests[0]
    assert harness.services.tokenizer.decode(request.prompt_token_ids) == "[user] hi\n"


async def test_developer_is_system_to_a_template_that_does_not_know_it(harness: Harness) -> None:
    await harness.chat(messages=[{"role": "developer", "content": "x"}])
    prompt = harness.services.tokenizer.decode(harness.engine.requests[0].prompt_token_ids)
    assert prompt.startswith("<|im_start|>system\nx")


async def test_template_variables_and_refusals(harness: Harness, tokenizer: Tokenizer) -> None:
    tokenizer_with = Tokenizer(
        tokenizer._pretrained, "{% if bad %}{{ raise_exception('no ' + bad) }}{% endif %}{{ word }}"
    )
    app = create_app(make_services(tokenizer_with, engine := FakeEngine()))
    async with make_client(app) as client:
        body: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "x"}]}
        good = {**body, "chat_template_kwargs": {"word": "yes"}}
        assert (await client.post("/v1/chat/completions", json=good)).status_code == 200
        assert tokenizer.decode(engine.requests[0].prompt_token_ids) == "yes"
        bad = {**body, "chat_template_kwargs": {"bad": "luck"}}
        response = await client.post("/v1/chat/completions", json=bad)
        assert response.status_code == 400
        assert "no luck" in response.json()["error"]["message"]
        worse = {**body, "chat_template_kwargs": {"bad": 1}}
        assert (await client.post("/v1/chat/completions", json=worse)).status_code == 400


FIELDS: list[tuple[str, Any, str, Any]] = [
    ("temperature", 0.5, "temperature", 0.5),
    ("top_p", 0.5, "top_p", 0.5),
    ("top_k", 5, "top_k", 5),
    ("min_p", 0.1, "min_p", 0.1),
    ("repetition_penalty", 1.5, "repetition_penalty", 1.5),
    ("presence_penalty", -1, "presence_penalty", -1),
    ("frequency_penalty", 1, "frequency_penalty", 1),
    ("logit_bias", {"5": 1.5}, "logit_bias", {5: 1.5}),
    ("seed", -5, "seed", -5),
    ("seed", 0, "seed", 0),
    ("stop", "x", "stop", ("x",)),
    ("stop", ["x", "yz"], "stop", ("x", "yz")),
    ("stop_token_ids", [3, 4], "stop_token_ids", (3, 4)),
    ("include_stop_str_in_output", True, "include_stop_str_in_output", True),
    ("ignore_eos", True, "ignore_eos", True),
    ("min_tokens", 2, "min_tokens", 2),
    ("max_tokens", 3, "max_tokens", 3),
    ("max_tokens", None, "max_tokens", 16),
    ("logprobs", 0, "logprobs", 0),
    ("logprobs", 5, "logprobs", 5),
    ("skip_special_tokens", False, "skip_special_tokens", False),
    ("prompt_logprobs", 2, "prompt_logprobs", 2),
    ("allowed_token_ids", [104, 101], "allowed_token_ids", (104, 101)),
    ("bad_words", ["no"], "bad_word_ids", (tuple(b"no"), tuple(b" no"))),
]


@pytest.mark.parametrize(("field", "value", "name", "expected"), FIELDS)
async def test_fields_reach_the_engine(
    harness: Harness, field: str, value: Any, name: str, expected: Any
) -> None:
    harness.engine.script = say("hello" * 50)
    params = await harness.sampling(**{"max_tokens": 10, field: value})
    assert getattr(params, name) == expected
    untouched = dataclasses.replace(params, **{name: expected})
    assert params == untouched


async def test_every_sampling_field_is_in_the_table() -> None:
    names = {name for _, _, name, _ in FIELDS} | {"n", "grammar"}  # see test_structured
    from branchline.engine.types import SamplingParams

    assert names == {field.name for field in dataclasses.fields(SamplingParams)}


async def test_n_choices_share_a_seed_and_differ_by_index(harness: Harness) -> None:
    await harness.complete("ab", n=3)
    requests = harness.engine.requests
    assert [request.choice_index for request in requests] == [0, 1, 2]
    assert len({request.params.seed for request in requests}) == 1
    assert {request.params.n for request in requests} == {1}
    assert len({request.request_id for request in requests}) == 3


async def test_prompts_of_a_batch_draw_a_seed_each(harness: Harness) -> None:
    response = await harness.complete(["ab", "ab"], n=2)
    seeds = [request.params.seed for request in harness.engine.requests]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
    assert response.json()["usage"]["prompt_tokens"] == 4


async def test_absent_seeds_are_drawn(harness: Harness) -> None:
    first, second = await harness.sampling(), await harness.sampling()
    assert first.seed != second.seed


async def test_a_chat_knows_both_names_of_its_limit(harness: Harness) -> None:
    await harness.chat(max_completion_tokens=3)
    await harness.chat(max_tokens=4)
    await harness.chat(max_tokens=5, max_completion_tokens=5)
    assert [r.params.max_tokens for r in harness.engine.requests] == [3, 4, 5]
    assert (await harness.chat(max_tokens=5, max_completion_tokens=6)).status_code == 400


async def test_a_stream_is_events(harness: Harness) -> None:
    response = await harness.chat(stream=True, stream_options={"include_usage": True})
    chunks = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"].get("content") for chunk in chunks[1:-1]]
    assert "".join(deltas) == "hello"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_tokens_without_text_are_events(harness: Harness) -> None:
    """As in vLLM: a reader sees that the answer goes on, and proxies see bytes."""
    harness.engine.script = lambda request: [256, 256, *"é".encode(), 258]
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(await harness.complete(stream=True, stream_options=options))[:-1]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["", "", "", "é", ""]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5]
    chats = events(await harness.chat(stream=True))
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chats[1:]] == [
        *["", "", "", "é", ""]
    ]


async def test_a_stream_without_options_carries_no_usage(harness: Harness) -> None:
    assert all("usage" not in chunk for chunk in events(await harness.chat(stream=True)))


async def test_a_stop_string_aborts_the_engines_request(harness: Harness) -> None:
    for stream in (False, True):
        response = await harness.complete(stop="ll", stream=stream)
        assert response.status_code == 200
    first, second = harness.engine.requests
    assert harness.engine.aborted == [first.request_id, second.request_id]
    assert events(response)[-1]["choices"][0]["stop_reason"] == "ll"
    assert "".join(event["choices"][0]["text"] for event in events(response)) == "he"
    metrics = (await harness.client.get("/metrics")).text
    assert 'request_success_total{finished_reason="stop",model_name="base"} 2.0' in metrics


async def test_text_logprobs_are_four_lists(harness: Harness) -> None:
    response = await harness.complete(logprobs=1, max_tokens=1)
    assert response.json()["choices"][0]["logprobs"] == {
        "tokens": ["h"],
        "token_logprobs": [-0.25],
        "top_logprobs": [{"h": -0.25}],
        "text_offset": [0],
    }


async def test_a_prompt_of_exactly_the_context_is_too_long(harness: Harness) -> None:
    assert (await harness.complete("x" * 511, max_tokens=None)).status_code == 200
    response = await harness.complete("x" * 512)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.count("512") == 2
    response = await harness.chat("x" * 600)
    assert response.json()["error"]["param"] == "messages"


async def test_too_many_sequences(harness: Harness) -> None:
    response = await harness.complete(["a"] * 100, n=6)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


async def test_long_prompts_do_not_hold_up_the_others(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(info=engine_info(max_model_len=10_000_000))
    app = create_app(make_services(tokenizer, engine))
    async with make_client(app) as client:
        body = {"model": BASE, "prompt": "é " * 500_000}
        asking = asyncio.create_task(client.post("/v1/completions", json=body))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0.001)
            turns += 1
        assert (await asking).status_code == 200
    assert engine.requests[0].prompt_token_ids == list("é ".encode()) * 500_000
    assert turns > 20, "the event loop went on while the prompt was tokenized"


async def test_special_tokens_come_once(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    make_tiny_tokenizer(tmp_path)
    with_start = Tokenizer.from_directory(str(tmp_path))
    with_start.backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
    )
    app = create_app(make_services(with_start, engine := FakeEngine()))
    async with make_client(app) as client:
        text: dict[str, Any] = {"model": BASE, "prompt": "a"}
        chat: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "a"}]}
        for fields in ({}, {"add_special_tokens": False}):
            assert (await client.post("/v1/completions", json=text | fields)).status_code == 200
        for fields in ({}, {"add_special_tokens": True}):
            await client.post("/v1/chat/completions", json=chat | fields)
    prompts = [request.prompt_token_ids for request in engine.requests]
    assert prompts[:2] == [[256, 97], [97]]
    assert [prompt.count(256) for prompt in prompts[2:]] == [0, 1], "the template writes its own"
