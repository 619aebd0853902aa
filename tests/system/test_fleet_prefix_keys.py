"""A replica's prefix keys, as a gateway reads them from a real Redis, are what is really cached."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import httpx
import msgspec
import pytest
from redis_server import RedisServer, redis_server
from server_process import ServerProcess, serve
from tiny_adapters import make_adapter

from branchline.gateway.fleet import headers
from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.fleet.records import ReplicaReport
from branchline.gateway.fleet.redis_names import RedisNames
from branchline.gateway.prefix_keys import (
    CHUNK_BYTES,
    PrefixHasher,
    PrefixNamespace,
    request_text,
    request_variant,
)
from branchline.gateway.view.key_index import KeyIndex
from branchline.gateway.view.key_reader import HttpKeyFetch, KeyReader

from .conftest import SERVE_FLAGS, Models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SECRET, REPLICA, BLOCK = "k-fleet", "r1", 16
FLAGS = ("--fleet-secret", SECRET, "--replica-id", REPLICA, "--admin-key", "k-admin")
HASHER = PrefixHasher(digest_key(SECRET))
SYSTEM = {"role": "system", "content": "You are a clerk who answers in one word. " * 12}
QUESTION = {
    "role": "user",
    "content": "Wie spät ist es \N{EN DASH} und warum? Say it again, please. " * 5,
}
INVOCATION = [257, *b"assistant"]
DEADLINE = 20.0


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def server(
    models: Models, redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("activated")
    activated = {
        f"activated-{seed}": make_adapter(
            models.model, root / str(seed), 8, seed=seed, alora_invocation_tokens=INVOCATION
        )
        for seed in (1, 2)
    }
    lora = {**models.lora, **activated}
    with serve(models.model, *SERVE_FLAGS, *FLAGS, "--fleet", redis.url, lora=lora) as running:
        yield running


class Gateway:
    """What a gateway does about prefix keys, for one tenant."""

    def __init__(self, session: aiohttp.ClientSession, link: RedisLink | None) -> None:
        self.index = KeyIndex()
        self.link = link
        self.reader = KeyReader(self.index, RedisNames("default"), HttpKeyFetch(session, SECRET))
        self._session = session

    async def poll(self, server: ServerProcess) -> None:
        async with self._session.get(
            f"{server.base_url}/fleet/state", headers={headers.FLEET_SECRET: SECRET}
        ) as response:
            report = msgspec.json.decode(await response.read(), type=ReplicaReport)
        await self.reader.poll([report], self.link)

    async def matched(self, server: ServerProcess, keys: list[bytes], expected: int) -> int:
        """How many of ``keys`` it holds, once that is ``expected`` or time is up."""
        deadline = time.monotonic() + DEADLINE
        while True:
            await self.poll(server)
            found = self.index.matched(keys).get(REPLICA, 0)
            if found == expected or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.05)


@pytest.fixture(params=["redis"])
async def gateway(
    request: pytest.FixtureRequest, redis: RedisServer, server: ServerProcess
) -> AsyncIterator[Gateway]:
    admin = {"authorization": "Bearer k-admin"}
    httpx.post(f"{server.base_url}/admin/cache/reset", headers=admin, timeout=30)
    link = RedisLink.open(redis.url, timeout=5.0) if request.param == "redis" else None
    async with aiohttp.ClientSession() as session:
        gateway = Gateway(session, link)
        yield gateway
        await gateway.reader.close()
    if link is not None:
        await link.close()


async def post(server: ServerProcess, path: str, body: dict[str, Any], **named: str) -> Any:
    sent = {headers.FLEET_SECRET: SECRET, headers.TENANT: "acme"}
    sent |= {f"x-branchline-{name.replace('_', '-')}": value for name, value in named.items()}
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(f"{server.api_url}{path}", json=body, headers=sent)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def chat(server: ServerProcess, messages: list[Any], **fields: Any) -> Any:
    body = {"model": "base", "max_tokens": 120, "seed": 1, "ignore_eos": True, **fields}
    return await post(server, "/chat/completions", {**body, "messages": messages})


def keys_of(
    messages: Any, prompt: Any = None, namespace: PrefixNamespace | None = None
) -> list[bytes]:
    """What gateway code makes of a body."""
    own = PrefixNamespace(isolation="tenant", owner="acme")
    return HASHER.keys(namespace or own, request_text(messages, prompt))


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def chunks_in(messages: list[Any], num_tokens: int) -> int:
    """How many chunks end in the first blocks of a chat: each byte is a token here.

    Two special tokens and a line's end stand around each message beside its role.
    """
    canonical = place = count = 0
    for message in messages:
        canonical += len(message["role"]) + 2
        place += len(message["role"]) + 2
        content = message["content"].encode()
        ends = [end for end in range(1, len(content) + 1) if not (canonical + end) % CHUNK_BYTES]
        count += sum((place + end) // BLOCK * BLOCK <= num_tokens for end in ends)
        canonical += len(content)
        place += len(content) + 2
    return count


@pytest.mark.parametrize("gateway", ["redis", "http"], indirect=True)
async def test_a_second_turn_is_known_as_far_as_it_is_cached(
    server: ServerProcess, gateway: Gateway
) -> None:
    first = [SYSTEM, QUESTION]
    assert await gateway.matched(server, keys_of(first), 0) == 0
    answer = await chat(server, first, max_tokens=400, logit_bias={"97": 100})
    content = answer["choices"][0]["message"]["content"]
    assert content == 400 * "a"
    second = [*first, {"role": "assistant", "content": content}, {**QUESTION, "name": "someone"}]
    # All but the last token is computed, and what fills no block is not kept.
    num_kept = (answer["usage"]["prompt_tokens"] + 399) // BLOCK * BLOCK
    keys, expected = keys_of(second), chunks_in(second, num_kept)
    assert expected > len(keys_of(first))
    assert await gateway.matched(server, keys, expected) == expected
    again = await chat(server, second, max_tokens=1)
    assert cached(again) == num_kept
    assert await gateway.matched(server, keys, len(keys)) == len(keys)


async def test_an_answer_that_is_no_text_is_not_taken_for_known(
    server: ServerProcess, gateway: Gateway
) -> None:
    """Bytes that are no characters don't come back as the tokens that they were."""
    first = [SYSTEM, QUESTION]
    answer = await chat(server, first, max_tokens=400, logit_bias={"200": 100})
    content = answer["choices"][0]["message"]["content"]
    assert set(content) == {"\N{REPLACEMENT CHARACTER}"}
    second = [*first, {"role": "assistant", "content": content}, QUESTION]
    keys, known = keys_of(second), len(keys_of(first))
    assert await gateway.matched(server, keys, known) == known
    again = await chat(server, second, max_tokens=1)
    assert chunks_in(second, cached(again)) == known
    assert await gateway.matched(server, keys, len(keys)) == len(keys)


