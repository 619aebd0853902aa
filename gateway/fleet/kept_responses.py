"""Kept responses: what is kept of one, and how it lies sealed in the fleet's Redis.

A response is kept under its tenant's name, encrypted with a key that follows from the fleet's
secret (AES-GCM), and bound to tenant and id: whoever reads Redis, or moves what lies there, learns
nothing but sizes and times.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .kept_limits import KeptLimits
from .kept_picking import FoundItems, pick

NONCE_BYTES = 12
MAX_UNPACKED_BYTES = 64 << 20
"""More than any server keeps; what unpacks to more is not ours."""

RESPONSE_ID = r"resp_[0-9a-f]{32}"


class KeptResponse(msgspec.Struct, frozen=True):
    """A response and what it answered.

    ``response`` is its body. ``items`` are all that the model was given: those of the responses
    before it and its own input, ``num_before`` of them from before.
    """

    response: dict[str, Any]
    items: list[dict[str, Any]]
    num_before: int = 0

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.response["id"])

    @property
    def history(self) -> list[dict[str, Any]]:
        """The items that the next response of the conversation begins with."""
        output = self.response.get("output")
        return [*self.items, *(output if isinstance(output, list) else [])]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(KeptResponse)


def pack(kept: KeptResponse, limits: KeptLimits) -> bytes | None:
    """As it is kept: JSON, compressed; None for what is larger than one may be, either way."""
    raw = _ENCODER.encode(kept)
    if len(raw) > limits.max_json_bytes:
        return None
    packed = zlib.compress(raw, level=1)
    return packed if len(packed) <= min(limits.max_response_bytes, limits.max_bytes) else None


def unpack(packed: bytes) -> KeptResponse:
    """What ``pack`` was given; raises ValueError for what it did not make."""
    try:
        return _DECODER.decode(_json(packed))
    except (zlib.error, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"no kept response: {error}") from error


def unpack_items(packed: bytes, names: Collection[str]) -> FoundItems | None:
    """The items of these ids, of what ``pack`` was given; None for what it did not make."""
    try:
        return pick(_json(packed), names)
    except zlib.error:
        return None


def _json(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, MAX_UNPACKED_BYTES)


class Sealer:
    """Seals and opens; ``secret`` is the sha256 of the fleet's secret, as both sides keep it."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(blake2b(secret, digest_size=32, person=b"kept response").digest())

    def seal(self, tenant: str, response_id: str, packed: bytes) -> bytes:
        """A nonce and what only this fleet opens, under the same tenant and id."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, packed, _bound_to(tenant, response_id))

    def open(self, tenant: str, response_id: str, sealed: bytes) -> bytes | None:
        """What was sealed; None for what this fleet did not seal under that tenant and id."""
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, rest, _bound_to(tenant, response_id))
        except (InvalidTag, ValueError):
            return None


def read_packed(packed: bytes) -> KeptResponse | None:
    """What ``pack`` was given; None for what can't be read."""
    try:
        return unpack(packed)
    except ValueError:
        return None


def read_kept(
    sealer: Sealer, tenant: str, response_id: str, sealed: bytes | None
) -> KeptResponse | None:
    """A kept response as it lay in Redis; None for none, and for what can't be read."""
    packed = sealer.open(tenant, response_id, sealed) if sealed else None
    return None if packed is None else read_packed(packed)


def read_items(
    sealer: Sealer, tenant: str, response_id: str, sealed: bytes | None, names: Collection[str]
) -> FoundItems | None:
    """As ``read_kept``, of the items only those of these ids."""
    packed = sealer.open(tenant, response_id, sealed) if sealed else None
    return None if packed is None else unpack_items(packed, names)


def previous_id(body: Mapping[str, object]) -> str | None:
    """The response that a decoded body goes on from, if it names one."""
    given = body.get("previous_response_id")
    return given if isinstance(given, str) and given else None


def _bound_to(tenant: str, response_id: str) -> bytes:
    return f"{tenant}\n{response_id}".encode()
