"""A path-compressed radix tree over full KV blocks, each edge keyed by (namespace, tokens).

                root
               /    \\
    (base) system    (shout) system'        ref_count, root-ward: leases at or below a node
      prompt |
        /        \\
   question 1   question 2 ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from .cache_types import Namespace
from .prefix_key import BYTES_PER_TOKEN, PrefixKey

ChildKey = tuple[Namespace, bytes]


class Copy(Protocol):
    """A copy of blocks between device and host that may still be on its way."""

    @property
    def error(self) -> str | None:
        """Why it failed, once it is done."""

    def done(self) -> bool:
        """Whether it has ended, one way or the other; never waits."""


@dataclass(slots=True, eq=False)
class Transfer:
    """Nodes whose blocks are being copied, to the device if ``inbound``; ``lowest`` is locked."""

    inbound: bool
    nodes: list[Node]
    lowest: Node
    copy: Copy


class Node:
    """A run of blocks of one namespace.

    ``block_ids`` are on the device, ``host_ids`` in host memory: each holds one id a block of
    ``key``, or none. A node on the device has a parent on the device. ``transfer`` is the copy
    between the tiers that is on its way. A ``detached`` node can't be found any more.
    ``block_keys`` are the events' names of the first blocks, as far as they were needed.
    """

    __slots__ = (
        "block_ids",
        "block_keys",
        "children",
        "detached",
        "host_ids",
        "key",
        "last_used",
        "namespace",
        "num_device_children",
        "num_hits",
        "parent",
        "ref_count",
        "tenant",
        "transfer",
    )

    def __init__(
        self, parent: Node | None, namespace: Namespace, key: bytearray, tenant: str
    ) -> None:
        self.parent = parent
        self.namespace = namespace
        self.key = key
        self.tenant = tenant
        self.block_ids: list[int] = []
        self.host_ids: list[int] = []
        self.block_keys: list[bytes] = []
        self.children: dict[ChildKey, Node] = {}
        self.num_device_children = 0
        self.ref_count = 0
        self.last_used = 0
        self.num_hits = 0
        self.detached = False
        self.transfer: Transfer | None = None

    @property
    def on_device(self) -> bool:
        """Whether its blocks can be read by a step."""
        return bool(self.block_ids) and (self.transfer is None or not self.transfer.inbound)

    def path(self) -> Iterator[Node]:
        """This node and those above it, the root left out."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


class RadixTree:
    """The nodes; who may hold or evict them is the prefix cache's business."""

    def __init__(self, model: str, block_size: int) -> None:
        self.block_bytes = block_size * BYTES_PER_TOKEN
        self.block_size = block_size
        self.root = Node(None, Namespace(model), bytearray(), "")
        self._ticks = count(1)

    def num_blocks(self, node: Node) -> int:
        """Blocks of a node's run, wherever they are."""
        return len(node.key) // self.block_bytes

    def tick(self) -> int:
        """The time of now, as ``last_used`` counts it."""
        return next(self._ticks)

    def walk(self, key: PrefixKey) -> Iterator[tuple[Node, int]]:
        """Nodes that match from the start of ``key`` on, and how many blocks of each do."""
        node, block = self.root, 0
        while block < key.num_blocks:
            namespace = key.namespace(block)
            child = node.children.get((namespace, key.blocks(block, block + 1)))
            if child is None:
                return
            end = min(block + self.num_blocks(child), key.run_end(block))
            matched = self.num_equal(child.key, key.blocks(block, end))
            yield child, matched
            block += matched
            if matched < self.num_blocks(child):
                return
            node = child

    def num_equal(self, ours: bytearray, theirs: bytes) -> int:
        """Leading blocks that are equal; at least the first one is. Each probe is one memcmp."""
        size, low, high = self.block_bytes, 1, len(theirs) // self.block_bytes
        while low < high:
            middle = (low + high + 1) // 2
            if ours[low * size : middle * size] == theirs[low * size : middle * size]:
                low = middle
            else:
                high = middle - 1
        return low

    def add(self, parent: Node, namespace: Namespace, key: bytes, tenant: str) -> Node:
        """A new node under ``parent``, without blocks yet."""
        node = Node(parent, namespace, bytearray(key), tenant)
        parent.children[namespace, key[: self.block_bytes]] = node
        return node

    def split(self, node: Node, num_blocks: int) -> Node:
        """Cut a node after ``num_blocks`` blocks; it keeps the rest, the new one above is returned.

        Leases at ``node`` stay as they are: they hold both parts.
        """
        assert 0 < num_blocks < self.num_blocks(node)
        assert node.parent is not None
        size = num_blocks * self.block_bytes
        upper = Node(node.parent, node.namespace, node.key[:size], node.tenant)
        upper.block_ids, node.block_ids = node.block_ids[:num_blocks], node.block_ids[num_blocks:]
        upper.host_ids, node.host_ids = node.host_ids[:num_blocks], node.host_ids[num_blocks:]
        upper.block_keys = node.block_keys[:num_blocks]
        del node.block_keys[:num_blocks]
        for name in ("ref_count", "last_used", "num_hits", "detached", "transfer"):
            setattr(upper, name, getattr(node, name))
        if node.transfer is not None:
            node.transfer.nodes.append(upper)
        upper.num_device_children = int(bool(node.block_ids))
        node.parent.children[self._child_key(upper)] = upper
        del node.key[:size]
        node.parent = upper
        upper.children[self._child_key(node)] = node
        return upper

    def remove(self, node: Node) -> None:
        """Take a node, and with it all below, out of the tree."""
        assert node.parent is not None
        del node.parent.children[self._child_key(node)]

    def replace_root(self) -> Node:
        """Begin anew; returns the old root, whose nodes no walk finds any more."""
        old, self.root = self.root, Node(None, self.root.namespace, bytearray(), "")
        return old

    def _child_key(self, node: Node) -> ChildKey:
        return node.namespace, bytes(node.key[: self.block_bytes])

    def nodes(self, below: Node | None = None) -> Iterator[Node]:
        """Every node under ``below`` (None: the root), parents first."""
        stack = list((below or self.root).children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())
