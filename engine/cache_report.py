"""The prefix cache as an admin sees it."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator

from .cache_types import CacheReport, Namespace, NamespaceReport, PrefixReport
from .cache_use import CacheUse
from .pins import Pins
from .prefix_cache import PrefixCache
from .prefix_key import BYTES_PER_TOKEN, token_ids_of
from .radix_tree import Node, RadixTree

NUM_FIRST_TOKENS = 32
MAX_NAMESPACES = 1000
"""Reported ones; there may be as many as salts that clients thought of."""


def report_cache(cache: PrefixCache, use: CacheUse, pins: Pins, max_prefixes: int) -> CacheReport:
    """A report; walks the whole tree."""
    blocks, pool = cache.blocks, cache.pool
    return CacheReport(
        enabled=cache.enabled,
        block_size=cache.block_size,
        num_blocks=pool.num_usable,
        num_free=pool.num_free,
        num_cached=blocks.num_cached,
        num_evictable=blocks.num_evictable,
        num_pinned=pins.num_blocks,
        num_host_blocks=blocks.host.num_used,
        max_host_blocks=blocks.host.num_blocks,
        num_query_tokens=use.num_query_tokens,
        num_hit_tokens=use.num_hit_tokens,
        num_evicted=blocks.num_evicted,
        num_offloaded=cache.num_offloaded,
        num_restored=cache.num_restored,
        namespaces=_namespaces(cache, use),
        prefixes=_prefixes(cache, max_prefixes),
        pins=pins.reports(),
    )


def _namespaces(cache: PrefixCache, use: CacheUse) -> list[NamespaceReport]:
    """The biggest first; activations of one adapter are one namespace."""
    on_device, in_host = _num_blocks_by_namespace(cache.tree)
    tokens = {namespace: (queries, hits) for namespace, queries, hits in use.items()}
    known = dict.fromkeys([*on_device, *tokens])
    names = heapq.nlargest(MAX_NAMESPACES, known, key=lambda name: on_device[name])
    return [
        NamespaceReport(
            adapter=name.adapter,
            tenant=name.tenant,
            salted=name.salt is not None,
            cache_group=name.group,
            num_blocks=on_device[name],
            num_host_blocks=in_host[name],
            num_query_tokens=tokens.get(name, (0, 0))[0],
            num_hit_tokens=tokens.get(name, (0, 0))[1],
        )
        for name in names
    ]


def _num_blocks_by_namespace(tree: RadixTree) -> tuple[Counter[Namespace], Counter[Namespace]]:
    """Blocks on the device, and in host memory."""
    told_apart: dict[Namespace, list[int]] = {}
    for node in tree.nodes():
        counts = told_apart.setdefault(node.namespace, [0, 0])
        counts[0] += len(node.block_ids)
        counts[1] += len(node.host_ids)
    on_device: Counter[Namespace] = Counter()
    in_host: Counter[Namespace] = Counter()
    for namespace, (num_on_device, num_in_host) in told_apart.items():
        merged = namespace._replace(activation=None)
        on_device[merged] += num_on_device
        in_host[merged] += num_in_host
    return on_device, in_host


def _prefixes(cache: PrefixCache, max_prefixes: int) -> list[PrefixReport]:
    """The longest paths that end at a node, branch there, or were found without what follows."""
    ends = (item for item in _paths(cache.tree.root) if _is_end(item[1]))
    longest = heapq.nlargest(max_prefixes, ends, key=lambda item: item[0])
    return [_prefix(node, num_tokens) for num_tokens, node in longest]


def _is_end(node: Node) -> bool:
    return len(node.children) != 1 or any(
        child.num_hits < node.num_hits for child in node.children.values()
    )


def _paths(root: Node) -> Iterator[tuple[int, Node]]:
    """Every node with the tokens from the start of the sequence to its end."""
    stack = [(0, root)]
    while stack:
        above, node = stack.pop()
        num_tokens = above + len(node.key) // BYTES_PER_TOKEN
        if node.parent is not None:
            yield num_tokens, node
        stack.extend((num_tokens, child) for child in node.children.values())


def _prefix(node: Node, num_tokens: int) -> PrefixReport:
    top = node
    for above in node.path():
        top = above
    return PrefixReport(
        num_tokens=num_tokens,
        num_hits=node.num_hits,
        in_use=node.ref_count > 0,
        tier="device" if node.block_ids else "host",
        first_token_ids=token_ids_of(top.key[: NUM_FIRST_TOKENS * BYTES_PER_TOKEN]),
        adapter=node.namespace.adapter,
        tenant=node.namespace.tenant,
        salted=node.namespace.salt is not None,
        cache_group=node.namespace.group,
    )
