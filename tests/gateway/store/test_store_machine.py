"""Two gateways' stores over a Redis that is emptied at any time: no change is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis_server import RedisServer, redis_server
from store_house import Contents, contents, revisions

from branchline.gateway.fleet.connection import RedisLink
from branchline.gateway.store.documents import Conflict
from branchline.gateway.store.store import Store

KINDS = st.sampled_from(["tenant", "key"])
NAMES = st.sampled_from(["a", "b", "c"])
WHO = st.sampled_from([0, 1])


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


class StoreMachine(RuleBasedStateMachine):
    """``expected`` is what all acknowledged changes, in their order, amount to."""

    redis: ClassVar[RedisServer]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.expected: Contents = {}
        self.number = 0

    @initialize()
    def start(self) -> None:
        self.flush()
        self.stores = [self.runner.run(self.open()) for _ in range(2)]

    async def open(self) -> Store:
        store = Store(RedisLink.open(self.redis.url, timeout=5.0), "machine")
        await store.start()
        return store

    def flush(self) -> None:
        with self.redis.client() as client:
            client.flushall()

    def data(self) -> bytes:
        self.number += 1
        return str(self.number).encode()

    @rule(who=WHO, kind=KINDS, name=NAMES)
    def put(self, who: int, kind: str, name: str) -> None:
        data = self.data()
        self.runner.run(self.stores[who].change([(kind, name, data, None)]))
        self.expected[kind, name] = data

    @rule(who=WHO, name=NAMES)
    def put_and_remove_at_once(self, who: int, name: str) -> None:
        data = self.data()
        change = self.stores[who].change([("tenant", name, data, None)], [("key", name)])
        self.runner.run(change)
        self.expected["tenant", name] = data
        self.expected.pop(("key", name), None)

    @rule(who=WHO, kind=KINDS, name=NAMES)
    def remove(self, who: int, kind: str, name: str) -> None:
        self.runner.run(self.stores[who].change([], [(kind, name)]))
        self.expected.pop((kind, name), None)

    @rule(who=WHO, name=NAMES, other=NAMES)
    @precondition(lambda self: self.is_whole())
    def put_if_unchanged(self, who: int, name: str, other: str) -> None:
        """Made exactly if this gateway's copy of the name is the newest there is."""
        store, data = self.stores[who], self.data()
        document = store.get("tenant", name)
        known = document.data if document else None
        revision = document.revision if document else 0
        try:
            puts = [("key", other, data, None), ("tenant", name, data, revision)]
            self.runner.run(store.change(puts))
        except Conflict:
            assert known != self.expected.get(("tenant", name))
            return
        assert known == self.expected.get(("tenant", name))
        self.expected["tenant", name] = self.expected["key", other] = data

    def is_whole(self) -> bool:
        """Whether Redis has all, so that who compares with it compares with the truth."""
        with self.redis.client() as client:
            there = {
                (kind, name.decode()): raw.partition(b" ")[2]
                for kind in ("tenant", "key")
                for name, raw in client.hgetall(f"{{branchline:machine}}:store:{kind}").items()
            }
        return there == self.expected

    @rule(who=WHO)
    def poll(self, who: int) -> None:
        self.runner.run(self.stores[who].refresh())

    @rule()
    def empty(self) -> None:
        self.flush()

    @rule()
    def empty_and_both_notice(self) -> None:
        self.flush()
        self.runner.run(self.both_poll())

    async def both_poll(self) -> None:
        await asyncio.gather(*(store.refresh() for store in self.stores))

    @invariant()
    def own_changes_are_not_forgotten(self) -> None:
        """Whatever happened to Redis, each document is at one of the gateways at least."""
        for name, data in self.expected.items():
            assert any(contents(store).get(name) == data for store in self.stores)

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for _ in range(2):
                for store in self.stores:
                    self.runner.run(store.refresh())
            one, two = self.stores
            assert contents(one) == contents(two) == self.expected
            assert revisions(one) == revisions(two)
            for store in self.stores:
                self.runner.run(store._link.close())
        self.runner.close()


def test_stores_converge_and_lose_nothing(redis: RedisServer) -> None:
    run_state_machine_as_test(
        type("OverRedis", (StoreMachine,), {"redis": redis}),
        settings=settings(max_examples=40, database=None, stateful_step_count=25),
    )
