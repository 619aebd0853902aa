"""Records of names and aliases: which version is current, which are kept."""

from __future__ import annotations

from dataclasses import replace

from branchline.engine.adapter_format import AdapterFacts
from branchline.server.adapters.registry import AdapterRecord, AliasRecord, Registry
from branchline.server.adapters.sources import AdapterSource
from branchline.server.aliases import AliasTarget
from branchline.server.catalog import AdapterVersion


def version(number: int, digest: str = "") -> AdapterVersion:
    digest = digest or f"d{number}"
    facts = AdapterFacts(digest=digest, rank=8, modules=(), device_bytes=2, file_bytes=1)
    source = AdapterSource("directory", "/x")
    return AdapterVersion(number, digest, None, source, 1.0 + number, facts)


def record(*numbers: int) -> AdapterRecord:
    made = AdapterRecord.empty()
    for number in numbers:
        made = made.with_version(version(number))
    return made


def kept(entry: AdapterRecord) -> list[int]:
    return [version.number for version in entry.versions]


def test_a_roll_back_goes_back_in_time_not_in_numbers() -> None:
    entry = record(1, 2, 3)
    assert entry.current.number == 3
    back = entry.rolled_back()
    assert back is not None
    assert back.current.number == 2
    assert kept(back) == [1, 2, 3], "what was left is kept"
    newer = back.with_version(version(4))
    again = newer.rolled_back()
    assert again is not None
    assert again.current.number == 2, "not 3, which was rolled back from"
    assert again.turned_to(3).current.number == 3
    assert record(1).rolled_back() is None


def test_the_oldest_versions_go_but_for_those_in_need() -> None:
    entry = record(1, 2, 3, 4, 5, 6)
    assert kept(entry.pruned(2, frozenset())) == [4, 5, 6]
    assert kept(entry.pruned(0, frozenset())) == [6]
    assert kept(entry.pruned(1, frozenset({1}))) == [1, 5, 6]
    old = entry.turned_to(1).pruned(1, frozenset())
    assert (kept(old), old.current.number) == ([1, 6], 1)
    assert old.next_number == 7, "numbers are never given again"
    assert old.rolled_back() is not None


def test_what_a_request_can_get() -> None:
    alias = AliasRecord(
        targets=(AliasTarget("a", 1, 10), AliasTarget("a", None, 90)),
        created=1,
        previous=(AliasTarget("a", 2),),
    )
    registry = Registry().with_adapter("a", record(1, 2, 3)).with_adapter("b", record(1))
    registry = registry.with_alias("live", alias)
    serving = [(name, version.number) for name, version in registry.all_serving()]
    assert serving == [("a", 1), ("a", 3), ("b", 1)]
    assert registry.numbers_in_aliases("a") == {1, 2}, "a roll back may need 2"
    assert registry.aliases_of("a") == ("live",)
    assert registry.aliases_of("b") == ()
    assert registry.without_alias("live").without_adapter("a").adapters.keys() == {"b"}


def test_the_strongest_pin_counts() -> None:
    registry = Registry()
    for name, pin in (("a", "host"), ("b", "device"), ("c", None)):
        registry = registry.with_adapter(name, replace(record(1), pin=pin))
    assert registry.pin_of("d1") == "device"
    assert registry.without_adapter("b").pin_of("d1") == "host"
    assert registry.pin_of("d2") is None


def test_facts_are_a_digests() -> None:
    registry = Registry().with_adapter("a", record(1, 2)).with_adapter("b", record(1))
    facts = replace(version(1).facts, file_bytes=99)
    changed = registry.with_facts("d1", facts)
    assert [v.facts.file_bytes for v in changed.all_versions()] == [99, 1, 99]
    assert changed.with_facts("d1", facts) is changed
