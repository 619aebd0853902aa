"""The prefix cache's invariants: nothing is lost, held twice, or out of the tree's order."""

from __future__ import annotations

from .cached_blocks import CachedBlocks
from .radix_tree import Node


def check_cache(blocks: CachedBlocks) -> None:
    """Assert that the counts are those of the tree, and that all blocks are accounted for.

    Nodes that were detached while in use are out of the tree until their leases end, so counts
    may be above what the tree holds.
    """
    blocks.pool.check()
    nodes = list(blocks.tree.nodes())
    for node in nodes:
        _check_node(blocks, node)
    in_tree = [block_id for node in nodes for block_id in node.block_ids]
    assert len(set(in_tree)) == len(in_tree), "two nodes hold one block"
    evictable = sum(len(node.block_ids) for node in nodes if not node.ref_count)
    assert evictable == blocks.num_evictable
    assert len(in_tree) <= blocks.num_cached
    total = blocks.pool.num_free + blocks.num_private + blocks.num_cached
    assert total == blocks.pool.num_usable, "blocks are lost"
    in_host = [host_id for node in nodes for host_id in node.host_ids]
    assert len(set(in_host)) == len(in_host), "two nodes hold one host block"
    assert len(in_host) <= blocks.host.num_used


def _check_node(blocks: CachedBlocks, node: Node) -> None:
    num_blocks, rest = divmod(len(node.key), blocks.tree.block_bytes)
    assert num_blocks
    assert not rest
    assert len(node.block_ids) in (0, num_blocks)
    assert len(node.host_ids) in (0, num_blocks)
    assert node.block_ids or node.host_ids, "a node holds nothing"
    assert not node.detached
    parent = node.parent
    assert parent is not None
    assert parent.children[node.namespace, bytes(node.key[: blocks.tree.block_bytes])] is node
    assert not node.block_ids or parent.parent is None or parent.block_ids, "a hole in a path"
    assert node.ref_count >= sum(child.ref_count for child in node.children.values())
    device_children = [child for child in node.children.values() if child.block_ids]
    assert node.num_device_children == len(device_children)
