"""What an admin sees of the prefix cache: sizes, namespaces, hit rates and the biggest prefixes."""

from __future__ import annotations

import time

from cache_house import BASE, LORA, CacheHouse
from small_scheduler import generation, make_scheduler, step

from branchline.engine import cache_report, cache_use
from branchline.engine.cache_report import NUM_FIRST_TOKENS, report_cache
from branchline.engine.cache_types import CacheReport, PrefixTarget
from branchline.engine.cache_use import CacheUse
from branchline.engine.intake import Intake
from branchline.engine.pins import Pins
from branchline.engine.prefix_cache import BlockLease
from branchline.engine.request import Request
from branchline.lora.traits import AdapterTraits

TRAITS = {"digest": AdapterTraits(rank=8, num_bytes=1, invocation_tokens=(7, 8))}


def pins_of(house: CacheHouse) -> Pins:
    return Pins(house.cache, Intake(house.cache, TRAITS, 1000, False), 100, time.monotonic)


def report(house: CacheHouse, use: CacheUse | None = None, max_prefixes: int = 10) -> CacheReport:
    return report_cache(house.cache, use or CacheUse(), pins_of(house), max_prefixes)


def count(use: CacheUse, house: CacheHouse, tokens, num_hits, lease=None, **key) -> None:
    """A request's first start, which found ``num_hits`` tokens."""
    request = Request.from_generation(
        generation("r", num_prompt=len(tokens)),
        house.key(tokens, **key),
        lease or BlockLease(house.cache, "t"),
        arrival=0,
        queued_at=0.0,
    )
    request.num_computed_tokens = num_hits
    use.count(request)


def test_an_empty_cache():
    got = report(CacheHouse(num_usable=20))
    assert (got.enabled, got.block_size, got.num_blocks, got.num_free) == (True, 4, 20, 20)
    assert (got.num_cached, got.num_evictable, got.num_pinned, got.num_query_tokens) == (0,) * 4
    assert (got.namespaces, got.prefixes, got.pins) == ([], [], [])


def test_blocks_are_counted_by_who_holds_them():
    house = CacheHouse(num_usable=20)
    house.run(list(range(16)))
    used = list(range(100, 112))
    house.compute(house.begin(used, house.key(used)), 10)
    pins = pins_of(house)
    pins.add(PrefixTarget(prompt_token_ids=list(range(8))), 60)
    got = report_cache(house.cache, CacheUse(), pins, 10)
    assert (got.num_cached, got.num_evictable, got.num_pinned, got.num_free) == (6, 2, 2, 13)
    assert [pin.num_blocks for pin in got.pins] == [2]


def test_blocks_are_counted_by_tier():
    house = CacheHouse(num_usable=6, num_host_blocks=8)
    prompt = list(range(17))
    house.run(prompt)
    house.settle()
    got = report(house)
    assert (got.num_cached, got.num_host_blocks, got.max_host_blocks) == (4, 4, 8)
    assert (got.num_offloaded, got.num_restored, got.num_evicted) == (4, 0, 0)
    assert [prefix.tier for prefix in got.prefixes] == ["device"]
    house.free(6)
    got = report(house)
    assert (got.num_cached, got.num_host_blocks, got.num_evicted) == (0, 4, 4)
    assert [prefix.tier for prefix in got.prefixes] == ["host"]
    [namespace] = got.namespaces
    assert (namespace.num_blocks, namespace.num_host_blocks) == (0, 4)
    house.begin(prompt, house.key(prompt))
    house.settle()
    assert report(house).num_restored == 4


def test_namespaces_come_biggest_first_and_activations_are_one():
    house = CacheHouse(num_usable=40)
    house.run(list(range(8)), BASE._replace(tenant="small", salt="s"), tenant="small")
    for activation in (1, 2, 3):
        house.run(list(range(8)), LORA._replace(activation=activation))
    house.run(list(range(16)))
    use = CacheUse()
    count(use, house, list(range(10)), 8)
    got = report(house, use)
    names = [(n.adapter, n.tenant, n.salted, n.num_blocks) for n in got.namespaces]
    assert names == [
        ("digest", None, False, 6),
        (None, None, False, 4),
        (None, "small", True, 2),
    ]
    tokens = [(n.num_query_tokens, n.num_hit_tokens) for n in got.namespaces]
    assert tokens == [(0, 0), (10, 8), (0, 0)]


