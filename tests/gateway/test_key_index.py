"""The index of prefix keys against a plain model, and its bounds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from branchline.gateway.fleet.records import KeyEvents, KeySnapshot
from branchline.gateway.view.key_index import KeyIndex

KEYS = [bytes([number]) * 16 for number in range(8)]
REPLICAS = ["a", "b", "c"]
replicas = st.sampled_from(REPLICAS)
some_keys = st.lists(st.sampled_from(KEYS), max_size=5)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class IndexMachine(RuleBasedStateMachine):
    """The model keeps a set a replica, and for each expectation when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.index = KeyIndex(clock=self.clock)
        self.held: dict[str, set[bytes]] = {}
        self.position: dict[str, tuple[str, int]] = {}
        self.expected: dict[tuple[str, bytes], float] = {}

    @rule(
        replica=replicas,
        step=st.sampled_from([0, 1, 1, 1, 2]),
        cleared=st.booleans(),
        removed=some_keys,
        stored=some_keys,
    )
    def tell(
        self, replica: str, step: int, cleared: bool, removed: list[bytes], stored: list[bytes]
    ) -> None:
        epoch, sequence = self.position.get(replica, ("", 0))
        events = KeyEvents(
            epoch=epoch,
            sequence=sequence + step,
            cleared=cleared,
            removed=b"".join(removed),
            stored=b"".join(stored),
        )
        took = self.index.apply(replica, events)
        assert took is (step < 2)
        if step == 1:
            held = set() if cleared else self.held.get(replica, set())
            self.held[replica] = (held - set(removed)) | set(stored)
            self.position[replica] = (epoch, sequence + 1)

    @rule(replica=replicas, epoch=st.sampled_from("xyz"), sequence=st.integers(1, 3))
    def begin_again(self, replica: str, epoch: str, sequence: int) -> None:
        if self.position.get(replica, ("", 0))[0] == epoch:
            return
        events = KeyEvents(epoch=epoch, sequence=sequence, stored=KEYS[0])
        assert self.index.apply(replica, events) is (sequence == 1)
        if sequence == 1:
            self.held[replica], self.position[replica] = {KEYS[0]}, (epoch, 1)

    @rule(replica=replicas, keys=some_keys, sequence=st.integers(0, 9))
    def load(self, replica: str, keys: list[bytes], sequence: int) -> None:
        snapshot = KeySnapshot(epoch="s", sequence=sequence, keys=b"".join(keys))
        self.index.load(replica, snapshot)
        self.held[replica], self.position[replica] = set(keys), ("s", sequence)

    @rule(replica=replicas)
    def drop(self, replica: str) -> None:
        self.index.drop(replica)
        self.held.pop(replica, None)
        self.position.pop(replica, None)
        self.expected = {pair: end for pair, end in self.expected.items() if pair[0] != replica}

    @rule(replica=replicas, keys=some_keys)
    def expect(self, replica: str, keys: list[bytes]) -> None:
        self.index.expect(replica, keys, 10.0)
        self.expected |= {(replica, key): self.clock.now + 10.0 for key in keys}

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=8))
    def ask(self, keys: list[bytes]) -> None:
        right = {replica: self.run_of(replica, keys) for replica in REPLICAS}
        assert self.index.matched(keys) == {name: num for name, num in right.items() if num}

    def run_of(self, replica: str, keys: list[bytes]) -> int:
        for index, key in enumerate(keys):
            expected = self.expected.get((replica, key), -1.0) > self.clock.now
            if not expected and key not in self.held.get(replica, ()):
                return index
        return len(keys)

    @invariant()
    def knows_what_it_was_told(self) -> None:
        for replica in REPLICAS:
            assert self.index.position(replica) == self.position.get(replica)
            assert self.index.num_held(replica) == len(self.held.get(replica, ()))
        assert self.index.num_keys == len(set().union(*self.held.values()))


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=150, stateful_step_count=40)


def test_a_gap_leaves_everything_as_it_was():
    index = KeyIndex()
    assert not index.apply("a", KeyEvents(epoch="e", sequence=7, stored=KEYS[1]))
    index.load("a", KeySnapshot(epoch="e", sequence=7, keys=KEYS[0]))
    assert not index.apply("a", KeyEvents(epoch="e", sequence=9, cleared=True))
    assert index.matched(KEYS) == {"a": 1}


def test_keys_beyond_the_bound_are_not_kept():
    index = KeyIndex(max_keys=4)
    index.apply("a", KeyEvents(epoch="e", sequence=1, stored=b"".join(KEYS)))
    assert index.num_keys == 4
    assert index.matched(KEYS) == {"a": 4}
    index.apply("a", KeyEvents(epoch="e", sequence=2, removed=b"".join(KEYS)))
    assert index.num_keys == 0


def test_expectations_are_bounded_and_beginnings_stay():
    index = KeyIndex(max_expected=3)
    index.expect("a", KEYS)
    assert index.matched(KEYS) == {"a": 3}
    for number in range(1000):
        index.expect("a", [number.to_bytes(16, "big")])
    assert len(index._expected._until) == len(index._expected._masks) == 3


def test_events_confirm_what_was_expected():
    clock = Clock()
    index = KeyIndex(clock=clock)
    index.expect("a", KEYS[:2], 10)
    index.apply("a", KeyEvents(epoch="e", sequence=1, stored=KEYS[0]))
    assert index.matched(KEYS) == {"a": 2}
    clock.now = 11
    assert index.matched(KEYS) == {"a": 1}


def test_a_replica_that_comes_after_one_that_left_has_nothing_of_it():
    index = KeyIndex()
    index.load("a", KeySnapshot(epoch="e", sequence=1, keys=KEYS[0]))
    index.expect("a", KEYS[:2])
    index.drop("a")
    index.load("b", KeySnapshot(epoch="e", sequence=1))
    assert index.matched(KEYS) == {}
