"""Prefix keys in a running application: from requests to what a gateway is told, off its path."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fake_engine import FakeEngine

from branchline.engine.block_keys import keys_of
from branchline.engine.cache_types import BlockChanges, Namespace
from branchline.engine.prefix_key import PrefixKey
from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.fleet.key_answer import decode_answer
from branchline.gateway.prefix_keys import PrefixHasher, PrefixNamespace, chat_text
from branchline.server.app import create_app
from branchline.server.fleet import keys as keys_module
from branchline.server.fleet.keys import PrefixKeys
from branchline.server.services import Services
from branchline.server.text.tokenizer import Tokenizer

from .conftest import access, make_client, make_services

FLEET = {"x-branchline-fleet-secret": "s", "x-branchline-tenant": "acme"}
TENANT = PrefixNamespace(isolation="tenant", owner="acme")
MESSAGES = [{"role": "user", "content": "It was a bright cold day in April. " * 13}]
HASHER = PrefixHasher(digest_key("s"))


class House:
    """A replica with an engine that caches what it is told to."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.engine = FakeEngine()
        self.services: Services = make_services(
            tokenizer, self.engine, who=access(fleet_secret="s"), max_messages=100
        )
        assert self.services.prefix_keys is not None
        self.keys: PrefixKeys = self.services.prefix_keys
        self.client = make_client(create_app(self.services))

    async def chat(self) -> None:
        body = {"model": "base", "messages": MESSAGES, "max_tokens": 4}
        answer = await self.client.post("/v1/chat/completions", json=body, headers=FLEET)
        assert answer.status_code == 200, answer.text

    def cache(self) -> None:
        """Have all full blocks of the last prompt cached."""
        info, request = self.engine.info, self.engine.requests[-1]
        key = PrefixKey(info.block_size, Namespace(info.model, tenant="acme"))
        key.extend_to(request.prompt_token_ids)
        self.engine.on_block_changes(BlockChanges(stored=b"".join(keys_of(key))))

    def told(self) -> bytes:
        snapshot = decode_answer(self.keys.answer()).snapshot
        assert snapshot is not None
        return snapshot.keys


@pytest.fixture
async def house(tokenizer: Tokenizer) -> AsyncIterator[House]:
    house = House(tokenizer)
    yield house
    house.keys.close()
    await house.client.aclose()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_a_chat_is_told_once_its_blocks_are_cached(house: House) -> None:
    await house.chat()
    await until(lambda: house.keys.table.num_ties > 0)
    assert house.told() == b""
    house.cache()
    keys = HASHER.keys(TENANT, chat_text(MESSAGES))
    assert house.told() == b"".join(sorted(keys)) != b""
    assert house.services.epoch == house.keys.table.epoch
    after = decode_answer(house.keys.answer(house.services.epoch, 0)).events
    assert [event.sequence for event in after] == [1]


async def test_nothing_is_told_of_an_engine_that_died(house: House) -> None:
    await house.chat()
    await until(lambda: house.keys.table.num_ties > 0)
    house.cache()
    assert house.told() != b""
    watching = asyncio.create_task(house.services.supervisor.watch())
    house.engine.die()
    await watching
    assert house.told() == b""


async def test_without_a_fleet_or_a_cache_there_are_no_keys(tokenizer: Tokenizer) -> None:
    assert make_services(tokenizer, FakeEngine()).prefix_keys is None
    who, options = access(fleet_secret="s"), {"enable_prefix_caching": False}
    off = make_services(tokenizer, FakeEngine(), who=who, engine_options=options)
    assert off.prefix_keys is None


async def test_no_request_waits_for_keys_and_waiting_ones_are_bounded(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    house.keys._thread.submit(go.wait)
    monkeypatch.setattr(keys_module, "MAX_WAITING", 3)
    try:
        for _ in range(6):
            await asyncio.wait_for(house.chat(), 10)
        # Each request that is taken waits twice: for its prompt's keys and for its answer's.
        assert house.keys._num_waiting == 3
        assert house.keys.num_skipped >= 4
    finally:
        go.set()
    await until(lambda: house.keys._num_waiting == 0)
    assert house.keys.table.num_ties > 0


async def test_keys_that_fail_say_nothing_of_the_prompt(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError(MESSAGES[0]["content"])

    monkeypatch.setattr(house.keys._maker, "of_prompt", fail)
    with caplog.at_level(logging.ERROR):
        await house.chat()
        await until(lambda: house.keys._num_waiting == 0)
    assert "ValueError" in caplog.text
    assert "April" not in caplog.text


async def test_after_the_end_requests_have_no_keys(house: House) -> None:
    house.keys.close()
    await house.chat()
    assert house.keys.table.num_ties == 0
