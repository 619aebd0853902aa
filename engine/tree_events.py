"""Tells subscribers which blocks can be found in the prefix cache, and in which tier."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .block_keys import chain_keys
from .cache_types import BlocksRemoved, BlocksStored, CacheCleared, CacheEvent, Tier
from .prefix_key import BYTES_PER_TOKEN, token_ids_of
from .radix_tree import Node

Listener = Callable[[CacheEvent], None]


class TreeEvents:
    """Makes events out of nodes; does nothing, and costs nothing, while nobody listens.

    A block is in tier ``device`` while it is on the device, and in ``host`` once it is in host
    memory alone.
    """

    def __init__(self, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener, held: Iterable[Node]) -> None:
        """Tell ``listener`` what is ``held``, parents first, and then all that happens.

        It is called on the engine's thread.
        """
        others, self._listeners = self._listeners, [listener]
        for node in held:
            self.stored(node, 0, "device" if node.on_device else "host")
        self._listeners = [*others, listener]

    def stored(self, node: Node, first: int, tier: Tier) -> None:
        """Blocks of ``node`` from number ``first`` on came to a tier."""
        if not self._listeners:
            return
        keys = self._keys(node)
        event = BlocksStored(
            namespace=node.namespace,
            parent_key=keys[first - 1] if first else self._parent_key(node),
            block_keys=keys[first:],
            token_ids=token_ids_of(node.key[first * self._block_bytes :]),
            block_size=self._block_bytes // BYTES_PER_TOKEN,
            tier=tier,
        )
        self._tell(event)

    def removed(self, node: Node, first: int, tier: Tier) -> None:
        """Blocks of ``node`` from number ``first`` on left a tier; those before it did not."""
        if self._listeners:
            self._tell(BlocksRemoved(block_keys=self._keys(node)[first:], tier=tier))

    def cleared(self) -> None:
        """Nothing can be found any more."""
        if self._listeners:
            self._tell(CacheCleared())

    def _keys(self, node: Node) -> list[bytes]:
        """Keys of all its blocks; the nodes above have none either if nobody listened before."""
        unnamed = []
        for above in node.path():
            if len(above.block_keys) * self._block_bytes == len(above.key):
                break
            unnamed.append(above)
        for above in reversed(unnamed):
            last = above.block_keys[-1] if above.block_keys else self._parent_key(above)
            rest = above.key[len(above.block_keys) * self._block_bytes :]
            above.block_keys += chain_keys(last, above.namespace, rest, self._block_bytes)
        return node.block_keys

    def _parent_key(self, node: Node) -> bytes | None:
        """The key of the block before the first, once the node above has its keys."""
        parent = node.parent
        return parent.block_keys[-1] if parent is not None and parent.block_keys else None

    def _tell(self, event: CacheEvent) -> None:
        for listener in self._listeners:
            listener(event)
