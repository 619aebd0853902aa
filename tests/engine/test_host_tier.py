"""Blocks on their way between the tiers: what may go, what waits, and what a failure costs."""

from __future__ import annotations

import pytest
from cache_house import CacheHouse
from cache_machine import CacheMachine
from hypothesis import settings

from branchline.engine.host_tier import MAX_BLOCKS_PER_COPY
from branchline.engine.restore_policy import RestorePolicy

PROMPT = list(range(17))

TestHostTier = CacheMachine.TestCase
TestHostTier.settings = settings(max_examples=150, stateful_step_count=50)


def offloaded(num_usable: int = 6, **options) -> CacheHouse:
    """``PROMPT``'s four full blocks, in host memory alone."""
    house = CacheHouse(num_usable, **{"num_host_blocks": 6, **options})
    house.run(PROMPT)
    house.settle()
    house.free(num_usable)
    assert [node.on_device for node in house.nodes_of(PROMPT)] == [False]
    return house


def test_what_nobody_uses_is_copied_before_its_room_is_needed():
    house = CacheHouse(num_usable=8, num_host_blocks=8)
    used = house.begin(PROMPT, house.key(PROMPT))
    house.compute(used, len(PROMPT))
    house.settle()
    assert house.cache.blocks.host.num_used == 0, "somebody uses it"
    house.end(used)
    house.settle()
    assert house.cache.blocks.host.num_used == house.cache.host.num_offloaded == 4
    assert house.cache.blocks.num_cached == 4, "it is on the device, too"
    house.check()


def test_it_comes_back_by_a_copy_that_its_request_waits_for():
    house = offloaded(num_polls=3)
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    for _ in range(2):
        house.cache.advance()
        assert house.begin(PROMPT, house.key(PROMPT)) is None
        assert house.cache.host.num_restored == 0
    house.cache.advance()
    back = house.begin(PROMPT, house.key(PROMPT))
    assert (back.num_found, house.cache.host.num_restored) == (4, 4)
    house.check()


def test_a_node_on_its_way_out_is_not_evicted():
    house = CacheHouse(num_usable=8, num_host_blocks=8, num_polls=2)
    house.run(PROMPT)
    house.cache.advance()
    assert house.cache.blocks.num_evictable == 0
    assert not house.cache.blocks.make_room(5, "t")
    house.settle()
    house.free(8)


def test_one_that_ends_within_the_node_waits_for_all_of_it():
    """The node is cut in two while its copy is under way."""
    house = offloaded(num_polls=2)
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    other = [*PROMPT[:8], 90, 91, 92, 93]
    assert house.begin(other, house.key(other)) is None
    assert len(house.nodes_of(PROMPT)) == 2
    house.check()
    house.settle()
    found = [house.begin(t, house.key(t)).num_found for t in (PROMPT, other)]
    assert found == [4, 2]
    house.check()


def test_a_copy_back_that_fails_costs_the_prefix_and_nothing_else():
    house = offloaded(num_polls=2)
    house.copier.fails_next = True
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    half = [*PROMPT[:8], 90]
    assert house.begin(half, house.key(half)) is None
    house.settle()
    assert house.nodes_of(PROMPT) == []
    assert house.cache.blocks.host.num_free == 6
    assert house.cache.pool.num_free == 6
    assert house.run(PROMPT) == 0


def test_a_copy_out_that_fails_leaves_the_prefix_where_it_is():
    house = CacheHouse(num_usable=6, num_host_blocks=6)
    house.copier.fails_next = True
    house.run(PROMPT)
    house.settle()
    assert house.cache.blocks.host.num_used == house.cache.host.num_offloaded == 0
    assert house.run(PROMPT) == 4
    house.settle()
    assert house.cache.host.num_offloaded == 4, "it was used again, and is copied then"


def test_a_reset_while_a_copy_is_under_way_forgets_it_when_it_ends():
    for come_back in (False, True):
        house = CacheHouse(num_usable=6, num_host_blocks=6, num_polls=3)
        house.run(PROMPT)
        if come_back:
            house.settle()
            house.free(6)
            assert house.begin(PROMPT, house.key(PROMPT)) is None
        house.cache.advance()
        house.cache.blocks.reset()
        assert house.nodes_of(PROMPT) == []
        assert house.cache.blocks.host.num_used == 4, "the copy goes on"
        assert house.run([7]) == 0
        house.settle()
        assert house.cache.blocks.host.num_free == 6
        assert house.cache.pool.num_free == 6


