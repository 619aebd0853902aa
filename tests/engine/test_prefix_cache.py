"""What the prefix cache finds, keeps and lets go, an example each."""

from __future__ import annotations

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool
from branchline.engine.cache_types import Namespace
from branchline.engine.prefix_cache import BlockLease, PrefixCache
from branchline.engine.prefix_key import PrefixKey

SIZE = 4
BASE = Namespace("model")
LORA = Namespace("model", adapter="digest")


def make_cache(num_usable: int = 20, **options) -> PrefixCache:
    return PrefixCache(BlockPool(num_usable + NUM_RESERVED_BLOCKS, SIZE), "model", **options)


def key_of(tokens: list[int], own: Namespace = BASE, base=None, own_start: int = 0) -> PrefixKey:
    key = PrefixKey(SIZE, own, base, own_start)
    key.extend_to(tokens)
    return key


def start(cache, tokens, own=BASE, tenant="t", **key) -> BlockLease:
    """A lease with room for ``tokens``, of which what is known is shared."""
    lease = BlockLease(cache, tenant)
    cache.match(lease, key_of(tokens, own, **key))
    assert cache.grow(lease, len(tokens))
    return lease


def run(cache, tokens, own=BASE, tenant="t", **key) -> int:
    """A request that is computed and ends; returns the blocks that it found."""
    lease = start(cache, tokens, own, tenant, **key)
    num_found = lease.num_shared
    spare = cache.commit(lease, key_of(tokens, own, **key), len(tokens))
    assert spare is None
    cache.check()
    lease.release()
    cache.check()
    return num_found


