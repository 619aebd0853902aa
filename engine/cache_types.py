"""What the prefix cache tells and is told: reports, pins and events, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Tier = Literal["device", "host"]


class Namespace(NamedTuple):
    """Whose KV a block holds; blocks of different namespaces are never shared.

    ``adapter`` is the digest of the adapter version that computed it, None for the base model.
    ``tenant`` is None where tenants share: all of them, or those of the sharing group ``group``.
    ``activation`` is the position in the prompt from which an activated LoRA applies, None for any
    other adapter.
    """

    model: str
    adapter: str | None = None
    tenant: str | None = None
    salt: str | None = None
    activation: int | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixTarget:
    """The beginning of a prompt, as an admin names it for a pin."""

    prompt_token_ids: list[int]
    adapter: str | None = None
    tenant: str | None = None
    cache_salt: str | None = None
    cache_group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PinReport:
    """One pin: blocks that stay on the device until it expires or is removed."""

    pin_id: str
    num_tokens: int
    num_blocks: int
    expires_in: float
    adapter: str | None = None
    tenant: str | None = None
    salted: bool = False
    cache_group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixReport:
    """One of the biggest prefixes: a path from the root of the tree to a node."""

    num_tokens: int
    num_hits: int
    in_use: bool
    tier: Tier
    first_token_ids: list[int]
    adapter: str | None = None
    tenant: str | None = None
    salted: bool = False
    cache_group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceReport:
    """How much of the cache one namespace holds, and how often it was of use.

    Tokens are prompt tokens of requests: looked up, and found.
    """

    adapter: str | None
    tenant: str | None
    salted: bool
    num_blocks: int
    num_host_blocks: int
    num_query_tokens: int
    num_hit_tokens: int
    cache_group: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheReport:
    """The prefix cache as a whole; counts of blocks unless named otherwise."""

    enabled: bool
    block_size: int
    num_blocks: int
    num_free: int
    num_cached: int
    num_evictable: int
    num_pinned: int
    num_host_blocks: int
    max_host_blocks: int
    num_query_tokens: int
    num_hit_tokens: int
    num_evicted: int
    num_offloaded: int
    num_restored: int
    namespaces: list[NamespaceReport] = field(default_factory=list)
    prefixes: list[PrefixReport] = field(default_factory=list)
    pins: list[PinReport] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksStored:
    """Full blocks became findable, or moved to another tier, which takes them out of the first.

    ``block_keys`` are chained digests, as ``engine.block_keys`` makes them from the tokens;
    ``parent_key`` is the key of the block before the first, None at the start of a sequence.
    """

    namespace: Namespace
    parent_key: bytes | None
    block_keys: list[bytes]
    token_ids: list[int]
    block_size: int
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksRemoved:
    """Blocks left a tier."""

    block_keys: list[bytes]
    tier: Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCleared:
    """Nothing that was stored before this can be found any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockChanges:
    """What became of cached blocks, in whatever tier, in this order: ``cleared``, removed, stored.

    Block keys, ``block_keys.KEY_BYTES`` bytes each, stand one behind the other.
    """

    cleared: bool = False
    removed: bytes = b""
    stored: bytes = b""


CacheEvent = BlocksStored | BlocksRemoved | CacheCleared
