"""How often the prefix cache was of use, in tokens looked up and found, by namespace."""

from __future__ import annotations

from collections.abc import Iterator

from .cache_types import Namespace
from .request import Request

MAX_NAMESPACES = 1000


class CacheUse:
    """Tokens looked up and found; the namespaces used last are told apart.

    Looked up are prompts, and the output tokens that came with them. Activations of one adapter
    are one namespace here; what an activated LoRA's prompt has before its activation counts for
    the base's.
    """

    def __init__(self) -> None:
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._by_namespace: dict[Namespace, tuple[int, int]] = {}

    def count(self, request: Request) -> None:
        """Note a request's first start."""
        num_tokens, num_hits = len(request.token_ids), request.num_computed_tokens
        self.num_query_tokens += num_tokens
        self.num_hit_tokens += num_hits
        if request.blocks.node is not None:
            for node in request.blocks.node.path():
                node.num_hits += 1
        key = request.key
        num_base = min(key.own_start * key.block_size, num_tokens)
        if num_base:
            self._add(key.base, num_base, min(num_hits, num_base))
        self._add(key.own, num_tokens - num_base, max(num_hits - num_base, 0))

    def _add(self, namespace: Namespace, num_tokens: int, num_hits: int) -> None:
        namespace = namespace._replace(activation=None)
        queries, hits = self._by_namespace.pop(namespace, (0, 0))
        self._by_namespace[namespace] = (queries + num_tokens, hits + num_hits)
        if len(self._by_namespace) > MAX_NAMESPACES:
            del self._by_namespace[next(iter(self._by_namespace))]

    def items(self) -> Iterator[tuple[Namespace, int, int]]:
        """Namespace, tokens looked up, tokens found."""
        for namespace, (queries, hits) in self._by_namespace.items():
            yield namespace, queries, hits