async def test_an_answer_is_known_before_its_next_turn(
    server: ServerProcess, gateway: Gateway
) -> None:
    """Token ids are exact: nothing is lost where text is no valid UTF-8."""
    prompt = list(b"It was a bright cold day in April. " * 20)
    body = {"model": "base", "prompt": prompt, "max_tokens": 140, "ignore_eos": True}
    answer = await post(server, "/completions", {**body, "return_token_ids": True})
    whole = prompt + answer["choices"][0]["token_ids"]
    keys = keys_of(None, whole + [1] * 300)
    # All but the last token is computed, and what fills no block is not kept.
    expected = sum(
        (63 + 64 * number) // BLOCK <= (len(whole) - 1) // BLOCK for number in range(len(keys))
    )
    expected = min(expected, len(keys_of(None, whole)))
    assert expected > len(keys_of(None, prompt)) + 1
    assert await gateway.matched(server, keys, expected) == expected
    again = await post(server, "/completions", {**body, "prompt": whole + [1] * 300})
    assert cached(again) // 64 == expected


@pytest.mark.parametrize("gateway", ["redis", "http"], indirect=True)
async def test_a_reset_takes_them_all_away(server: ServerProcess, gateway: Gateway) -> None:
    keys = keys_of([SYSTEM, QUESTION])
    await chat(server, [SYSTEM, QUESTION], max_tokens=1)
    assert await gateway.matched(server, keys, len(keys)) == len(keys)
    admin = {"authorization": "Bearer k-admin"}
    assert httpx.post(f"{server.base_url}/admin/cache/reset", headers=admin).status_code == 200
    assert await gateway.matched(server, keys, 0) == 0
    assert gateway.index.num_keys == 0


