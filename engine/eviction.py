"""Which unreferenced leaf goes first: the least recently used, of all tenants or of one."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from .radix_tree import Node

Entry = tuple[int, int, Node]


class EvictionQueue:
    """A heap of nodes by ``last_used``; what is no candidate any more is passed over when met.

    ``is_candidate`` says whether a node may go now. A node is pushed whenever it may have become
    one; entries are not taken out when it is used again.
    """

    def __init__(self, is_candidate: Callable[[Node], bool]) -> None:
        self._is_candidate = is_candidate
        self._heaps: dict[str | None, list[Entry]] = {None: []}
        self._numbers = count()
        self._num_pushes = 0
        self._max_pushes = 256

    def push(self, node: Node) -> None:
        """Note that a node may be a candidate from now on."""
        entry = (node.last_used, next(self._numbers), node)
        heapq.heappush(self._heaps[None], entry)
        heapq.heappush(self._heaps.setdefault(node.tenant, []), entry)
        self._num_pushes += 1
        if self._num_pushes > self._max_pushes:
            self._rebuild()

    def pop(self, tenant: str | None = None) -> Node | None:
        """The next candidate, of ``tenant`` if one is named; it is no longer in that queue."""
        heap = self._heaps.get(tenant, [])
        while heap:
            last_used, _, node = heapq.heappop(heap)
            if last_used == node.last_used and self._is_candidate(node):
                return node
        if tenant is not None:
            self._heaps.pop(tenant, None)
        return None

    def _rebuild(self) -> None:
        """Forget entries that stand for nothing, so that the heaps stay as small as the tree."""
        live = {
            id(entry[2]): entry
            for entry in self._heaps[None]
            if entry[0] == entry[2].last_used and self._is_candidate(entry[2])
        }
        self._heaps = {None: sorted(live.values())}
        for entry in self._heaps[None]:
            self._heaps.setdefault(entry[2].tenant, []).append(entry)
        self._num_pushes, self._max_pushes = 0, 2 * len(live) + 256