def test_of_many_namespaces_the_biggest_are_reported(monkeypatch):
    monkeypatch.setattr(cache_report, "MAX_NAMESPACES", 2)
    house = CacheHouse(num_usable=40)
    for salt, num_blocks in (("a", 2), ("b", 1), ("c", 3)):
        house.run(list(range(4 * num_blocks)), BASE._replace(salt=salt))
    assert [namespace.num_blocks for namespace in report(house).namespaces] == [3, 2]


def test_a_namespace_that_holds_nothing_any_more_keeps_its_hit_rate():
    house, use = CacheHouse(), CacheUse()
    count(use, house, list(range(10)), 3, own=LORA)
    [namespace] = report(house, use).namespaces
    assert (namespace.adapter, namespace.num_blocks) == ("digest", 0)
    assert (namespace.num_query_tokens, namespace.num_hit_tokens) == (10, 3)


def test_an_activated_prompt_counts_for_the_base_up_to_its_own_blocks():
    house, use = CacheHouse(), CacheUse()
    own = LORA._replace(activation=9)
    count(use, house, list(range(20)), 12, own=own, base=BASE, start=9)
    count(use, house, list(range(20)), 4, own=own, base=BASE, start=9)
    counted = {namespace.adapter: tokens for namespace, *tokens in use.items()}
    assert counted == {None: [16, 12], "digest": [24, 4]}
    assert (use.num_query_tokens, use.num_hit_tokens) == (40, 16)


def test_the_namespaces_used_last_are_told_apart(monkeypatch):
    monkeypatch.setattr(cache_use, "MAX_NAMESPACES", 3)
    house, use = CacheHouse(), CacheUse()
    for salt in ("a", "b", "c", "a", "d"):
        count(use, house, [1, 2], 1, own=BASE._replace(salt=salt))
    assert [(name.salt, queries) for name, queries, _ in use.items()] == [
        ("c", 2),
        ("a", 4),
        ("d", 2),
    ]
    assert use.num_query_tokens == 10


def test_the_biggest_prefixes_end_or_branch():
    house = CacheHouse(num_usable=60)
    trunk = list(range(40))
    for first in (100, 200):
        house.run([*trunk, *range(first, first + 8)])
    house.run(list(range(500, 504)), LORA)
    longer = [*trunk, *range(100, 108), 1, 2, 3, 4]
    house.compute(house.begin(longer, house.key(longer)), len(longer))
    got = report(house).prefixes
    assert [prefix.num_tokens for prefix in got] == [52, 48, 40, 4]
    assert [prefix.in_use for prefix in got] == [True, False, True, False]
    assert [prefix.adapter for prefix in got] == [None, None, None, "digest"]
    assert got[0].first_token_ids == trunk[:NUM_FIRST_TOKENS]
    assert [prefix.num_tokens for prefix in report(house, max_prefixes=2).prefixes] == [52, 48]
    assert report(house, max_prefixes=0).prefixes == []


def test_a_prefix_was_found_by_all_that_found_more_of_it():
    house, use = CacheHouse(num_usable=60), CacheUse()
    trunk = list(range(16))
    house.run([*trunk, *range(100, 108)])
    for first, num_requests in ((100, 3), (200, 2)):
        tokens = [*trunk, *range(first, first + 8)]
        for _ in range(num_requests):
            sequence = house.begin(tokens, house.key(tokens))
            count(use, house, tokens, 4 * sequence.num_found, sequence.lease)
            house.compute(sequence, len(tokens))
            house.end(sequence)
    hits = {prefix.num_tokens: [] for prefix in report(house).prefixes}
    for prefix in report(house).prefixes:
        hits[prefix.num_tokens].append(prefix.num_hits)
    assert {length: sorted(counts) for length, counts in hits.items()} == {24: [1, 3], 16: [5]}


def test_a_scheduler_counts_what_its_requests_found():
    scheduler = make_scheduler()
    scheduler.add(generation("first", num_prompt=13, first=5))
    while scheduler.has_requests:
        step(scheduler)
    scheduler.add(generation("second", num_prompt=13, first=5))
    step(scheduler)
    assert (scheduler.use.num_query_tokens, scheduler.use.num_hit_tokens) == (26, 12)
    pins = Pins(scheduler.cache, scheduler.intake, 10, time.monotonic)
    got = report_cache(scheduler.cache, scheduler.use, pins, 5)
    assert (got.num_query_tokens, got.num_hit_tokens) == (26, 12)
    assert [(n.tenant, n.num_hit_tokens) for n in got.namespaces] == [("default", 12)]
    found = [(prefix.tenant, prefix.num_tokens, prefix.num_hits) for prefix in got.prefixes]
    assert found == [("default", 16, 0), ("default", 12, 1)]