def test_computed_again_while_it_is_in_host_memory_it_is_on_the_device_at_once():
    house = offloaded()
    house.cache.host.policy.pays = lambda num_blocks, bytes_per_second: False
    again = house.begin(PROMPT, house.key(PROMPT))
    assert again.num_found == 0
    house.compute(again, len(PROMPT))
    [node] = house.nodes_of(PROMPT)
    assert node.on_device
    assert node.host_ids
    house.check()
    house.end(again)
    house.check()


def test_one_that_computes_what_is_coming_back_keeps_its_own_blocks_until_it_is_there():
    house = offloaded(num_usable=12, num_polls=2)
    house.cache.host.policy.pays = lambda num_blocks, bytes_per_second: False
    quick = house.begin(PROMPT, house.key(PROMPT))
    house.cache.host.policy.pays = lambda num_blocks, bytes_per_second: True
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    house.compute(quick, 8)
    assert quick.lease.num_shared == 0
    house.settle()
    house.compute(quick, len(PROMPT))
    assert quick.lease.num_shared == 4
    house.check()


def test_the_copies_used_least_recently_make_room_from_their_ends():
    house = CacheHouse(num_usable=12, num_host_blocks=5)
    first, second = [*range(12)], [*range(100, 108)]
    house.run(first)
    house.settle()
    house.run(second)
    house.settle()
    assert house.cache.blocks.host.num_used == 5
    house.run([*range(200, 204)])
    house.settle()
    house.free(12)
    tokens_in_host = [sum(len(n.host_ids) for n in house.nodes_of(t)) for t in (first, second)]
    assert tokens_in_host == [0, 2]


def test_a_long_node_is_copied_a_piece_at_a_time():
    num_blocks = 2 * MAX_BLOCKS_PER_COPY + 10
    house = CacheHouse(num_usable=200, num_host_blocks=200, block_size=1)
    prompt = list(range(num_blocks))
    house.run(prompt)
    house.cache.advance()
    assert house.cache.blocks.host.num_used == MAX_BLOCKS_PER_COPY
    house.settle()
    assert house.cache.blocks.host.num_used == num_blocks
    house.free(200)
    assert house.begin(prompt, house.key(prompt)) is None
    house.settle()
    assert house.begin(prompt, house.key(prompt)).num_found == num_blocks


def test_without_room_to_come_back_to_nothing_is_begun():
    house = offloaded()
    other = list(range(100, 116))
    holder = house.begin(other, house.key(other))
    house.compute(holder, 16)
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    assert not house.cache.host.is_busy
    assert house.cache.blocks.num_evicted == 4, "nothing went for it either"
    house.check()
    house.end(holder)
    assert house.begin(PROMPT, house.key(PROMPT)) is None
    house.settle()
    assert house.begin(PROMPT, house.key(PROMPT)).num_found == 4


def test_a_node_offered_again_and_again_is_offered_once():
    house = CacheHouse(num_usable=12, num_host_blocks=12)
    for _ in range(50):
        house.run(PROMPT)
    assert house.cache.blocks.host.num_offered == 1
    house.free(12)
    assert house.cache.blocks.host.num_offered == 0
    assert not house.cache.host.is_busy


@pytest.mark.parametrize(
    ("seconds_per_token", "bytes_per_second", "pays"),
    [
        (None, 1e9, True),
        (1e-4, None, True),
        (1e-4, 1e9, True),
        (1e-7, 1e9, False),
        (1e-4, 1e6, False),
    ],
)
def test_copying_pays_where_it_is_quicker_than_computing(seconds_per_token, bytes_per_second, pays):
    """100 blocks of 16 tokens and 64 KiB: 6.5 ms to copy at 1 GB/s."""
    policy = RestorePolicy(64 << 10, 16)
    if seconds_per_token is not None:
        policy.computed(1000, 1000 * seconds_per_token)
    assert policy.pays(100, bytes_per_second) is pays


def test_steps_of_few_tokens_say_nothing_about_prefill():
    policy = RestorePolicy(64 << 10, 16)
    policy.computed(1, 10.0)
    policy.computed(1000, 1e-4)
    assert not policy.pays(100, 1e9)
    for _ in range(60):
        policy.computed(1000, 1.0)
    assert policy.pays(100, 1e9)
