"""Adapters in host memory: read when wanted, within the arena, and never overwritten in use."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from branchline.kernels import ops
from branchline.lora.errors import AdapterError
from branchline.lora.formatted import FormattedHeader, read_header, write_formatted
from branchline.lora.host_adapters import MAX_READS, HostAdapters
from branchline.lora.weights import AdapterWeights
from branchline.tests.support.lora_reference import random_weights
from branchline.tests.support.residency_house import (
    DIGESTS,
    RANKS,
    SHAPES,
    ManualCopies,
    PromptCopies,
    Reads,
)


def make_files(folder: str) -> tuple[dict[str, AdapterWeights], dict[str, FormattedHeader]]:
    generator = torch.Generator().manual_seed(3)
    weights, headers = {}, {}
    for digest, ranks in RANKS.items():
        weights[digest] = random_weights(SHAPES, ranks, generator)
        write_formatted(Path(folder, digest), weights[digest], None, {})
        headers[digest] = read_header(Path(folder, digest))
    return weights, headers


@pytest.fixture(scope="module")
def headers(tmp_path_factory) -> dict[str, FormattedHeader]:
    return make_files(str(tmp_path_factory.mktemp("files")))[1]


def make_tier(headers, num_bytes: int, reads: ManualCopies | None = None) -> HostAdapters:
    reads = reads or PromptCopies()
    tier = HostAdapters(num_bytes, torch.device("cpu"), cast("ops.CopyThread", reads))
    for digest, header in headers.items():
        tier.register(digest, header)
    return tier


def size_of(headers, digests: str) -> int:
    return sum(headers[digest].num_bytes + 256 for digest in digests)


def test_what_is_wanted_is_read_and_then_there(headers):
    tier = make_tier(headers, size_of(headers, DIGESTS))
    tier.advance(["a", "c"])
    assert tier.weights("a") is None, "nobody has looked whether it is read"
    tier.advance([])
    assert tier.present == ["a", "c"]
    assert tier.num_used_bytes == headers["a"].num_bytes + headers["c"].num_bytes
    assert [(event.digest, event.kind) for event in tier.events()] == [
        ("a", "loaded"),
        ("c", "loaded"),
    ]
    tier.check()


def test_only_so_many_files_are_read_at_once(headers):
    reads = Reads()
    tier = make_tier(headers, size_of(headers, DIGESTS), reads)
    tier.advance(list(DIGESTS))
    assert len(reads.jobs) == tier.num_reading == MAX_READS
    reads.run(2)
    tier.advance(list(DIGESTS))
    assert tier.num_reading == MAX_READS
    assert tier.present == ["a", "b"]


def test_an_adapter_larger_than_the_arena_is_refused(headers):
    tier = make_tier({}, headers["b"].num_bytes - 1)
    with pytest.raises(AdapterError, match=r"takes \d+ bytes of host memory.*--adapter-host-gb"):
        tier.register("b", headers["b"])
    tier.register("a", headers["a"])


def test_pins_leave_room_for_the_largest_other(headers):
    tier = make_tier(headers, size_of(headers, "ab"))
    tier.pin("a")
    with pytest.raises(AdapterError, match=r"tier: .* would find no room"):
        tier.require_pinnable("d")
    tier.advance(["a"])
    tier.advance(["b"])
    tier.advance([])
    assert tier.present == ["a", "b"]
    tier.advance(["d"])
    tier.advance([])
    assert tier.present == ["a", "d"], "the pinned one stays"


def test_pinned_copies_leave_one_stretch_to_the_others(headers):
    size = headers["b"].num_bytes + 2 * headers["a"].num_bytes
    tier = make_tier(headers, size)
    for digest in "ae":
        tier.advance([digest])
        tier.advance([])
    tier.pin("a")
    for wanted in ("a", "b"):
        tier.advance([wanted])
        tier.advance([])
    assert {*tier.present} == {"a", "b"}, "in the middle a would have left no room for b"
    tier.check()


def test_a_copy_that_is_held_is_neither_evicted_nor_forgotten(headers):
    tier = make_tier(headers, size_of(headers, "b"))
    tier.advance(["b"])
    tier.advance([])
    tier.hold("b")
    tier.advance(["a"])
    assert tier.present == ["b"]
    assert tier.unregister("b") is None
    tier.let_go("b")
    tier.advance(["a"])
    tier.advance([])
    assert tier.present == ["a"]
    assert tier.unregister("b") == 0
    assert tier.unregister("a") == headers["a"].num_bytes
    assert tier.num_used_bytes == 0


def test_nobody_is_evicted_where_it_would_not_do(headers):
    """b is held in the middle: what a and e leave at its sides is no place for one of a + e."""
    sizes = {digest: header.num_bytes for digest, header in headers.items()}
    assert sizes["c"] > sizes["a"]
    tier = make_tier(headers, 2 * sizes["a"] + sizes["b"])
    for digest in "abe":
        tier.advance([digest])
        tier.advance([])
    assert tier.present == ["a", "b", "e"]
    tier.hold("b")
    tier.advance(["c"])
    assert tier.present == ["a", "b", "e"], "a and e are enough bytes, but not in one piece"
    assert tier.failures() == {}
    tier.let_go("b")
    tier.advance(["c"])
    tier.advance([])
    assert "c" in tier.present


def test_what_pins_leave_no_place_for_fails_and_does_not_wait(headers):
    size = headers["a"].num_bytes
    tier = make_tier(headers, headers["b"].num_bytes + size)
    tier.advance(["e"])
    tier.advance([])
    tier.pinned.add("e")  # where it lies, in the way
    tier.advance(["a"])
    tier.advance([])
    tier.pinned.add("a")
    tier.advance(["b"])
    assert tier.failures() == {"b": "what is pinned leaves no room for it in one piece"}


def test_a_read_that_fails_is_told_and_may_be_tried_again(headers):
    reads = Reads()
    tier = make_tier(headers, size_of(headers, DIGESTS), reads)
    tier.advance(["a"])
    reads.fail()
    tier.advance(["a"])
    assert not reads.jobs, "not before it was told"
    assert tier.failures() == {"a": "OSError: the copy broke off"}
    assert tier.num_used_bytes == 0
    tier.advance(["a"])
    reads.run()
    tier.advance([])
    assert tier.present == ["a"]
    assert [event.kind for event in tier.events()] == ["failed", "loaded"]


class HostMachine(RuleBasedStateMachine):
    """Any wishes, holds, pins, evictions and failures: bytes are conserved, copies are right."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.weights, self.headers = make_files(self.folder.name)
        self.reads = Reads()
        size = size_of(self.headers, "bd") + 512
        self.tier = make_tier(self.headers, size, self.reads)
        self.holds: list[str] = []

    digests = st.sampled_from(DIGESTS)

    @rule(wanted=st.lists(digests, max_size=6), needless=st.lists(digests, max_size=3))
    def advance(self, wanted: list[str], needless: list[str]) -> None:
        self.tier.advance(wanted, needless)

    @precondition(lambda self: self.reads.jobs)
    @rule()
    def read(self) -> None:
        self.reads.run()

    @precondition(lambda self: self.reads.jobs)
    @rule()
    def break_off(self) -> None:
        self.reads.fail()

    @rule()
    def tell(self) -> None:
        assert self.tier.failures().keys() <= {*DIGESTS}
        self.tier.events()

    @precondition(lambda self: self.tier.present)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(self.tier.present))
        self.tier.hold(digest)
        self.holds.append(digest)

    @precondition(lambda self: self.holds)
    @rule()
    def let_go(self) -> None:
        self.tier.let_go(self.holds.pop(0))

    @rule(digest=digests)
    def pin(self, digest: str) -> None:
        if digest in self.tier.pinned:
            self.tier.pinned.discard(digest)
        else:
            with suppress(AdapterError):
                self.tier.require_pinnable(digest)
                self.tier.pin(digest)

    @rule(digest=digests)
    def evict(self, digest: str) -> None:
        if self.tier.is_idle(digest):
            self.tier.evict(digest)
            assert self.tier.weights(digest) is None

    @rule(digest=digests)
    def come_and_go(self, digest: str) -> None:
        before = self.tier.num_used_bytes
        freed = self.tier.unregister(digest)
        assert (freed is None) == (digest in self.holds or digest in self._reading())
        if freed is not None:
            assert self.tier.num_used_bytes == before - freed
            self.tier.register(digest, self.headers[digest])

    def _reading(self) -> list[str]:
        return [digest for digest in DIGESTS if self.tier.is_reading(digest)]

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        self.tier.check()
        assert {*self.holds} <= {*self.tier.present}
        for digest in self.tier.present:
            copy = self.tier.weights(digest)
            assert copy is not None
            for name, group in self.weights[digest].groups.items():
                assert torch.equal(copy.groups[name].a, group.a)
                assert torch.equal(copy.groups[name].b, group.b)

    def teardown(self) -> None:
        self.folder.cleanup()


TestHostMachine = HostMachine.TestCase
TestHostMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