async def test_tenants_groups_adapters_and_variants_have_their_own(
    server: ServerProcess, gateway: Gateway
) -> None:
    messages = [SYSTEM, QUESTION]
    await chat(server, messages, max_tokens=1, cache_salt="s")
    body = {"model": "tenant-4", "max_tokens": 1, "messages": messages}
    await post(server, "/chat/completions", body, cache_group="g")
    await post(server, "/chat/completions", {**body, "add_special_tokens": True})
    async with aiohttp.ClientSession() as session:
        asked = session.get(
            f"{server.base_url}/fleet/adapters", headers={headers.FLEET_SECRET: SECRET}
        )
        async with asked as response:
            places = (await response.json())["places"]
    [digest] = [place["digest"] for place in places if place["name"] == "tenant-4"]
    variant = request_variant(is_chat=True, add_special_tokens=True)
    held = [
        PrefixNamespace(isolation="tenant", owner="acme", salt="s"),
        PrefixNamespace(adapter=digest, isolation="group", owner="g"),
        PrefixNamespace(adapter=digest, isolation="tenant", owner="acme", variant=variant),
    ]
    for namespace in held:
        keys = keys_of(messages, None, namespace)
        assert await gateway.matched(server, keys, len(keys)) == len(keys) > 2
    for namespace in (
        PrefixNamespace(isolation="tenant", owner="acme"),
        PrefixNamespace(adapter=digest, isolation="tenant", owner="acme"),
        PrefixNamespace(isolation="group", owner="g"),
    ):
        assert await gateway.matched(server, keys_of(messages, None, namespace), 0) == 0


async def test_activated_adapters_of_a_group_find_one_prompt(
    server: ServerProcess, gateway: Gateway
) -> None:
    """Two tenants, two adapters: what comes before the invocation is the base's and the group's."""
    messages = [SYSTEM, QUESTION]
    body = {"max_tokens": 300, "messages": messages, "logit_bias": {"97": 100}}
    shared = PrefixNamespace(isolation="group", owner="g")
    one = {"model": "activated-1", **body}
    answer = await post(server, "/chat/completions", one, tenant="acme", cache_group="g")
    reply = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
    keys = keys_of([*messages, reply, QUESTION], None, shared)
    known = len(keys_of(messages, None, shared))
    assert await gateway.matched(server, keys, known) == known > 2
    two = {"model": "activated-2", **body, "max_tokens": 1}
    other = await post(server, "/chat/completions", two, tenant="beta", cache_group="g")
    assert chunks_in(messages, cached(other)) == known
    alone = await post(server, "/chat/completions", two, tenant="beta")
    assert cached(alone) == 0
    for namespace in (PrefixNamespace(isolation="tenant", owner="acme"), PrefixNamespace()):
        assert await gateway.matched(server, keys_of(messages, None, namespace), 0) == 0


async def test_without_the_secret_there_is_nothing(server: ServerProcess) -> None:
    for secret in ({}, {headers.FLEET_SECRET: "wrong"}):
        answer = httpx.get(f"{server.base_url}/fleet/keys", headers=secret)
        assert answer.status_code in (401, 404)
        assert not answer.content.startswith(b"\x81")
