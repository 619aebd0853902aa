"""Two gateways change names and aliases over one store at once, and all of it holds together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fake_store import FakeRedis, FakeStore
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from branchline.gateway.adapters.records import AdapterVersion, Source
from branchline.gateway.adapters.registry import Registry
from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.aliases import AliasTarget, pick_target
from branchline.gateway.fleet.versions import version_id_of
from branchline.gateway.store.documents import Change, StoreDown
from branchline.server import aliases as server_aliases

NAMES = st.sampled_from(["a", "b", "c"])
ALIASES = st.sampled_from(["x", "y", "a"])
CONTENTS = st.sampled_from(["one", "two", "three", "four"])
GATEWAYS = st.integers(0, 1)


def version_of(content: str) -> AdapterVersion:
    return AdapterVersion(
        number=0,
        version_id=version_id_of(content, None),
        digest=content,
        source=Source("upload", "upload"),
        created=1.0,
        rank=8,
        modules=("q_proj",),
        device_bytes=1,
        host_bytes=1,
        file_bytes=1,
    )


class Names(RuleBasedStateMachine):
    """Each rule is one admin at one gateway, whose copy may be behind."""

    @initialize()
    def begin(self) -> None:
        self.redis = FakeRedis()
        self.refused: list[tuple[int, str | None]] = []
        self.stores = [FakeStore(self.redis) for _ in range(2)]
        self.gateways = [Registry(store, 2, lambda: 1.0) for store in self.stores]  # type: ignore[arg-type]

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        """What a call gives, None for what is refused; never a failure of ours."""
        try:
            return asyncio.run(call)
        except GatewayError as error:
            self.refused.append((error.status, error.code))
            return None

    @rule(gateway=GATEWAYS, name=NAMES, content=CONTENTS)
    def put(self, gateway: int, name: str, content: str) -> None:
        done = self._run(self.gateways[gateway].put(name, version_of(content)))
        if done is not None:
            record = self.gateways[gateway].adapter(name)
            assert record is not None
            assert record.current.digest == content

    @rule(gateway=GATEWAYS, name=NAMES, number=st.none() | st.integers(1, 4))
    def rollback(self, gateway: int, name: str, number: int | None) -> None:
        done = self._run(self.gateways[gateway].rollback(name, number))
        if done is not None and number is not None:
            assert done.after.current.number == number

    @rule(gateway=GATEWAYS, name=NAMES)
    def delete(self, gateway: int, name: str) -> None:
        if self._run(self.gateways[gateway].delete(name)) is not None:
            assert self.gateways[gateway].adapter(name) is None

    @rule(
        gateway=GATEWAYS,
        alias=ALIASES,
        names=st.lists(st.tuples(NAMES, st.none() | st.integers(1, 4)), min_size=1, max_size=2),
    )
    def point(self, gateway: int, alias: str, names: list[tuple[str, int | None]]) -> None:
        share = 100 / len(set(names))
        targets = tuple(AliasTarget(name, number, share) for name, number in dict.fromkeys(names))
        self._run(self.gateways[gateway].put_alias(alias, targets))

    @rule(gateway=GATEWAYS, alias=ALIASES)
    def point_back(self, gateway: int, alias: str) -> None:
        self._run(self.gateways[gateway].rollback_alias(alias))

    @rule(gateway=GATEWAYS, alias=ALIASES)
    def delete_alias(self, gateway: int, alias: str) -> None:
        self._run(self.gateways[gateway].delete_alias(alias))

    @rule(gateway=GATEWAYS)
    def catch_up(self, gateway: int) -> None:
        asyncio.run(self.stores[gateway].refresh())

    @invariant()
    def refusals_are_of_a_kind(self) -> None:
        assert {status for status, _ in self.refused} <= {404, 409}
        assert "adapter_changed" not in {code for _, code in self.refused}

    @invariant()
    def all_holds_together(self) -> None:
        truth = FakeStore(self.redis)
        registry = Registry(truth)  # type: ignore[arg-type]
        asyncio.run(truth.refresh())
        adapters, aliases = registry.adapters(), registry.aliases()
        assert not adapters.keys() & aliases.keys(), "a name is of one kind"
        for record in adapters.values():
            numbers = [version.number for version in record.versions]
            assert numbers == sorted(set(numbers))
            assert record.current.number in numbers
            assert set(record.history) <= set(numbers)
            assert record.next_number > max(numbers)
        for alias in aliases.values():
            for target in alias.targets:
                record = adapters[target.adapter]
                assert target.version is None or record.find(target.version) is not None
        wanted = registry.wanted()
        kept = {v.version_id for record in adapters.values() for v in record.versions}
        assert wanted.keys() == kept
        for record in adapters.values():
            assert wanted[record.current.version_id].is_serving


Names.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNames = Names.TestCase


def test_a_split_is_decided_as_a_server_decides_it() -> None:
    assert server_aliases.pick_target is pick_target
    targets = [AliasTarget("legal", 1, 90), AliasTarget("legal", 2, 10)]
    picked = [pick_target("counsel", targets, str(number)).version for number in range(2000)]
    assert 150 < picked.count(2) < 250
    moved = [AliasTarget("legal", 1, 80), AliasTarget("legal", 2, 20)]
    for number in range(2000):
        if picked[number] == 2:
            assert pick_target("counsel", moved, str(number)).version == 2


@pytest.mark.parametrize("verb", ["put", "put_alias"])
async def test_two_at_once_are_one_after_the_other(verb: str) -> None:
    redis = FakeRedis()
    stores = [FakeStore(redis) for _ in range(2)]
    one, two = (Registry(store) for store in stores)  # type: ignore[arg-type]
    await one.put("legal", version_of("one"))
    calls: dict[str, Callable[[Registry, int], Coroutine[Any, Any, Any]]] = {
        "put": lambda registry, i: registry.put("legal", version_of(f"new{i}")),
        "put_alias": lambda registry, i: registry.put_alias(f"x{i}", (AliasTarget("legal"),)),
    }
    await two.refresh()
    await asyncio.gather(*(calls[verb]([one, two][i % 2], i) for i in range(4)))
    await asyncio.gather(*(store.refresh() for store in stores))
    if verb == "put":
        assert one.adapter("legal") == two.adapter("legal")
        record = one.adapter("legal")
        assert record is not None
        assert [version.number for version in record.versions] == [1, 2, 3, 4, 5]
    else:
        assert one.aliases_of("legal") == two.aliases_of("legal") == ["x0", "x1", "x2", "x3"]


async def test_an_alias_that_came_meanwhile_keeps_its_adapter() -> None:
    redis = FakeRedis()
    stores = [FakeStore(redis) for _ in range(2)]
    one, two = (Registry(store, max_older=0) for store in stores)  # type: ignore[arg-type]
    await one.put("legal", version_of("one"))
    await stores[1].refresh()
    await one.put_alias("counsel", (AliasTarget("legal", 1),))
    with pytest.raises(GatewayError) as caught:
        await two.delete("legal")
    assert caught.value.code == "adapter_in_use"
    third = FakeStore(redis)
    late = Registry(third, max_older=0)  # type: ignore[arg-type]
    await late.put("legal", version_of("two"))
    record = late.adapter("legal")
    assert record is not None
    assert [version.number for version in record.versions] == [1, 2], "the alias names the first"
    with pytest.raises(GatewayError) as caught:
        await late.put("counsel", version_of("one"))
    assert caught.value.code == "name_taken"


class _Forgetful(FakeStore):
    """Makes every second change and says that it has not answered."""

    def __init__(self, redis: FakeRedis) -> None:
        super().__init__(redis)
        self.num_changes = 0

    async def change(self, *args: Any, **options: Any) -> int:
        self.num_changes += 1
        if self.num_changes % 2 == 0:
            return await super().change(*args, **options)
        self.redis.change(Change(*args, **options).items())
        raise StoreDown("no answer")


async def test_a_change_that_was_made_without_an_answer_is_not_made_twice() -> None:
    registry = Registry(_Forgetful(FakeRedis()), 2)  # type: ignore[arg-type]
    first = await registry.put("legal", version_of("one"))
    assert (first.before, first.changed) == (None, True)
    for content in ("two", "three"):
        done = await registry.put("legal", version_of(content))
        assert done.changed
    back = await registry.rollback("legal", None)
    assert back.after is not None
    assert back.after.current.digest == "two"
    await registry.put_alias("counsel", (AliasTarget("legal", 1),))
    await registry.put_alias("counsel", (AliasTarget("legal", 2),))
    turned = await registry.rollback_alias("counsel")
    assert turned.targets == (AliasTarget("legal", 1),)
    await registry.delete_alias("counsel")
    gone = await registry.delete("legal")
    assert (gone.before is not None, gone.after) == (True, None)


async def test_going_back_ends_where_there_is_nothing_before() -> None:
    registry = Registry(FakeStore(), 2)  # type: ignore[arg-type]
    for content in ("one", "two"):
        await registry.put("legal", version_of(content))
    await registry.rollback("legal", None)
    with pytest.raises(GatewayError) as caught:
        await registry.rollback("legal", None)
    assert caught.value.code == "no_earlier_version"
