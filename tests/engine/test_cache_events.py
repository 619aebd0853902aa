"""Whoever replays the prefix cache's events knows what is held, in which tier, at any time."""

from __future__ import annotations

from array import array

from cache_house import BASE, LORA, CacheHouse
from cache_machine import CacheMachine
from hypothesis import settings
from hypothesis.stateful import invariant

from branchline.engine.block_keys import chain_keys, keys_of
from branchline.engine.cache_types import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    CacheEvent,
    Namespace,
    Tier,
)
from branchline.engine.prefix_cache import PrefixCache


class Mirror:
    """Block keys by tier, from the events alone; one that is stored in a tier leaves the other."""

    def __init__(self) -> None:
        self.tiers: dict[bytes, Tier] = {}
        self.events: list[CacheEvent] = []

    def take(self, event: CacheEvent) -> None:
        self.events.append(event)
        if isinstance(event, CacheCleared):
            self.tiers.clear()
        elif isinstance(event, BlocksRemoved):
            assert event.block_keys, "nothing was removed"
            for key in event.block_keys:
                assert self.tiers.pop(key) == event.tier
        else:
            self._store(event)

    def _store(self, event: BlocksStored) -> None:
        assert event.parent_key is None or event.parent_key in self.tiers, "it follows nothing"
        tokens = array("i", event.token_ids).tobytes()
        keys = chain_keys(event.parent_key, event.namespace, tokens, 4 * event.block_size)
        assert event.block_keys == keys != []
        for key in keys:
            assert self.tiers.get(key) != event.tier, "it was there already"
            self.tiers[key] = event.tier


def held(cache: PrefixCache) -> dict[bytes, Tier]:
    """Block keys by tier, from the tree alone."""
    tiers: dict[bytes, Tier] = {}
    stack: list[tuple[object, bytes | None]] = [(cache.tree.root, None)]
    while stack:
        parent, last = stack.pop()
        for node in parent.children.values():
            keys = chain_keys(last, node.namespace, node.key, cache.tree.block_bytes)
            tiers |= dict.fromkeys(keys, "device" if node.on_device else "host")
            stack.append((node, keys[-1]))
    return tiers


class EventMachine(CacheMachine):
    """The mirror is right after each rule."""

    def prepare(self) -> None:
        self.mirror = listen(self.house)

    @invariant()
    def mirror_is_right(self) -> None:
        if hasattr(self, "mirror"):
            assert self.mirror.tiers == held(self.house.cache)
            assert listen(self.house).tiers == self.mirror.tiers, "to one that comes late"


def listen(house: CacheHouse) -> Mirror:
    mirror = Mirror()
    house.cache.subscribe(mirror.take)
    return mirror


TestEvents = EventMachine.TestCase
TestEvents.settings = settings(max_examples=150, stateful_step_count=50)


def test_blocks_go_from_the_device_to_the_host_and_back():
    house = CacheHouse(num_usable=6, num_host_blocks=6)
    mirror = listen(house)
    prompt = list(range(17))
    house.run(prompt)
    house.settle()
    assert set(mirror.tiers.values()) == {"device"}
    house.free(6)
    assert list(mirror.tiers.values()) == ["host"] * 4
    assert house.begin(prompt, house.key(prompt)) is None
    house.settle()
    assert list(mirror.tiers.values()) == ["device"] * 4
    assert list(mirror.tiers) == keys_of(house.key(prompt))


def test_keys_are_those_of_the_sequence_in_its_namespaces():
    house = CacheHouse()
    mirror = listen(house)
    own, prompt = LORA._replace(activation=9), list(range(16))
    key = house.key(prompt, own, base=BASE, start=9)
    house.compute(house.begin(prompt, key), 16)
    assert list(mirror.tiers) == keys_of(key)
    assert [event.namespace for event in mirror.events] == [BASE, own]
    assert keys_of(key)[:2] == keys_of(house.key(prompt))[:2]
    assert keys_of(key)[2:] != keys_of(house.key(prompt))[2:]


def test_no_two_namespaces_or_beginnings_give_one_key():
    tokens = array("i", range(4)).tobytes()
    namespaces = [
        Namespace("m"),
        Namespace("m", "a"),
        Namespace("m", None, "a"),
        Namespace("m", None, None, "a"),
        Namespace("m", "1"),
        Namespace("m", None, None, None, 1),
        Namespace("m", ""),
        Namespace("m", "a", "b"),
        Namespace("m", "a1:1:b"),
        Namespace("ma", None),
        Namespace("m", None, None, "\ud800"),
    ]
    parents = [None, b"x" * 16]
    keys = [chain_keys(p, n, tokens, 16)[0] for p in parents for n in namespaces]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 for key in keys)


def test_a_split_tells_nothing_and_changes_no_key():
    house = CacheHouse()
    mirror = listen(house)
    house.run(list(range(16)))
    before = dict(mirror.tiers)
    house.run([*range(8), 90, 91, 92, 93])
    assert len(mirror.events) == 2
    assert before.items() <= mirror.tiers.items()
    assert mirror.tiers == held(house.cache)


def test_one_that_listens_late_learns_of_what_hangs_below_a_long_path():
    """The path is a node for each block, none of which has a name yet."""
    house, length = CacheHouse(num_usable=2000, block_size=1), 1500
    prompt = list(range(length + 1))
    for end in range(1, length + 1):
        house.compute(house.begin(prompt[:end], house.key(prompt[:end])), end)
    events: list[CacheEvent] = []
    house.cache.subscribe(events.append)
    last = house.begin(prompt, house.key(prompt))
    assert sum(1 for _ in last.lease.node.path()) == length
    house.compute(last, length + 1)
    assert len(events) == length + 1, "a node each of what was there, and what came"
    event = events[-1]
    assert [event.parent_key, *event.block_keys] == keys_of(house.key(prompt))[-2:]


def test_without_a_listener_no_key_is_made():
    house = CacheHouse()
    house.run(list(range(16)))
    assert [node.block_keys for node in house.cache.tree.nodes()] == [[]]
