"""The blocks of the host tier: which node's copy is in which, and which copy goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from .eviction import EvictionQueue
from .radix_tree import Node
from .tree_events import TreeEvents


class HostBlocks:
    """Host blocks; each is free, or belongs to one node of the tree."""

    def __init__(self, num_blocks: int, events: TreeEvents) -> None:
        self.num_blocks = num_blocks
        self._events = events
        self._free = list(range(num_blocks))
        self._queue = EvictionQueue(_is_host_leaf)
        self._offered: OrderedDict[Node, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Host blocks that hold nothing."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Host blocks that hold a copy, or are about to."""
        return self.num_blocks - len(self._free)

    @property
    def num_offered(self) -> int:
        """Nodes that could be copied out."""
        return len(self._offered)

    def offer(self, node: Node) -> None:
        """Note that nobody uses a node just now: it can be copied out, or its copy dropped."""
        if node.host_ids:
            self._queue.push(node)
        elif self.num_blocks:
            self._offered.setdefault(node)

    def offer_first(self, node: Node) -> None:
        """Offer a node before all others."""
        self._offered[node] = None
        self._offered.move_to_end(node, last=False)

    def next_offer(self) -> Node | None:
        """A node on the device that nobody uses and that has no copy, taken off the list."""
        while self._offered:
            node, _ = self._offered.popitem(last=False)
            if node.block_ids and not (node.ref_count or node.detached or node.host_ids):
                return node
        return None

    def take(self, num_blocks: int) -> list[int] | None:
        """Free host blocks, or None; all or nothing."""
        if num_blocks > len(self._free):
            return None
        taken = self._free[-num_blocks:]
        del self._free[-num_blocks:]
        return taken

    def least_recently_used(self) -> Iterator[Node]:
        """Nodes whose copy can go, the one unused for longest first; each must be dropped."""
        while (node := self._queue.pop()) is not None:
            yield node

    def drop(self, node: Node) -> None:
        """Free the host blocks of a node; one without them is no longer offered."""
        self._offered.pop(node, None)
        if not node.host_ids:
            return
        if not node.block_ids and not node.detached:
            self._events.removed(node, 0, "host")
        self._free += node.host_ids
        node.host_ids = []
        if node.parent is not None and node.parent.host_ids:
            self._queue.push(node.parent)


def _is_host_leaf(node: Node) -> bool:
    """Whether a node's copy can go: nothing below depends on it."""
    return bool(
        node.host_ids
        and not node.ref_count
        and node.transfer is None
        and not node.detached
        and not any(child.host_ids for child in node.children.values())
    )
