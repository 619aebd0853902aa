"""Pins: what they hold, for how long, and what is refused."""

from __future__ import annotations

import math

import pytest
from cache_house import BASE, CacheHouse

from branchline.engine import pins as pins_module
from branchline.engine.cache_types import Namespace, PrefixTarget
from branchline.engine.errors import RequestError
from branchline.engine.intake import Intake
from branchline.engine.pins import Pins
from branchline.lora.traits import AdapterTraits

ADAPTERS = {
    "plain": AdapterTraits(rank=8, num_bytes=1),
    "activated": AdapterTraits(rank=8, num_bytes=1, invocation_tokens=(7, 8)),
}
PROMPT = list(range(100, 117))


class PinHouse:
    """A cache of 20 blocks of 4 tokens, of which 12 may be pinned, and a clock set by hand."""

    def __init__(self, isolate_tenants: bool = False, **options) -> None:
        self.house = CacheHouse(**options)
        self.now = 100.0
        intake = Intake(self.house.cache, ADAPTERS, 100, isolate_tenants)
        self.pins = Pins(self.house.cache, intake, 12, lambda: self.now)

    def pin(self, tokens: list[int] = PROMPT, ttl: float = 10.0, **target):
        return self.pins.add(PrefixTarget(prompt_token_ids=tokens, **target), ttl)

    def evict_all(self) -> list[bool]:
        """Evict what can go; whether ``PROMPT``'s blocks are still there."""
        blocks = self.house.cache.blocks
        assert blocks.make_room(blocks.num_available, "other")
        self.house.check()
        return [node.on_device for node in self.house.nodes_of(PROMPT)]


def test_a_pinned_prefix_stays_until_its_time_is_over():
    here = PinHouse()
    here.house.run([*PROMPT, *range(7)])
    report = here.pin()
    assert (report.num_blocks, report.num_tokens, report.expires_in) == (4, 16, 10.0)
    assert here.pins.num_blocks == 4
    assert here.evict_all() == [True]
    here.now += 9.5
    here.pins.expire()
    [report] = here.pins.reports()
    assert report.expires_in == 0.5
    here.now += 0.5
    here.pins.expire()
    assert here.pins.reports() == []
    assert here.pins.num_blocks == 0
    assert here.evict_all() == []


def test_each_pin_has_a_time_of_its_own():
    here = PinHouse()
    here.house.run(PROMPT)
    late, soon = here.pin(ttl=30), here.pin(PROMPT[:8], ttl=20)
    here.now += 25
    here.pins.expire()
    assert [report.pin_id for report in here.pins.reports()] == [late.pin_id]
    assert here.pins.num_blocks == 4
    assert not here.pins.remove(soon.pin_id)
    here.now += 10
    here.pins.expire()
    assert here.pins.num_blocks == 0


def test_a_pin_is_removed_once():
    here = PinHouse()
    here.house.run(PROMPT)
    pin_id = here.pin().pin_id
    assert here.pins.remove(pin_id)
    assert not here.pins.remove(pin_id)
    assert here.evict_all() == []


def test_blocks_in_two_pins_are_one_block_each_but_count_for_both():
    here = PinHouse()
    here.house.run(PROMPT)
    here.pin()
    here.pin(PROMPT[:9])
    assert here.pins.num_blocks == 4
    here.pin(PROMPT)
    with pytest.raises(RequestError, match="needs 4 blocks; pins hold 10 and may hold 12") as error:
        here.pin()
    assert error.value.field == "prompt"
    assert len(here.pins.reports()) == 3


def test_a_pin_holds_what_is_cached_of_its_prefix():
    here = PinHouse()
    here.house.run(PROMPT[:8])
    assert here.pin().num_blocks == 2


def test_pinned_nodes_may_be_cut_in_two_and_grown_upon():
    here = PinHouse()
    here.house.run(PROMPT)
    here.pin()
    here.house.run([*PROMPT[:8], 1, 2, 3, 4])
    here.house.run([*PROMPT[:16], 5, 6, 7, 8])
    assert here.pins.num_blocks == 4
    assert here.evict_all() == [True, True]


