"""Names for blocks that hold across processes: digests chained from block to block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .cache_types import Namespace
from .prefix_key import PrefixKey

KEY_BYTES = 16


def chain_keys(
    parent: bytes | None, namespace: Namespace, tokens: bytes | bytearray, block_bytes: int
) -> list[bytes]:
    """Keys of the blocks in ``tokens`` (int32 ids), the first of which follows ``parent``.

    A key is a BLAKE2b digest of the key before it, the namespace and the block's tokens, so it
    stands for a whole beginning of a sequence. The fields are length-prefixed: no two namespaces
    give one key.
    """
    scope = _scope(namespace)
    keys: list[bytes] = []
    for start in range(0, len(tokens), block_bytes):
        digest = hashlib.blake2b(parent or b"", digest_size=KEY_BYTES, person=b"branchline kv")
        digest.update(scope)
        digest.update(tokens[start : start + block_bytes])
        parent = digest.digest()
        keys.append(parent)
    return keys


def keys_of(key: PrefixKey) -> list[bytes]:
    """Keys of all full blocks of a sequence, as the events of the prefix cache name them."""
    keys: list[bytes] = []
    block = 0
    while block < key.num_blocks:
        end = key.run_end(block)
        parent = keys[-1] if keys else None
        keys += chain_keys(parent, key.namespace(block), key.blocks(block, end), key.num_bytes)
        block = end
    return keys


def _scope(namespace: Sequence[str | int | None]) -> bytes:
    parts = []
    for field in namespace:
        text = b"" if field is None else str(field).encode("utf-8", "surrogatepass")
        parts.append(b"%d:%d:" % (field is not None, len(text)) + text)
    return b"".join(parts)
