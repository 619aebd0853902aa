"""The prefix cache: KV blocks of finished and running requests, found again by their tokens.

A request's lease starts with the blocks that the radix tree has for its tokens and goes on with
blocks of its own. Each own block that is full and computed is committed: the tree owns it from
then on, and the lease locks its node. Blocks of nodes that no lease locks can be evicted.

    lease.block_ids   [ 7  3  9 | 4  6 ]       free + private + cached = all
                       shared    private       cached = locked + evictable
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .blocks import BlockPool
from .cache_check import check_cache
from .cache_types import CacheEvent, Namespace
from .cached_blocks import CachedBlocks
from .host_tier import Copier, HostTier
from .prefix_key import PrefixKey
from .radix_tree import Node, RadixTree
from .restore_policy import RestorePolicy


class BlockLease:
    """The blocks of one request, in sequence order; grows as the request does.

    The first ``num_shared`` belong to the tree, down to ``node``, which is locked.
    """

    __slots__ = ("_cache", "block_ids", "node", "num_shared", "tenant")

    def __init__(self, cache: PrefixCache, tenant: str) -> None:
        self._cache = cache
        self.tenant = tenant
        self.block_ids: list[int] = []
        self.num_shared = 0
        self.node: Node | None = None

    @property
    def num_slots(self) -> int:
        """Tokens that fit in the blocks held."""
        return len(self.block_ids) * self._cache.block_size

    @property
    def num_shared_tokens(self) -> int:
        """Tokens at the start whose KV is the tree's: it must not be written again."""
        return self.num_shared * self._cache.block_size

    def num_missing(self, num_tokens: int) -> int:
        """Blocks to take before ``num_tokens`` tokens fit."""
        return max(0, -(-num_tokens // self._cache.block_size) - len(self.block_ids))

    def release(self) -> None:
        """Give the private blocks back and unlock the others."""
        self._cache.release(self)


class PrefixCache:
    """Gives requests their blocks; every lease takes and returns blocks through it.

    With ``enabled`` false nothing is ever found or committed. ``tenant_share`` is the part of the
    pool over which a tenant's blocks are the first to go when another tenant needs room.
    """

    def __init__(
        self,
        pool: BlockPool,
        model: str,
        *,
        enabled: bool = True,
        tenant_share: float = 1.0,
        num_host_blocks: int = 0,
    ) -> None:
        self.block_size = pool.block_size
        self.enabled = enabled
        self.model = model
        self.pool = pool
        self.tree = RadixTree(model, pool.block_size)
        limit = int(tenant_share * pool.num_usable)
        self.blocks = CachedBlocks(pool, self.tree, limit, num_host_blocks)
        self.host: HostTier | None = None

    def attach_host(self, copier: Copier, policy: RestorePolicy) -> None:
        """Use the host blocks; they need the pool's memory, which is there only by now."""
        self.host = HostTier(self.blocks, copier, policy)

    @property
    def num_offloaded(self) -> int:
        """Blocks copied to host memory so far."""
        return 0 if self.host is None else self.host.num_offloaded

    @property
    def num_restored(self) -> int:
        """Blocks copied back so far."""
        return 0 if self.host is None else self.host.num_restored

    def match(self, lease: BlockLease, key: PrefixKey) -> list[Node]:
        """Give an empty lease the longest beginning of ``key`` that is on the device, locked.

        Returns the nodes that go on from there in host memory, if any.
        """
        assert lease.node is None
        assert not lease.block_ids
        lease.node, in_host = self.tree.root, []
        path = list(self.tree.walk(key)) if self.enabled else []
        for node, num_matched in path:
            if num_matched < self.tree.num_blocks(node):
                node = self.tree.split(node, num_matched)
            if node.on_device:
                lease.block_ids += node.block_ids
                lease.node = node
            else:
                in_host.append(node)
        lease.num_shared = len(lease.block_ids)
        self.blocks.lock(lease.node)
        return in_host

    def find(self, key: PrefixKey) -> list[Node]:
        """The nodes that ``match`` would find, untouched."""
        return [node for node, _ in self.tree.walk(key)] if self.enabled else []

    def grow(self, lease: BlockLease, num_tokens: int, keep: Collection[Node] = ()) -> bool:
        """Hold enough for ``num_tokens`` tokens; False, and unchanged, if blocks ran out.

        Makes room by eviction, but not of the nodes in ``keep``.
        """
        missing = lease.num_missing(num_tokens)
        if not missing:
            return True
        if not self.blocks.make_room(missing, lease.tenant, keep):
            return False
        taken = self.pool.take(missing)
        assert taken is not None
        lease.block_ids += taken
        self.blocks.add_private(lease.tenant, missing)
        return True

    def commit(
        self, lease: BlockLease, key: PrefixKey, num_computed_tokens: int
    ) -> BlockLease | None:
        """Move the lease's full, computed blocks into the tree.

        Where another lease has committed the same tokens before, the lease takes over that block;
        its own are in the lease that is returned, to be released when no step reads them.
        """
        if not self.enabled or (lease.node is not None and lease.node.detached):
            return None
        spare: list[int] = []
        end = min(num_computed_tokens // self.block_size, key.num_blocks)
        while lease.num_shared < end:
            start = lease.num_shared
            data = key.blocks(start, min(end, key.run_end(start)))
            if not self._commit_run(lease, key, data, spare):
                break
        if not spare:
            return None
        rest = BlockLease(self, lease.tenant)
        rest.block_ids = spare
        return rest

    def release(self, lease: BlockLease) -> None:
        """See ``BlockLease.release``; an empty lease is no error."""
        private = lease.block_ids[lease.num_shared :]
        self.pool.give_back(private)
        self.blocks.add_private(lease.tenant, -len(private))
        node, lease.node = lease.node, None
        lease.block_ids, lease.num_shared = [], 0
        if node is not None:
            self.blocks.unlock(node)

    def _commit_run(self, lease: BlockLease, key: PrefixKey, data: bytes, spare: list[int]) -> bool:
        """Commit blocks of one namespace, as many as one node takes; False if none can be."""
        assert lease.node is not None
        start, namespace = lease.num_shared, key.namespace(lease.num_shared)
        child = lease.node.children.get((namespace, data[: self.tree.block_bytes]))
        if child is None:
            num_blocks = len(data) // self.tree.block_bytes
            self._append(lease, namespace, data)
        else:
            child, num_blocks = self._cut(child, data)
            if child.transfer is not None and child.transfer.inbound:
                return False
            own = lease.block_ids[start : start + num_blocks]
            self.blocks.lock_one(child)
            if child.block_ids:
                spare += own
                lease.block_ids[start : start + num_blocks] = child.block_ids
            else:
                self.blocks.add_private(lease.tenant, -num_blocks)
                self.blocks.put_on_device(child, own)
            lease.node = child
        lease.num_shared += num_blocks
        return True

    def _append(self, lease: BlockLease, namespace: Namespace, data: bytes) -> None:
        """New content: longer in place where nobody else would notice, else a new child."""
        assert lease.node is not None
        node, start = lease.node, lease.num_shared
        num_blocks = len(data) // self.tree.block_bytes
        block_ids = lease.block_ids[start : start + num_blocks]
        self.blocks.add_private(lease.tenant, -num_blocks)
        if _can_extend(node, lease) and node.namespace == namespace:
            node.key += data
            node.block_ids += block_ids
            self.blocks.count_cached(node, num_blocks)
            self.blocks.events.stored(node, len(node.block_ids) - num_blocks, "device")
        else:
            node = self.tree.add(node, namespace, data, lease.tenant)
            self.blocks.lock_one(node)
            self.blocks.put_on_device(node, block_ids)
            lease.node = node
        node.last_used = self.tree.tick()

    def _cut(self, node: Node, data: bytes) -> tuple[Node, int]:
        """The part of ``node`` that ``data`` begins with, as a node, and its number of blocks."""
        num_blocks = self.tree.num_equal(node.key, data)
        if num_blocks < self.tree.num_blocks(node):
            node = self.tree.split(node, num_blocks)
        return node, num_blocks

    def restore(self, nodes: Sequence[Node], tenant: str, keep: Collection[Node] = ()) -> bool:
        """Begin to bring nodes back from host memory, if that is worth it and there is room.

        True if it pays to wait for them, these or others that are on their way.
        """
        assert self.host is not None, "only a host tier gives nodes that are not on the device"
        return self.host.restore(nodes, tenant, keep)

    def advance(self) -> None:
        """Take note of copies that are done and start others; never waits."""
        if self.host is not None:
            self.host.advance()

    def check(self) -> None:
        """Free, private and cached blocks are all there are, and the tree is sound."""
        check_cache(self.blocks)

    def subscribe(self, listener: Callable[[CacheEvent], None]) -> None:
        """Have ``listener`` told of what is stored now, and of all that comes and goes."""
        self.blocks.events.subscribe(listener, self.tree.nodes())


def _can_extend(node: Node, lease: BlockLease) -> bool:
    return (
        node.parent is not None
        and node.ref_count == 1
        and not node.children
        and not node.host_ids
        and node.transfer is None
        and node.tenant == lease.tenant
    )
