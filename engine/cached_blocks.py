"""The blocks that the radix tree owns: which are locked, which may go, and in what order.

free + private + cached = all           private: leases' own, not in the tree yet
cached = locked + evictable             locked: some lease or copy needs the node
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from .blocks import BlockPool
from .eviction import EvictionQueue
from .host_blocks import HostBlocks
from .radix_tree import Node, RadixTree
from .tally import Tally
from .tree_events import TreeEvents


class CachedBlocks:
    """Counts, locks and evicts the nodes of one tree over one pool.

    ``tenant_limit`` is the number of blocks over which a tenant's are the first to go when
    another tenant needs room.
    """

    def __init__(
        self, pool: BlockPool, tree: RadixTree, tenant_limit: int, num_host_blocks: int
    ) -> None:
        self.pool = pool
        self.tree = tree
        self.tenant_limit = tenant_limit
        self.num_cached = 0
        self.num_evictable = 0
        self.num_evicted = 0
        self.num_private = 0
        self.events = TreeEvents(tree.block_bytes)
        self.host = HostBlocks(num_host_blocks, self.events)
        self.pinned_of: Counter[str] = Counter()
        self._held_of = Tally()
        self._cached_of = Tally()
        self._over: set[str] = set()
        self._queue = EvictionQueue(_is_device_leaf)

    @property
    def num_available(self) -> int:
        """Blocks that can be had, some of them by eviction."""
        return self.pool.num_free + self.num_evictable

    def num_held(self, tenant: str) -> int:
        """Blocks that a tenant's live requests hold; shared ones count for who made them.

        Pinned blocks are the admin's.
        """
        return max(0, self._held_of[tenant] - self.pinned_of[tenant])

    def add_private(self, tenant: str, num_blocks: int) -> None:
        """Count blocks that a lease took, or gave away."""
        self.num_private += num_blocks
        self._held_of.add(tenant, num_blocks)

    def lock(self, node: Node) -> None:
        """One more lease needs a node, and with it all above."""
        for above in node.path():
            self.lock_one(above)

    def lock_one(self, node: Node) -> None:
        """Lock a node whose parents the caller has locked."""
        if node.ref_count == 0:
            self.num_evictable -= len(node.block_ids)
            self._held_of.add(node.tenant, len(node.block_ids))
        node.ref_count += 1

    def unlock(self, node: Node, *, used: bool = True) -> None:
        """Undo one ``lock``; what nobody needs any more may be evicted.

        ``used`` False: nothing was made of it, so it is no more recently used than before.
        """
        tick = self.tree.tick() if used else 0
        for above in node.path():
            above.ref_count -= 1
            above.last_used = max(above.last_used, tick)
            assert above.ref_count >= 0
            if above.ref_count == 0:
                self._retire(above)

    def _retire(self, node: Node) -> None:
        self._held_of.add(node.tenant, -len(node.block_ids))
        self.num_evictable += len(node.block_ids)
        if node.detached:
            self.host.drop(node)
            self.take_off_device(node)
        else:
            self._queue.push(node)
            self.host.offer(node)

    def put_on_device(self, node: Node, block_ids: list[int]) -> None:
        """Give a locked node without device blocks its blocks; the tree owns them from now on."""
        assert node.ref_count
        assert not node.block_ids
        node.block_ids = block_ids
        if node.parent is not None:
            node.parent.num_device_children += 1
        self.count_cached(node, len(block_ids))
        if node.on_device:
            self.events.stored(node, 0, "device")

    def count_cached(self, node: Node, num_blocks: int) -> None:
        """Count blocks that a locked node got."""
        self.num_cached += num_blocks
        self._add_cached(node.tenant, num_blocks)
        self._held_of.add(node.tenant, num_blocks)

    def take_off_device(self, node: Node) -> None:
        """Free the device blocks of a node that nobody has locked."""
        block_ids, node.block_ids = node.block_ids, []
        self._uncount(node, block_ids)
        if block_ids and node.parent is not None:
            node.parent.num_device_children -= 1
            self._queue.push(node.parent)

    def _uncount(self, node: Node, block_ids: list[int]) -> None:
        assert node.ref_count == 0
        self.pool.give_back(block_ids)
        self.num_cached -= len(block_ids)
        self.num_evictable -= len(block_ids)
        self._add_cached(node.tenant, -len(block_ids))

    def make_room(self, num_blocks: int, tenant: str, keep: Collection[Node] = ()) -> bool:
        """Evict until ``num_blocks`` are free, or not at all if that is not to be had."""
        missing = num_blocks - self.pool.num_free
        kept = sum(len(node.block_ids) for node in keep if not node.ref_count)
        if missing > self.num_evictable - kept:
            return False
        for other in self._over_limit(tenant) if missing > 0 else ():
            missing -= self._evict(missing, keep, other)
        missing -= self._evict(missing, keep, None)
        return missing <= 0

    def _over_limit(self, tenant: str) -> list[str]:
        """Other tenants with more blocks than their share, cached ones included."""
        return [other for other in self._over if other != tenant]

    def _add_cached(self, tenant: str, num_blocks: int) -> None:
        self._cached_of.add(tenant, num_blocks)
        if self._cached_of[tenant] > self.tenant_limit:
            self._over.add(tenant)
        else:
            self._over.discard(tenant)

    def _evict(self, num_blocks: int, keep: Collection[Node], tenant: str | None) -> int:
        """Free up to ``num_blocks``, least recently used leaves first, each from its tail."""
        num_freed, kept = 0, []
        while num_freed < num_blocks:
            if tenant is not None and self._cached_of[tenant] <= self.tenant_limit:
                break
            node = self._queue.pop(tenant)
            if node is None:
                break
            if node in keep:
                kept.append(node)
            else:
                num_freed += self._shrink(node, num_blocks - num_freed)
        for node in kept:
            self._queue.push(node)
        self.num_evicted += num_freed
        return num_freed

    def _shrink(self, node: Node, num_wanted: int) -> int:
        """Free blocks at the tail of a leaf, or all of it where a copy stays in host memory.

        A node that was copied is no larger than a copy, and comes back as it went: whole.
        """
        if num_wanted < len(node.block_ids) and not node.host_ids:
            return self._cut_tail(node, num_wanted)
        num_freed = len(node.block_ids)
        self.events.removed(node, 0, "device")
        self.take_off_device(node)
        if node.host_ids:
            self.events.stored(node, 0, "host")
            self.host.offer(node)
        else:
            self.remove(node)
        return num_freed

    def _cut_tail(self, node: Node, num_wanted: int) -> int:
        for child in list(node.children.values()):
            self.remove(child)
        keep = len(node.block_ids) - num_wanted
        self.events.removed(node, keep, "device")
        self._uncount(node, node.block_ids[keep:])
        del node.block_ids[keep:], node.block_keys[keep:]
        del node.key[keep * self.tree.block_bytes :]
        self._queue.push(node)
        return num_wanted

    def remove(self, node: Node) -> None:
        """Take a node without device blocks, and all of host memory below it, out of the tree."""
        for below in [node, *self.tree.nodes(node)]:
            assert not below.block_ids
            assert not below.ref_count
            self.host.drop(below)
            below.detached = True
        self.tree.remove(node)

    def reset(self) -> int:
        """Forget everything; blocks in use are freed as their leases end. Returns their number."""
        num_blocks = self.num_cached
        old = self.tree.replace_root()
        old.detached = True
        for node in reversed(list(self.tree.nodes(old))):
            node.detached = True
            if not node.ref_count:
                self.host.drop(node)
                self.take_off_device(node)
        self.events.cleared()
        return num_blocks


def _is_device_leaf(node: Node) -> bool:
    return bool(
        node.parent is not None
        and node.block_ids
        and not node.ref_count
        and not node.num_device_children
        and not node.detached
    )