def test_what_is_refused_leaves_nothing_locked():
    here = PinHouse()
    here.house.run(list(range(60)))
    for tokens, match in (
        (PROMPT, "is not in the prefix cache"),
        (PROMPT[:3], "has 3 tokens; whole blocks of 4 are pinned"),
        (list(range(60)), "needs 15 blocks; pins hold 0 and may hold 12"),
    ):
        with pytest.raises(RequestError, match=match):
            here.pin(tokens)
    with pytest.raises(RequestError, match="'nobody' is not loaded"):
        here.pin(list(range(60)), adapter="nobody")
    for ttl in (0.0, -1.0, math.nan):
        with pytest.raises(RequestError, match="ttl_seconds"):
            here.pin(list(range(8)), ttl=ttl)
    blocks = here.house.cache.blocks
    assert blocks.num_evictable == blocks.num_cached == 15
    assert here.pins.reports() == []


def test_there_is_an_end_to_the_number_of_pins(monkeypatch):
    monkeypatch.setattr(pins_module, "MAX_PINS", 2)
    here = PinHouse()
    here.house.run(PROMPT)
    first = here.pin(PROMPT[:4])
    here.pin(PROMPT[:4])
    with pytest.raises(RequestError, match="there are 2 pins"):
        here.pin(PROMPT[:4])
    here.pins.remove(first.pin_id)
    here.pin(PROMPT[:4])


def test_a_pin_is_of_one_tenant_salt_and_adapter():
    here = PinHouse(isolate_tenants=True)
    theirs = Namespace("model", "plain", "acme", "salt")
    here.house.run(PROMPT, theirs, tenant="acme")
    named = {"adapter": "plain", "tenant": "acme", "cache_salt": "salt"}
    for name, value in (("adapter", None), ("tenant", "other"), ("cache_salt", None)):
        with pytest.raises(RequestError, match="is not in the prefix cache"):
            here.pin(**{**named, name: value})
    report = here.pin(**named)
    assert (report.adapter, report.tenant, report.num_blocks) == ("plain", "acme", 4)


def test_a_pin_for_an_activated_lora_goes_on_from_the_base_where_it_is_invoked():
    here = PinHouse()
    prompt = [*PROMPT[:9], 7, 8, *PROMPT[:5]]
    own = BASE._replace(adapter="activated", activation=9)
    key = here.house.key(prompt, own, base=BASE, start=9)
    here.house.compute(here.house.begin(prompt, key), len(prompt))
    assert here.pin(prompt, adapter="activated").num_blocks == 4
    assert here.pin(PROMPT[:9], adapter="activated").num_blocks == 2, "not invoked: the base's"
    assert here.pin(prompt).num_blocks == 2


def test_after_a_reset_a_pin_still_gives_back_what_it_held():
    here = PinHouse()
    here.house.run(PROMPT)
    here.pin()
    here.house.cache.blocks.reset()
    assert here.pins.num_blocks == 4
    here.pins.clear()
    assert here.pins.num_blocks == 0
    assert here.house.cache.pool.num_free == here.house.cache.pool.num_usable


def test_a_pinned_prefix_is_copied_to_the_host_only_when_it_is_not_pinned_any_more():
    here = PinHouse(num_host_blocks=20)
    here.house.run(PROMPT)
    here.pin()
    here.house.settle()
    assert here.house.cache.blocks.host.num_used == 0
    here.now += 20
    here.pins.expire()
    here.house.settle()
    assert here.house.cache.blocks.host.num_used == 4


def test_what_is_in_host_memory_alone_is_not_pinned():
    here = PinHouse(num_host_blocks=20)
    here.house.run(PROMPT)
    here.house.settle()
    assert here.evict_all() == [False]
    with pytest.raises(RequestError, match="is in host memory"):
        here.pin()
    assert here.pins.num_blocks == 0


def test_counting_pinned_blocks_walks_no_path_in_each_step(monkeypatch):
    """Asked for after each step."""
    here = PinHouse()
    here.house.run(PROMPT)
    here.pin()
    assert here.pins.num_blocks == 4

    def walked(node):
        raise AssertionError("a path was walked")

    monkeypatch.setattr("branchline.engine.radix_tree.Node.path", walked)
    here.pins.expire()
    assert here.pins.num_blocks == 4
