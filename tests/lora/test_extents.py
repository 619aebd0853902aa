"""Extents: places in an arena, none twice, and all of it one stretch again in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.lora.extents import Extents


def test_the_lowest_place_is_taken() -> None:
    extents = Extents(4096)
    assert [extents.take(100), extents.take(300), extents.take(1)] == [0, 256, 768]
    extents.give_back(256)
    assert extents.take(512) == 256
    assert extents.take(256) == 1024
    extents.check()


def test_any_alignment() -> None:
    extents = Extents(1000)
    assert extents.take(10) == 0
    assert [extents.take(36, 36), extents.take(36, 36), extents.take(7, 1)] == [36, 72, 10]
    assert extents.num_free == 1000 - 89
    extents.check()


def test_from_the_end() -> None:
    extents = Extents(1000)
    assert [extents.take(10, from_end=True), extents.take(300, from_end=True)] == [768, 256]
    assert extents.take(300, from_end=True) is None
    assert extents.take(100, 100) == 0
    assert extents.take(157, 100) == 600
    extents.check()


def test_what_does_not_fit_takes_nothing() -> None:
    extents = Extents(1024)
    assert extents.take(1025) is None
    assert extents.take(1024) == 0
    assert extents.take(1) is None
    assert (extents.num_free, extents.largest_free) == (0, 0)
    extents.give_back(0)
    assert extents.largest_free == 1024


def test_an_empty_arena() -> None:
    extents = Extents(0)
    assert extents.take(1) is None
    extents.check()


def test_free_neighbours_grow_together() -> None:
    extents = Extents(1024)
    places = [extents.take(256) for _ in range(4)]
    for place in (places[0], places[2], places[1], places[3]):
        assert place is not None
        extents.give_back(place)
        extents.check()
    assert extents.largest_free == 1024


class ExtentsMachine(RuleBasedStateMachine):
    """Against an arena that is written byte by byte."""

    def __init__(self) -> None:
        super().__init__()
        self.extents = Extents(600)
        self.owners = [0] * 600
        self.held: dict[int, int] = {}

    @rule(
        size=st.integers(1, 200),
        align=st.sampled_from([1, 3, 16, 36, 256]),
        from_end=st.booleans(),
    )
    def take(self, size: int, align: int, from_end: bool) -> None:
        places = [
            place
            for place in range(0, 600 - size + 1, align)
            if not any(self.owners[place : place + size])
        ]
        expected = (places[-1] if from_end else places[0]) if places else None
        assert self.extents.take(size, align, from_end=from_end) == expected
        if expected is not None:
            self.owners[expected : expected + size] = [1] * size
            self.held[expected] = size

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.held)))
        size = self.held.pop(place)
        self.owners[place : place + size] = [0] * size
        self.extents.give_back(place)

    @invariant()
    def conserved(self) -> None:
        self.extents.check()
        assert self.extents.num_free == self.owners.count(0)
        runs = "".join(map(str, self.owners)).split("1")
        assert self.extents.largest_free == max(map(len, runs))

    def teardown(self) -> None:
        for place in self.held:
            self.extents.give_back(place)
        assert self.extents.largest_free == 600


TestExtentsMachine = ExtentsMachine.TestCase
TestExtentsMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
