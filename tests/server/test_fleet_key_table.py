"""The table of prefix keys: what gateways are told is what the prefix cache really holds."""

from __future__ import annotations

from array import array

import pytest
from cache_house import BASE, CacheHouse
from cache_machine import SIZE, CacheMachine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from branchline.engine.block_keys import keys_of
from branchline.engine.cache_types import BlockChanges
from branchline.engine.key_news import KeyNews
from branchline.gateway.view.key_index import KeyIndex
from branchline.server.fleet import keys_table
from branchline.server.fleet.keys_table import KeyTable


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


class TableMachine(CacheMachine):
    """A prefix cache with evictions, a host tier and resets; what it says is taken late.

    Each request's blocks are tied to keys of the same bytes, turned round.
    """

    def prepare(self) -> None:
        self.news = KeyNews()
        self.house.cache.subscribe(self.news.note)
        self.table = KeyTable("e", max_ties=40)
        self.index = KeyIndex()
        self.late = KeyIndex()
        self.ties: dict[bytes, bytes] = {}

    @rule(words=st.lists(st.integers(0, 2), min_size=1, max_size=5), ends=st.booleans())
    def serve(self, words: list[int], ends: bool) -> None:
        """A request of whole blocks, tied before it is computed; its next turn goes on from it."""
        prompt = [word for word in words for _ in range(SIZE)]
        key = self.house.key(prompt)
        self.table.tie([(block[::-1], block) for block in keys_of(key)])
        sequence = self.house.begin(prompt, key)
        if sequence is not None:
            self.house.compute(sequence, len(prompt))
        if sequence is not None and ends:
            self.house.end(sequence)

    @rule(max_keys=st.integers(1, 5))
    def hear(self, max_keys: int) -> None:
        changes = self.news.take(max_keys)
        if changes is not None:
            self.table.take_blocks(changes)

    @rule()
    def poll(self) -> None:
        self.read(self.late)

    def read(self, index: KeyIndex) -> None:
        epoch, sequence = index.position("r") or ("e", 0)
        events = self.table.events_after(epoch, sequence)
        assert events is not None
        for batch in events:
            assert index.apply("r", batch)

    @invariant()
    def published_blocks_are_held(self) -> None:
        if not hasattr(self, "table"):
            return
        while (changes := self.news.take()) is not None:
            self.table.take_blocks(changes)
        self.table.check()
        self.read(self.index)
        snapshot = self.table.snapshot()
        held = held_blocks(self.house)
        told = {snapshot.keys[at : at + 16] for at in range(0, len(snapshot.keys), 16)}
        assert {one[::-1] for one in told} <= held
        assert self.index.num_held("r") == len(told)
        for one in told:
            assert self.index.matched([one]) == {"r": 1}


def held_blocks(house: CacheHouse) -> set[bytes]:
    keys: set[bytes] = set()
    house.cache.subscribe(lambda event: keys.update(event.block_keys))
    house.cache.blocks.events._listeners.pop()
    return keys


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=120, stateful_step_count=50)


def test_a_key_is_told_when_its_block_comes_and_again_when_it_goes():
    table = KeyTable("e")
    table.tie([(key(1), key(101)), (key(2), key(102))])
    assert table.sequence == 0
    table.take_blocks(BlockChanges(stored=key(101)))
    assert table.sequence == 1
    table.take_blocks(BlockChanges(stored=key(102)))
    table.take_blocks(BlockChanges(removed=key(102)))
    table.tie([(key(3), key(101))])
    table.take_blocks(BlockChanges(removed=key(101)))
    batches = table.events_after("e", 0)
    assert batches is not None
    assert batches[0].stored == key(1)
    assert {batch.stored for batch in batches[1:]} == {b""}
    assert table.snapshot().keys == b""
    table.tie([(key(4), key(103))])
    table.take_blocks(BlockChanges(stored=key(101) + key(103)))
    assert table.snapshot().keys == key(1) + key(3) + key(4)
    table.take_blocks(BlockChanges(cleared=True))
    assert table.snapshot().keys == b""
    last = table.events_after("e", table.sequence - 1)
    assert last is not None
    assert last[0].cleared


def test_the_last_tie_of_a_key_counts():
    table = KeyTable("e")
    table.take_blocks(BlockChanges(stored=key(101)))
    table.tie([(key(1), key(101))])
    table.tie([(key(1), key(102))])
    assert table.snapshot().keys == b""
    table.take_blocks(BlockChanges(removed=key(101), stored=key(102)))
    assert table.snapshot().keys == key(1)
    table.check()


def test_ties_are_bounded_and_those_used_last_stay():
    table = KeyTable("e", max_ties=3)
    table.take_blocks(BlockChanges(stored=b"".join(map(key, range(100, 200)))))
    table.tie([(key(1), key(101)), (key(2), key(102)), (key(3), key(103))])
    table.tie([(key(1), key(101))])
    table.tie([(key(4), key(104))])
    assert table.num_ties == 3
    assert table.snapshot().keys == key(1) + key(3) + key(4)
    for number in range(10_000):
        table.tie([(key(number), key(100 + number % 90))])
    table.check()
    assert table.num_ties == len(table._told) == 3


def test_batches_are_bounded_and_a_gap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_table, "MAX_BATCHES", 4)
    monkeypatch.setattr(keys_table, "MAX_BATCH_KEYS", 2)
    table = KeyTable("e")
    table.take_blocks(BlockChanges(stored=b"".join(map(key, range(20)))))
    table.tie([(key(number), key(number)) for number in range(7)])
    assert table.sequence == 4
    batches = table.events_after("e", 0)
    assert batches is not None
    assert [len(batch.stored) // 16 for batch in batches] == [2, 2, 2, 1]
    table.tie([(key(8), key(8))])
    assert table.events_after("e", 0) is None
    assert len(table.events_after("e", 1) or []) == 4
    assert table.events_after("e", 5) == []
    for epoch, sequence in (("f", 1), ("e", 6), ("e", -1)):
        assert table.events_after(epoch, sequence) is None


def test_news_of_many_keys_come_in_parts():
    house, news = CacheHouse(num_usable=40), KeyNews()
    house.cache.subscribe(news.note)
    assert news.take() is None
    house.run(list(range(80)))
    parts = [news.take(8) for _ in range(3)]
    stored = b"".join(part.stored for part in parts if part)
    blocks = house.key(list(range(80)), BASE)
    assert array("B", stored) == array("B", b"".join(keys_of(blocks)))
    assert news.take() is None
    house.cache.blocks.reset()
    assert news.take() == BlockChanges(cleared=True)
