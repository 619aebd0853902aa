"""What admins ask of the engine's adapters: loads, pins, evictions and removals, and their end."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from branchline.engine.adapter_calls import AdapterAnswer, AdapterCalls
from branchline.engine.adapter_types import AdapterReport, FreedAdapter
from branchline.engine.adapters import EngineAdapters
from branchline.engine.errors import RequestError
from branchline.lora.bank import AdapterBank
from branchline.lora.errors import AdapterError
from branchline.lora.formatted import write_formatted
from branchline.lora.fp8_pages import to_pages
from branchline.lora.host_adapters import HostAdapters
from branchline.lora.slots import AdapterSlots
from branchline.tests.support.lora_reference import random_weights
from branchline.tests.support.residency_house import RANKS, SHAPES, pages_for

DEADLINE = 30.0


class Requests(Counter[str]):
    """Live requests by adapter."""

    def num_requests_of(self, adapter: str) -> int:
        return self[adapter]


class Room:
    """Adapters a to f in files, device room for two of any, host memory for about three."""

    def __init__(self, folder: Path, num_host_copies: int = 3) -> None:
        generator = torch.Generator().manual_seed(3)
        weights = {d: random_weights(SHAPES, ranks, generator) for d, ranks in RANKS.items()}
        for digest, adapter in weights.items():
            write_formatted(folder / digest, adapter, None, {})
        num_pages = pages_for((w.num_pages for w in weights.values()), 2)
        sizes = sorted(adapter.num_bytes + 256 for adapter in weights.values())
        device = torch.device("cpu")
        self.folder = folder
        self.requests = Requests()
        self.adapters = EngineAdapters(
            AdapterBank(SHAPES, 2, num_pages, torch.float32, device, 2),
            AdapterSlots(2),
            HostAdapters(sum(sizes[-num_host_copies:]), device),
        )

    def add(self, digests: str) -> None:
        """Add, without bringing them anywhere yet."""
        for digest in digests:
            self.adapters.add(digest, str(self.folder / digest))
        self.adapters._fresh.clear()

    def answer(self, wanted: str = "") -> AdapterAnswer:
        """The next call that ends."""
        started = time.monotonic()
        while not (answers := self.adapters.answers()):
            self.adapters.advance(list(wanted), self.requests)
            self.adapters.check()
            assert time.monotonic() - started < DEADLINE
        [answer] = answers
        return answer

    def load(self, digest: str) -> None:
        self.adapters.load("load", digest, "device")
        report = self.answer().report
        assert report is not None
        assert report.tier == "device"

    def tiers(self) -> str:
        letters = {"device": "D", "host": "H", "disk": "-"}
        return "".join(letters[self.adapters.tier(digest)] for digest in self.adapters.traits)


@pytest.fixture
def room(tmp_path: Path):
    room = Room(tmp_path)
    yield room
    room.adapters.close()


def test_a_version_is_brought_to_the_tier_that_was_asked_for(room: Room) -> None:
    room.add("abc")
    assert room.tiers() == "---"
    room.adapters.load("1", "a", "host")
    answer = room.answer()
    assert (answer.call_id, answer.report) == ("1", room.adapters.report("a"))
    assert room.tiers() == "H--"
    room.load("b")
    assert room.tiers() == "HD-"
    report = room.adapters.report("b")
    assert (report.rank, report.num_loads, report.pin) == (48, 1, None)
    assert report.host_bytes >= report.device_bytes > 0
    stats = room.adapters.stats()
    assert stats["num_device_adapters"] == stats["num_host_adapters"] == 1
    assert stats["num_disk_adapters"] == 1
    assert 0 < stats["adapter_device_bytes"] < stats["max_adapter_device_bytes"]
    assert [(e.digest, e.tier, e.kind) for e in room.adapters.events()] == [
        ("a", "host", "loaded"),
        ("b", "host", "loaded"),
        ("b", "device", "loaded"),
    ]


def test_what_is_added_is_brought_as_near_as_there_is_free_room(room: Room) -> None:
    for digest in "fedcba":
        room.adapters.add(digest, str(room.folder / digest))
    started = time.monotonic()
    while room.adapters.is_busy:
        room.adapters.advance([], room.requests)
        room.adapters.check()
        assert time.monotonic() - started < DEADLINE
    stats = room.adapters.stats()
    assert (room.tiers()[:2], stats["num_device_adapters"]) == ("DD", 2)
    assert stats["num_disk_adapters"] > 0
    assert stats["num_adapter_evictions"] == stats["num_host_adapter_evictions"] == 0


def test_asking_twice_is_answered_twice(room: Room) -> None:
    room.add("a")
    for call_id in ("1", "2"):
        room.adapters.load(call_id, "a", "device")
    started = time.monotonic()
    answers: list[AdapterAnswer] = []
    while len(answers) < 2:
        room.adapters.advance([], room.requests)
        answers += room.adapters.answers()
        assert time.monotonic() - started < DEADLINE
    assert [answer.call_id for answer in answers] == ["1", "2"]


def test_adding_what_is_known_changes_nothing(room: Room) -> None:
    room.add("a")
    room.load("a")
    room.add("a")
    assert room.tiers() == "D"


def test_unknown_versions_are_refused(room: Room) -> None:
    with pytest.raises(RequestError, match="adapter: 'zzz' is not loaded"):
        room.adapters.evict("zzz", "device", room.requests)
    for verb in (room.adapters.load, room.adapters.pin):
        with pytest.raises(RequestError, match="adapter: 'zzz' is not loaded"):
            verb("1", "zzz", "device")


def test_eviction_takes_it_off_the_device_or_out_of_host_memory_too(room: Room) -> None:
    room.add("ab")
    room.load("a")
    room.load("b")
    assert room.adapters.evict("a", "device", room.requests).tier == "host"
    assert room.adapters.evict("b", "host", room.requests).tier == "disk"
    assert room.tiers() == "H-"
    assert room.adapters.report("a").num_evictions == 1


def test_what_is_in_use_pinned_or_loading_is_not_evicted(room: Room) -> None:
    room.add("ab")
    room.load("a")
    room.requests["a"] = 2
    with pytest.raises(RequestError, match="2 requests use it"):
        room.adapters.evict("a", "device", room.requests)
    room.requests.clear()
    lease = room.adapters.slots.acquire("a")
    assert lease is not None
    with pytest.raises(RequestError, match="1 requests use it"):
        room.adapters.evict("a", "device", room.requests)  # its last step is under way
    lease.release()
    room.adapters.pin("1", "a", "device")
    report = room.answer().report
    assert report is not None
    assert report.pin == "device"
    with pytest.raises(RequestError, match="it is pinned"):
        room.adapters.evict("a", "host", room.requests)
    room.adapters.pin("2", "a", None)
    report = room.answer().report
    assert report is not None
    assert report.pin is None
    assert room.adapters.evict("a", "host", room.requests).tier == "disk"


def test_a_pinned_adapter_stays_whatever_is_wanted(room: Room) -> None:
    room.add("abcdef")
    room.adapters.pin("1", "b", "device")
    assert room.answer().report is not None
    for digest in "acdef":
        room.load(digest)
        assert room.adapters.tier("b") == "device"
    with pytest.raises(AdapterError, match="every slot but one is pinned"):
        room.adapters.pin("2", "a", "device")


def test_a_load_that_finds_no_room_fails_in_time() -> None:
    now = [0.0]
    calls = AdapterCalls(lambda: now[0])
    calls.load("1", "a", "device")
    assert calls.expired() == []
    now[0] = 61.0
    assert calls.expired() == ["a"]
    calls.failed("a", "no room")
    assert calls.answers() == [AdapterAnswer("1", error="no room")]
    assert not calls.are_open


def test_a_file_that_is_gone_is_an_error_that_is_remembered(room: Room) -> None:
    room.add("a")
    (room.folder / "a").unlink()
    room.adapters.load("1", "a", "device")
    answer = room.answer()
    assert answer.report is None
    assert answer.error is not None
    assert "can't be read" in answer.error
    assert room.adapters.report("a").error == answer.error
    assert room.adapters.stats()["adapter_host_bytes"] == 0


def test_removal_frees_both_tiers_once_the_last_request_has_ended(room: Room) -> None:
    room.add("ab")
    room.load("a")
    before = room.adapters.stats()
    room.requests["a"] = 1
    lease = room.adapters.slots.acquire("a")
    assert lease is not None
    room.adapters.remove("1", "a")
    for _ in range(3):
        assert room.adapters.advance([], room.requests).removed == []
    with pytest.raises(RequestError, match="is not loaded"):
        room.adapters.load("2", "a", "device")
    room.requests.clear()
    assert room.adapters.advance([], room.requests).removed == [], "a step may still read it"
    lease.release()
    assert room.adapters.advance([], room.requests).removed == ["a"]
    [answer] = room.adapters.answers()
    report = before["adapter_device_bytes"], before["adapter_host_bytes"]
    assert answer.freed == FreedAdapter(device_bytes=report[0], host_bytes=report[1])
    after = room.adapters.stats()
    assert (after["adapter_device_bytes"], after["adapter_host_bytes"]) == (0, 0)
    assert list(room.adapters.traits) == ["b"]
    room.adapters.check()


def test_what_is_added_again_before_it_is_gone_stays(room: Room) -> None:
    room.add("a")
    room.load("a")
    room.requests["a"] = 1
    room.adapters.remove("1", "a")
    room.adapters.advance([], room.requests)
    room.add("a")
    assert room.adapters.answers() == [
        AdapterAnswer("1", freed=FreedAdapter(device_bytes=0, host_bytes=0))
    ]
    room.requests.clear()
    room.adapters.advance([], room.requests)
    assert room.tiers() == "D"


def test_removing_what_nobody_knows_is_done_at_once(room: Room) -> None:
    room.adapters.remove("1", "zzz")
    assert room.answer() == AdapterAnswer("1", freed=FreedAdapter(device_bytes=0, host_bytes=0))


def test_a_removal_ends_loads_that_wait(room: Room) -> None:
    room.add("a")
    room.adapters.load("1", "a", "device")
    room.adapters.remove("2", "a")
    [answer] = room.adapters.answers()
    assert answer == AdapterAnswer("1", error="the adapter was removed")
    assert room.answer().freed is not None
    assert room.adapters.stats()["num_disk_adapters"] == 0


def test_pages_of_another_base_are_refused(room: Room, tmp_path: Path) -> None:
    weights = random_weights(SHAPES, {"qkv": 4}, torch.Generator())
    write_formatted(tmp_path / "half", weights.as_dtype(torch.float16), None, {})
    with pytest.raises(AdapterError, match="pages of another base model or dtype"):
        room.adapters.add("half", str(tmp_path / "half"))
    assert "half" not in room.adapters.traits
    in_8_bits = to_pages(weights, SHAPES, torch.float32, torch.float8_e4m3fn)
    write_formatted(tmp_path / "fp8", in_8_bits, None, {})
    with pytest.raises(AdapterError, match="pages of another base model or dtype"):
        room.adapters.add("fp8", str(tmp_path / "fp8"))


def test_reports_of_all(room: Room) -> None:
    room.add("ab")
    room.requests["b"] = 3
    reports = room.adapters.reports(room.requests)
    assert [(r.digest, r.num_requests) for r in reports] == [("a", 0), ("b", 3)]
    assert all(isinstance(report, AdapterReport) for report in reports)
