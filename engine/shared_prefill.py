"""Which blocks are being computed just now, so that no two requests compute the same ones."""

from __future__ import annotations

from collections.abc import Sequence

from .cache_types import Namespace
from .prefix_cache import BlockLease
from .prefix_key import PrefixKey
from .radix_tree import Node
from .request import Request

Place = tuple[Node, Namespace, bytes]


class SharedPrefill:
    """The next block that each prefill will commit, by its place in the radix tree.

    A waiting request whose own next block is among them waits until that one is in the tree.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._places: dict[Place, Request] = {}
        self._place_of: dict[str, Place] = {}

    def moved(self, request: Request) -> None:
        """A prefill has begun, or has committed blocks; it ends when no full block is left."""
        self.ended(request)
        place = _place(request.blocks, request.key) if self._enabled else None
        if place is not None and place not in self._places:
            self._places[place] = request
            self._place_of[request.request_id] = place

    def ended(self, request: Request) -> None:
        """A request will commit no further block of its prompt, or none for now."""
        place = self._place_of.pop(request.request_id, None)
        if place is not None:
            del self._places[place]

    def is_under_way(self, lease: BlockLease, key: PrefixKey) -> bool:
        """Whether another request is computing what ``lease`` lacks next."""
        return _place(lease, key) in self._places

    def check(self, running: Sequence[Request]) -> None:
        """Both tables say the same, and of running requests only."""
        assert self._place_of.keys() <= {request.request_id for request in running}
        assert {place: r.request_id for place, r in self._places.items()} == {
            place: request_id for request_id, place in self._place_of.items()
        }


def _place(lease: BlockLease, key: PrefixKey) -> Place | None:
    block = lease.num_shared
    if lease.node is None or block >= key.num_blocks:
        return None
    return lease.node, key.namespace(block), key.blocks(block, block + 1)
