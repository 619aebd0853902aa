"""A prefix cache over memory that remembers what was written, and sequences that fill it.

Each block remembers its namespace and all tokens up to its end, so that a block which is found,
copied or taken over is right only if it was computed for just that beginning, by just that adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

from fake_model import FakeCopier

from branchline.engine.blocks import NUM_RESERVED_BLOCKS, BlockPool
from branchline.engine.cache_types import Namespace
from branchline.engine.prefix_cache import BlockLease, PrefixCache
from branchline.engine.prefix_key import PrefixKey
from branchline.engine.radix_tree import Node
from branchline.engine.restore_policy import RestorePolicy

BASE = Namespace("model")
LORA = Namespace("model", adapter="digest")

Content = tuple[Namespace, bytes]


class Memory:
    """What is in the blocks of the device and of the host; None is garbage."""

    def __init__(self, num_blocks: int, num_host_blocks: int) -> None:
        self.device: list[Content | None] = [None] * num_blocks
        self.host: list[Content | None] = [None] * num_host_blocks

    def copy(self, block_ids: list[int], host_ids: list[int], *, inbound: bool) -> None:
        for block_id, host_id in zip(block_ids, host_ids, strict=True):
            if inbound:
                self.device[block_id] = self.host[host_id]
            else:
                self.host[host_id] = self.device[block_id]


@dataclass(slots=True, eq=False)
class Sequence:
    """A request as the cache sees it: a lease, and tokens of which some are computed."""

    lease: BlockLease
    key: PrefixKey
    tokens: list[int]
    num_found: int
    num_computed: int


class CacheHouse:
    """Copies take ``num_polls`` calls of ``cache.advance()``; ``copier.fails_next`` fails one."""

    def __init__(
        self,
        num_usable: int = 20,
        num_host_blocks: int = 0,
        block_size: int = 4,
        num_polls: int = 1,
        tenant_share: float = 1.0,
    ) -> None:
        num_blocks = num_usable + NUM_RESERVED_BLOCKS
        pool = BlockPool(num_blocks, block_size)
        self.cache = PrefixCache(
            pool, "model", tenant_share=tenant_share, num_host_blocks=num_host_blocks
        )
        self.memory = Memory(num_blocks, num_host_blocks)
        self.copier = FakeCopier(self.memory, num_polls)
        if num_host_blocks:
            self.cache.attach_host(self.copier, RestorePolicy(1, block_size))
        self.live: list[Sequence] = []

    def key(
        self,
        tokens: list[int],
        own: Namespace = BASE,
        base: Namespace | None = None,
        start: int = 0,
    ) -> PrefixKey:
        """``start`` is the first token that is not the base's, if ``base`` is given."""
        key = PrefixKey(self.cache.block_size, own, base, start // self.cache.block_size)
        key.extend_to(tokens)
        return key

    def begin(self, tokens: list[int], key: PrefixKey, tenant: str = "t") -> Sequence | None:
        """As a request is admitted; None while blocks are on their way, or if there are too few."""
        lease = BlockLease(self.cache, tenant)
        in_host = self.cache.match(lease, key)
        waits = bool(in_host) and self.cache.restore(in_host, tenant)
        if waits or not self.cache.grow(lease, len(tokens)):
            lease.release()
            return None
        sequence = Sequence(lease, key, tokens, lease.num_shared, lease.num_shared_tokens)
        self.live.append(sequence)
        return sequence

    def compute(self, sequence: Sequence, num_tokens: int) -> None:
        """The next tokens; what is then full goes into the tree."""
        lease, key = sequence.lease, sequence.key
        size = self.cache.block_size
        end = min(sequence.num_computed + num_tokens, len(sequence.tokens))
        for block in range(sequence.num_computed // size, -(-end // size)):
            full = (block + 1) * size <= end
            content = (key.namespace(block), key.blocks(0, block + 1)) if full else None
            assert block >= lease.num_shared, "a block of the tree would be written"
            self.memory.device[lease.block_ids[block]] = content
        sequence.num_computed = end
        spare = self.cache.commit(lease, key, end)
        if spare is not None:
            spare.release()

    def extend(self, sequence: Sequence, tokens: list[int]) -> bool:
        """Tokens that were generated, computed at once; False without room."""
        longer = sequence.tokens + tokens
        if not self.cache.grow(sequence.lease, len(longer)):
            return False
        sequence.tokens = longer
        sequence.key.extend_to(longer)
        self.compute(sequence, len(longer))
        return True

    def end(self, sequence: Sequence) -> None:
        """Its lease is over, whatever it has computed."""
        self.live.remove(sequence)
        sequence.lease.release()

    def run(self, tokens: list[int], own: Namespace = BASE, tenant: str = "t") -> int:
        """A sequence from its begin to its end; returns the blocks that it found."""
        sequence = self.begin(tokens, self.key(tokens, own), tenant)
        assert sequence is not None
        self.compute(sequence, len(tokens))
        self.end(sequence)
        self.check()
        return sequence.num_found

    def settle(self) -> None:
        """Until no copy is on its way or due."""
        for _ in range(10_000):
            self.cache.advance()
            if self.cache.host is None or not self.cache.host.is_busy:
                return
        raise AssertionError("the copies never end")

    def free(self, num_blocks: int) -> None:
        """Evict until so many blocks are free."""
        assert self.cache.blocks.make_room(num_blocks, "nobody")
        self.check()

    def nodes_of(self, tokens: list[int], own: Namespace = BASE) -> list[Node]:
        return self.cache.find(self.key(tokens, own))

    def check(self) -> None:
        """The counts, and that every block which can be found holds what it should."""
        self.cache.check()
        stack = [(node, b"") for node in self.cache.tree.root.children.values()]
        while stack:
            node, before = stack.pop()
            self._check_node(node, before)
            path = before + bytes(node.key)
            stack.extend((child, path) for child in node.children.values())
        for sequence in self.live:
            for block in range(sequence.lease.num_shared):
                content = self.memory.device[sequence.lease.block_ids[block]]
                key = sequence.key
                assert content == (key.namespace(block), key.blocks(0, block + 1))

    def _check_node(self, node: Node, before: bytes) -> None:
        size = self.cache.tree.block_bytes
        is_inbound = node.transfer is not None and node.transfer.inbound
        is_outbound = node.transfer is not None and not node.transfer.inbound
        for number in range(len(node.key) // size):
            content = (node.namespace, before + bytes(node.key[: (number + 1) * size]))
            if node.block_ids and not is_inbound:
                assert self.memory.device[node.block_ids[number]] == content
            if node.host_ids and not is_outbound:
                assert self.memory.host[node.host_ids[number]] == content
