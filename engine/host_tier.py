"""The host tier: copies of cached blocks in host memory, and the way back to the device.

Nodes are copied out in the background as soon as nobody uses them, so that evicting them later
frees their device blocks at once: a step never waits for a copy. A node that is only in host
memory stays in the tree below those on the device, and comes back when a request matches it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from .cached_blocks import CachedBlocks
from .radix_tree import Copy, Node, Transfer
from .restore_policy import RestorePolicy

MAX_BLOCKS_PER_COPY = 64
"""So that a copy to the host never holds up one to the device for long."""


class Copier(Protocol):
    """Copies blocks between the device pool and host memory, in the background and in order."""

    def copy_out(self, block_ids: list[int], host_ids: list[int]) -> Copy:
        """Begin to copy from the device."""

    def copy_in(self, host_ids: list[int], block_ids: list[int]) -> Copy:
        """Begin to copy to the device."""

    @property
    def bytes_per_second(self) -> float | None:
        """How fast it has been of late."""


class HostTier:
    """Moves nodes between the tiers; a node being copied is locked until the copy is done."""

    def __init__(self, blocks: CachedBlocks, copier: Copier, policy: RestorePolicy) -> None:
        self.num_offloaded = 0
        self.num_restored = 0
        self._blocks = blocks
        self._host = blocks.host
        self._copier = copier
        self.policy = policy
        self._transfers: list[Transfer] = []

    @property
    def is_busy(self) -> bool:
        """Whether copies are on their way or about to be."""
        return bool(self._transfers) or self._host.num_offered > 0

    def restore(self, nodes: Sequence[Node], tenant: str, keep: Collection[Node]) -> bool:
        """Begin to bring nodes back that follow one another.

        False if there is no room or computing is quicker. Where some of them are on their way
        already, that is waited for first.
        """
        if any(node.transfer is not None for node in nodes):
            return True
        num_blocks = sum(len(node.host_ids) for node in nodes)
        if not self.policy.pays(num_blocks, self._copier.bytes_per_second):
            return False
        self._blocks.lock(nodes[-1])
        if not self._blocks.make_room(num_blocks, tenant, keep):
            self._blocks.unlock(nodes[-1], used=False)
            return False
        block_ids = self._blocks.pool.take(num_blocks, overwritten=True)
        assert block_ids is not None
        host_ids = [host_id for node in nodes for host_id in node.host_ids]
        copy = self._copier.copy_in(host_ids, list(block_ids))
        transfer = Transfer(True, list(nodes), nodes[-1], copy)
        self._transfers.append(transfer)
        start = 0
        for node in nodes:
            node.transfer = transfer
            end = start + len(node.host_ids)
            self._blocks.put_on_device(node, block_ids[start:end])
            start = end
        return True

    def advance(self) -> None:
        """Take in copies that are done; start to copy out what was offered. Never waits."""
        for transfer in [transfer for transfer in self._transfers if transfer.copy.done()]:
            self._transfers.remove(transfer)
            self._settle(transfer)
        if all(transfer.inbound for transfer in self._transfers):
            self._copy_out_next()

    def _settle(self, transfer: Transfer) -> None:
        failed = transfer.copy.error is not None
        for node in transfer.nodes:
            node.transfer = None
        if not failed:
            self._count(transfer)
        self._blocks.unlock(transfer.lowest, used=False)
        if failed and transfer.inbound:
            self._forget(transfer)
        elif failed:
            for node in transfer.nodes:
                self._host.drop(node)

    def _count(self, transfer: Transfer) -> None:
        num_blocks = sum(len(node.host_ids) for node in transfer.nodes)
        if not transfer.inbound:
            self.num_offloaded += num_blocks
            return
        self.num_restored += num_blocks
        for node in transfer.nodes:
            if not node.detached:
                self._blocks.events.stored(node, 0, "device")

    def _forget(self, transfer: Transfer) -> None:
        """What could not be brought back is no longer cached; only the copy had it locked."""
        nodes = sorted(transfer.nodes, key=_depth)
        for node in nodes:
            self._blocks.take_off_device(node)
        if not nodes[0].detached:
            self._blocks.remove(nodes[0])

    def _copy_out_next(self) -> None:
        """Copy one node, or the first part of it."""
        node = self._host.next_offer()
        if node is None:
            return
        if len(node.block_ids) > MAX_BLOCKS_PER_COPY:
            self._host.offer_first(node)
            node = self._blocks.tree.split(node, MAX_BLOCKS_PER_COPY)
        host_ids = self._take(len(node.block_ids))
        if host_ids is None:
            return
        self._blocks.lock(node)
        node.host_ids = host_ids
        copy = self._copier.copy_out(list(node.block_ids), list(host_ids))
        node.transfer = Transfer(False, [node], node, copy)
        self._transfers.append(node.transfer)

    def _take(self, num_blocks: int) -> list[int] | None:
        """Free host blocks; the copies used least recently make room."""
        if num_blocks > self._host.num_blocks:
            return None
        victims = self._host.least_recently_used()
        while self._host.num_free < num_blocks:
            node = next(victims, None)
            if node is None:
                return None
            if node.block_ids:
                self._host.drop(node)
            else:
                self._blocks.remove(node)
        return self._host.take(num_blocks)


def _depth(node: Node) -> int:
    return sum(1 for _ in node.path())
