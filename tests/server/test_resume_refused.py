"""Records that a replica does not take up: another answer, or nonsense."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cut_streams import STATE_HEADERS, record_of, resume_request, split_groups

from branchline.engine.types import SamplingParams
from branchline.gateway.fleet.headers import RESUME
from branchline.gateway.fleet.resume import ResumedChoice, ResumeRecord
from branchline.server.app import create_app
from branchline.server.catalog import ServedModel
from branchline.server.fleet import resume_answer
from branchline.server.text.tokenizer import Tokenizer

from .conftest import ADAPTER, make_client
from .fleet_replica import CHAT, COMPLETE, Replica, body_of

Change = Callable[[ResumeRecord], ResumeRecord]


@pytest.fixture
async def replica(tokenizer: Tokenizer) -> AsyncIterator[Replica]:
    replica = Replica(tokenizer)
    async with replica.client:
        yield replica


def changed(replica: Replica, **changes: Any) -> Replica:
    """Another replica that differs in its services."""
    replica.services = replace(replica.services, **changes)
    replica.client = make_client(create_app(replica.services))
    return replica


async def half(replica: Replica, path: str = COMPLETE, **fields: Any) -> tuple[ResumeRecord, bytes]:
    """What is known of a stream after seven events, and its body."""
    body = body_of(path, **fields)
    return record_of((await replica.stream(path, body))[:7]), body


async def ask(replica: Replica, record: ResumeRecord, body: bytes, path: str = COMPLETE) -> Any:
    response = await replica.post(path, *resume_request(record, body))
    return response.status_code, response.json()["error"]


async def check_mismatch(
    there: Replica, record: ResumeRecord, body: bytes, path: str = COMPLETE
) -> None:
    num_requests = len(there.engine.requests)
    status, error = await ask(there, record, body, path)
    assert (status, error["code"]) == (409, "resume_mismatch")
    assert len(there.engine.requests) == num_requests


async def test_another_model(replica: Replica, tokenizer: Tokenizer) -> None:
    there = changed(Replica(tokenizer), fingerprint="0" * 32)
    await check_mismatch(there, *await half(replica))


@pytest.mark.parametrize("change", [{"digest": "digest-x"}, {"text_digest": "text-x"}])
async def test_another_adapter_under_the_name(
    replica: Replica, tokenizer: Tokenizer, change: dict[str, str]
) -> None:
    there = Replica(tokenizer)
    model = {"root": "/adapters/a", "digest": "digest-a", "version": 1, **change}
    there.services.catalog.put(ADAPTER, {1: ServedModel(ADAPTER, **model)}, 1)
    await check_mismatch(there, *await half(replica, model=ADAPTER))


async def test_other_defaults(replica: Replica, tokenizer: Tokenizer) -> None:
    there = Replica(tokenizer)
    sampling = replace(there.services.sampling, defaults=SamplingParams(temperature=0.3))
    await check_mismatch(changed(there, sampling=sampling), *await half(replica))


async def test_a_shorter_context_counts_where_it_decides(
    replica: Replica, tokenizer: Tokenizer
) -> None:
    there = Replica(tokenizer)
    sampling = replace(there.services.sampling, max_model_len=200)
    there = changed(there, sampling=sampling)
    await check_mismatch(there, *await half(replica, CHAT, max_tokens=None), CHAT)
    record, body = await half(replica, CHAT)
    response = await there.post(CHAT, *resume_request(record, body))
    assert response.status_code == 200


async def test_another_prompt(replica: Replica) -> None:
    record, _ = await half(replica)
    await check_mismatch(replica, record, body_of(COMPLETE, prompt="other"))
    await check_mismatch(replica, record, body_of(COMPLETE, prompt=["hello", "hello"]))


async def test_another_text(replica: Replica) -> None:
    record, body = await half(replica)
    record.choices[0].num_characters += 1
    await check_mismatch(replica, record, body)


async def test_tokens_behind_a_stop_string(replica: Replica) -> None:
    record, body = await half(replica, stop="naïve")
    [choice] = record.choices
    choice.token_ids, choice.num_characters = [*"0 naïve and".encode()], 2
    await check_mismatch(replica, record, body)


def with_choices(*choices: ResumedChoice) -> Change:
    return lambda record: ResumeRecord(record.opening, list(choices))


def with_opening(**fields: Any) -> Change:
    return lambda record: ResumeRecord(msgspec.structs.replace(record.opening, **fields))


@pytest.mark.parametrize(
    "change",
    [
        with_choices(ResumedChoice(0), ResumedChoice(0)),
        with_choices(ResumedChoice(1)),
        with_choices(ResumedChoice(-1)),
        with_choices(ResumedChoice(0, [-1])),
        with_choices(ResumedChoice(0, [2**31])),
        with_choices(ResumedChoice(0, [104], 1, "abort")),
        with_opening(created=-1),
        with_opening(created=2**70),
    ],
)
async def test_nonsense_is_a_400(replica: Replica, change: Change) -> None:
    record, body = await half(replica)
    status, error = await ask(replica, change(record), body)
    assert (status, error["param"]) == (400, RESUME)


async def test_seeds_are_one_a_choice(replica: Replica) -> None:
    record, body = await half(replica)
    await check_mismatch(replica, with_opening(seeds=[1, 2])(record), body)


@pytest.mark.parametrize("value", ["", "0", "-1", "x", "1.5", "²", "99999999999999999999", "2000"])
async def test_a_length_that_is_none(tokenizer: Tokenizer, value: str) -> None:
    replica = Replica(tokenizer, max_body_bytes=1000)
    headers = {**STATE_HEADERS, RESUME: value.encode("utf-8")}
    response = await replica.client.post(COMPLETE, content=body_of(COMPLETE), headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == RESUME


@pytest.mark.parametrize("raw", [b"{}", b"x" * 30, b'{"opening": 1}', b"[" * 500, b"\xff"])
async def test_a_record_that_is_none(replica: Replica, raw: bytes) -> None:
    headers = {**STATE_HEADERS, RESUME: str(len(raw))}
    response = await replica.post(COMPLETE, raw + body_of(COMPLETE), headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == RESUME


async def test_a_record_longer_than_all_that_came(replica: Replica) -> None:
    body = body_of(COMPLETE)
    response = await replica.post(COMPLETE, body, {**STATE_HEADERS, RESUME: str(len(body) + 1)})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == RESUME


async def test_a_body_may_be_as_large_as_ever(tokenizer: Tokenizer) -> None:
    body = body_of(COMPLETE)
    replica = Replica(tokenizer, max_body_bytes=max(700, len(body)))
    padded = body + b" " * (700 - len(body))
    record, _ = await half(replica)
    response = await replica.post(COMPLETE, *resume_request(record, padded))
    assert response.status_code == 200
    response = await replica.post(COMPLETE, *resume_request(record, padded + b" "))
    assert response.status_code == 413


async def test_only_streams_are_resumed(replica: Replica) -> None:
    record, body = await half(replica)
    whole = json.dumps({**json.loads(body), "stream": False}).encode()
    status, error = await ask(replica, record, whole)
    assert (status, error["param"]) == (400, RESUME)


async def test_many_tokens_are_replayed_in_slices(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume_answer, "SLICE_TOKENS", 2)
    record, body = await half(replica)
    response = await replica.post(COMPLETE, *resume_request(record, body))
    assert response.status_code == 200
    assert split_groups(response.content)
    record.choices[0].num_characters += 1
    await check_mismatch(replica, record, body)
