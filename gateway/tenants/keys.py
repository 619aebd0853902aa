"""Keys: drawn, shown once, kept as digests."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "bl-"
_RANDOM_BYTES = 32
KEY_LENGTH = len(PREFIX) + 43
"""Of keys that are drawn."""
MAX_KEY_BYTES = 512
MIN_SECRET_LENGTH = 16
"""Of keys that an operator chooses."""
_ENDING = 4


def draw_key() -> str:
    """A new key: ``bl-`` and 43 characters of 256 random bits, safe in URLs."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def ending_of(key: str) -> str:
    """What of a key is kept to tell it from others."""
    return key[-_ENDING:]


def id_of(digest: bytes) -> str:
    """What a key is called in the API; says nothing of the key."""
    return hashlib.sha256(b"branchline key id" + digest).hexdigest()[:16]
