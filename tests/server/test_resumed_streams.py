"""Streams cut behind any event and resumed: their clients notice nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest
from cut_streams import DONE, STATE_HEADERS, Content, Group, content_of, record_of, split_groups
from fake_engine import FakeEngine

from branchline.engine.types import GenerationRequest, TokenOutput
from branchline.gateway.fleet.headers import RESUME
from branchline.gateway.fleet.resume import KEEP_ALIVE
from branchline.gateway.proxy.record import StreamRecord
from branchline.gateway.proxy.sse import BlockReader
from branchline.server import stream as stream_module
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, BASE
from .fleet_replica import CHAT, COMPLETE, FINGERPRINT, Replica, ReplicaEngine, body_of


@pytest.fixture
async def replica(tokenizer: Tokenizer) -> AsyncIterator[Replica]:
    replica = Replica(tokenizer)
    async with replica.client:
        yield replica


WITH_USAGE = {"stream_options": {"include_usage": True}}
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
EVERYTHING: dict[str, Any] = {"n": 3, "return_token_ids": True, **CONTINUOUS}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "chat logprobs": (CHAT, {"logprobs": True, "top_logprobs": 2, **WITH_USAGE}),
    "chat of everything": (CHAT, {**EVERYTHING, "logprobs": True}),
    "chat by an adapter": (CHAT, {"model": ADAPTER, "seed": 4}),
    "text": (COMPLETE, {}),
    "text logprobs": (COMPLETE, {"logprobs": 2, **WITH_USAGE}),
    "text no top": (COMPLETE, {"logprobs": 0, "n": 2}),
    "echo": (COMPLETE, {"echo": True, "return_token_ids": True}),
    "ids": (COMPLETE, {"prompt": [104, 105, 33], "echo": True}),
    "several prompts": (COMPLETE, {**EVERYTHING, "prompt": ["one", "two", "three"], "n": 2}),
    "length": (COMPLETE, {"max_tokens": 9, "logprobs": 1, "n": 2, **WITH_USAGE}),
    "stop string": (COMPLETE, {"stop": ["the end.", "the enx"], "logprobs": 0, **CONTINUOUS}),
    "stop string shown": (CHAT, {"stop": "end", "include_stop_str_in_output": True, "n": 2}),
    "stop string too early": (COMPLETE, {"stop": ["e"], "min_tokens": 20, **WITH_USAGE}),
    "stop token": (COMPLETE, {"stop_token_ids": [ord("T")], "logit_bias": {"7": 3, "1": 2}}),
    "held back to the end": (COMPLETE, {"stop": ["Tea time"], "return_token_ids": True}),
}


def check_same(pieces: Sequence[Group], whole: Sequence[Group]) -> Content:
    """The pieces are the whole to a client; running counts come with the same last event."""
    content, expected = content_of(pieces), content_of(whole)
    assert content == expected
    return expected


@pytest.mark.parametrize("num_joined", [1, 3])
@pytest.mark.parametrize("case", CASES)
async def test_any_cut_leaves_the_content_whole(
    tokenizer: Tokenizer, case: str, num_joined: int
) -> None:
    path, fields = CASES[case]
    body = body_of(path, **fields)
    here = Replica(tokenizer, ReplicaEngine(num_joined))
    there = Replica(tokenizer, ReplicaEngine())
    whole = await here.stream(path, body)
    assert len(whole) > 5
    for cut in range(1, len(whole) + 1):
        there.engine.requests.clear()
        rest = await there.resume(path, body, whole[:cut])
        check_same([*whole[:cut], *rest], whole)
        ended = [c for c in record_of(whole[:cut]).choices if c.finish_reason]
        num_choices = len(content_of(whole).choices)
        assert len(there.engine.requests) == num_choices - len(ended)
        assert record_of([*whole[:cut], *rest]).usage_sent == bool(content_of(whole).last_usages)


async def test_a_resumed_stream_can_be_resumed_again(replica: Replica) -> None:
    path, fields = CASES["several prompts"]
    body = body_of(path, **fields)
    whole = await replica.stream(path, body)
    pieces = whole[:3]
    while len(rest := await replica.resume(path, body, pieces)) > 4:
        assert rest[0].comment.opening == whole[0].comment.opening
        assert rest[0].comment.num_prompt_tokens == whole[0].comment.num_prompt_tokens
        pieces = [*pieces, *rest[:4]]
    check_same([*pieces, *rest], whole)


@pytest.mark.parametrize("case", CASES)
async def test_clients_events_are_the_same_bytes(replica: Replica, case: str) -> None:
    """But for what is drawn anew for each request: id, time, and here no seed."""
    path, fields = CASES[case]
    plain = await replica.post(path, body_of(path, **fields))
    described = await replica.stream(path, body_of(path, **fields))
    events = b"".join(event for group in described for event in group.events) + DONE
    opening = described[0].comment.opening
    first = json.loads(plain.content.removeprefix(b"data: ").partition(b"\n\n")[0])
    old = (opening.id.encode(), b'"created":%d' % opening.created)
    new = (first["id"].encode(), b'"created":%d' % first["created"])
    assert events.replace(old[0], new[0]).replace(old[1], new[1]) == plain.content
    assert b"\n\n:" not in plain.content


async def test_the_first_comment_opens_and_each_counts_its_events(replica: Replica) -> None:
    whole = await replica.stream(CHAT, body_of(CHAT, seed=5, **WITH_USAGE))
    first, second, *_, last = [group.comment for group in whole]
    assert (first.events, second.events, last.events) == (2, 1, 1)
    assert first.opening.id.startswith("chatcmpl-")
    assert first.opening.seeds == [5]
    assert first.opening.fingerprint.startswith(f"{FINGERPRINT}.")
    assert len(first.opening.prompt_digests) == 1
    assert (first.num_prompt_tokens, first.num_cached_tokens) == (24, 3)
    assert (second.opening, second.num_prompt_tokens, second.num_cached_tokens) == (None,) * 3
    assert [progress.token_ids for progress in second.choices] == [[ord(" ")]]
    assert second.choices[0].num_characters == 2
    assert last.usage_sent
    assert not last.choices


async def test_only_new_tokens_are_counted(replica: Replica, tokenizer: Tokenizer) -> None:
    body = body_of(COMPLETE, n=2, **WITH_USAGE)
    whole = await replica.stream(COMPLETE, body)
    other = Replica(tokenizer, ReplicaEngine(num_cached=0))
    rest = await other.resume(COMPLETE, body, whole[:20])
    num_tokens = sum(len(p.token_ids) for g in rest for p in g.comment.choices)
    metrics = (await other.client.get("/metrics")).text
    assert f'vllm:generation_tokens_total{{model_name="{BASE}"}} {num_tokens}.0' in metrics
    # What was cached is what the first replica found.
    assert content_of(rest).last_usages == content_of(whole).last_usages


async def test_a_failure_is_described(tokenizer: Tokenizer) -> None:
    replica = Replica(tokenizer)
    replica.engine.error = "boom"
    replica.engine.error_at = lambda request, index: index == 4
    body = body_of(COMPLETE)
    *told, last = await replica.stream(COMPLETE, body)
    assert len(told) == 4
    assert last.comment.failure.status == 500
    assert last.comment.failure.code == "internal_error"
    assert content_of([last]).errors[0]["code"] == "internal_error"
    whole = await Replica(tokenizer).stream(COMPLETE, body)
    rest = await Replica(tokenizer).resume(COMPLETE, body, told)
    assert content_of([*told, *rest]).choices == content_of(whole).choices


async def test_a_stream_that_waits_says_that_it_lives(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_SECONDS", 0.002)
    told: list[int] = []

    async def hold(request: GenerationRequest) -> AsyncGenerator[TokenOutput]:
        async for output in FakeEngine._outputs(replica.engine, request):
            if len(told) == 3:
                replica.engine.go.clear()
                loop.call_later(0.05, replica.engine.go.set)
            told.append(1)
            yield output

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(replica.engine, "_outputs", hold)
    response = await replica.post(COMPLETE, body_of(COMPLETE), STATE_HEADERS)
    assert response.content.count(KEEP_ALIVE) >= 2
    assert len(content_of(split_groups(response.content)).choices[0].text) > 20
    plain = await replica.post(COMPLETE, body_of(COMPLETE))
    assert KEEP_ALIVE not in plain.content


@pytest.mark.parametrize("headers", [{RESUME: "12"}, {"x-branchline-stream-state": "1"}])
async def test_without_the_secret_the_headers_mean_nothing(
    replica: Replica, headers: dict[str, str]
) -> None:
    response = await replica.post(COMPLETE, body_of(COMPLETE), headers)
    assert response.status_code == 200
    assert b"branchline" not in response.content


@pytest.mark.parametrize("case", ["chat of everything", "several prompts"])
async def test_a_gateway_takes_account_wherever_the_connection_breaks(
    replica: Replica, case: str
) -> None:
    path, fields = CASES[case]
    body = body_of(path, **fields)
    sent = (await replica.post(path, body, STATE_HEADERS)).content
    whole = content_of(split_groups(sent))
    for num_bytes in range(2500, len(sent), 1511):
        account = StreamRecord()
        got = account.take(BlockReader().feed(sent[:num_bytes]))
        assert account.can_resume
        account.restart()
        record = account.resume_bytes()
        headers = {**STATE_HEADERS, RESUME: str(len(record))}
        rest = (await replica.post(path, record + body, headers)).content
        got += account.take(BlockReader().feed(rest))
        assert account.is_done
        assert account.fault is None
        events = [event + b"\n\n" for event in got.split(b"\n\n")[:-2]]
        assert content_of([Group(None, (event,)) for event in events]) == whole
        usage = whole.last_usages[0]
        assert account.usage(0).num_input_tokens == usage["prompt_tokens"]
        assert account.num_output_tokens == usage["completion_tokens"]
        assert account.num_cached_tokens == usage["prompt_tokens_details"]["cached_tokens"]