def tokens(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


def test_a_prompt_seen_before_is_found_in_whole_blocks():
    cache = make_cache()
    assert run(cache, tokens(11)) == 0
    assert run(cache, tokens(11)) == 2
    assert run(cache, tokens(8)) == 2
    assert run(cache, tokens(7)) == 1
    assert run(cache, [*tokens(6), 99, 99]) == 1
    assert run(cache, [99, *tokens(7)]) == 0


def test_two_ends_of_one_beginning_split_a_node():
    cache = make_cache()
    run(cache, tokens(16))
    run(cache, [*tokens(8), *tokens(8, first=50)])
    [trunk] = cache.tree.root.children.values()
    assert [len(node.block_ids) for node in (trunk, *trunk.children.values())] == [2, 2, 2]
    assert cache.blocks.num_cached == 6


def test_a_conversation_grows_in_place_and_is_one_node():
    cache = make_cache()
    lease = start(cache, tokens(5))
    for length in range(5, 33):
        assert cache.grow(lease, length)
        cache.commit(lease, key_of(tokens(length)), length)
        cache.check()
    assert len(list(cache.tree.nodes())) == 1
    assert lease.num_shared == 8
    lease.release()
    assert run(cache, tokens(40)) == 8


def test_namespaces_share_nothing():
    cache = make_cache()
    run(cache, tokens(8))
    for other in (
        LORA,
        BASE._replace(tenant="t"),
        BASE._replace(salt="s"),
        LORA._replace(activation=4),
    ):
        assert run(cache, tokens(8), other) == 0
        assert run(cache, tokens(8), other) == 2


def test_an_activated_lora_walks_the_base_up_to_its_activation():
    cache = make_cache()
    run(cache, tokens(16))
    own = LORA._replace(activation=9)
    activated = {"own": own, "base": BASE, "own_start": 9 // SIZE}
    assert run(cache, tokens(16), **activated) == 2
    assert run(cache, tokens(16), **activated) == 4
    assert run(cache, tokens(16), LORA._replace(activation=8), base=BASE, own_start=2) == 2
    assert run(cache, tokens(16)) == 4


def test_of_two_that_computed_the_same_one_gives_its_blocks_back():
    cache = make_cache()
    first, second = start(cache, tokens(8)), start(cache, tokens(8))
    assert cache.commit(first, key_of(tokens(8)), 8) is None
    own = list(second.block_ids)
    spare = cache.commit(second, key_of(tokens(8)), 8)
    assert spare.block_ids == own
    assert second.block_ids == first.block_ids
    cache.check()
    for lease in (spare, first, second):
        lease.release()
        cache.check()
    assert cache.blocks.num_available == cache.pool.num_usable
    assert cache.blocks.num_cached == 2


def test_only_full_computed_blocks_are_committed():
    cache = make_cache()
    lease = start(cache, tokens(12))
    cache.commit(lease, key_of(tokens(12)), 7)
    assert (lease.num_shared, cache.blocks.num_cached) == (1, 1)
    assert lease.num_shared_tokens == 4


def test_eviction_takes_the_least_recently_used_leaf_from_its_tail():
    cache = make_cache(num_usable=8)
    run(cache, tokens(16))
    run(cache, tokens(8, first=50))
    run(cache, tokens(16))  # used again: the other one is older now
    lease = start(cache, tokens(12, first=90))
    assert cache.blocks.num_evicted == 1
    lease.release()
    assert run(cache, tokens(8, first=50)) == 1
    assert run(cache, tokens(16)) == 4


def test_a_locked_path_is_never_evicted():
    cache = make_cache(num_usable=6)
    run(cache, tokens(8))
    held = start(cache, [*tokens(8), 70, 71])
    assert held.num_shared == 2
    other = BlockLease(cache, "t")
    cache.match(other, key_of(tokens(16, first=100)))
    assert not cache.grow(other, 16)
    assert cache.blocks.num_evicted == 0
    assert cache.grow(other, 12)
    held.release()
    assert cache.grow(other, 16)
    cache.check()


def test_what_the_next_requests_will_use_is_kept_if_it_can_be():
    cache = make_cache(num_usable=6)
    run(cache, tokens(8))
    run(cache, tokens(8, first=50))
    keep = cache.find(key_of(tokens(9)))
    lease = BlockLease(cache, "t")
    cache.match(lease, key_of(tokens(16, first=100)))
    assert cache.grow(lease, 16, keep)
    assert not cache.grow(lease, 17, keep)
    assert len(cache.find(key_of(tokens(8)))) == 1
    assert cache.find(key_of(tokens(8, first=50))) == []
    assert cache.grow(lease, 17)
    cache.check()


def test_a_tenant_over_its_share_loses_its_blocks_to_others_first():
    cache = make_cache(num_usable=10, tenant_share=0.5)
    run(cache, tokens(8), tenant="small")
    for i in range(4):
        run(cache, tokens(8, first=100 * i + 100), tenant="big")
    lease = start(cache, tokens(12, first=900), tenant="third")
    assert len(cache.find(key_of(tokens(8)))) == 1, "the oldest, but of a tenant within its share"
    lease.release()
    assert run(cache, tokens(12, first=1900), tenant="big") == 0, "its own go as any others"


def test_a_reset_forgets_all_and_frees_what_is_in_use_when_it_no_longer_is():
    cache = make_cache()
    run(cache, tokens(8))
    held = start(cache, [*tokens(8), *tokens(8, first=50)])
    assert cache.blocks.reset() == 2
    cache.check()
    assert cache.find(key_of(tokens(8))) == []
    assert cache.commit(held, key_of([*tokens(8), *tokens(8, first=50)]), 16) is None
    assert cache.blocks.num_cached == 2
    held.release()
    cache.check()
    assert cache.blocks.num_cached == 0
    assert cache.pool.num_free == cache.pool.num_usable
    assert run(cache, tokens(8)) == 0


def test_switched_off_it_finds_nothing():
    cache = make_cache(enabled=False)
    assert run(cache, tokens(8)) == 0
    assert run(cache, tokens(8)) == 0
    assert cache.blocks.num_cached == 0


def test_a_match_of_a_long_prompt_finds_the_first_difference_wherever_it_is():
    cache = make_cache(num_usable=200)
    long = tokens(400)
    run(cache, long)
    for place in range(0, 400, 7):
        other = [*long[:place], 1000, *long[place + 1 :]]
        found = cache.tree.walk(key_of(other))
        assert sum(num_blocks for _, num_blocks in found) == place // SIZE
