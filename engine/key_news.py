"""Keys that come and go, kept together until somebody takes the news."""

from __future__ import annotations

from collections.abc import Iterable

from .cache_types import BlockChanges, BlocksRemoved, BlocksStored, CacheEvent

MAX_KEYS = 16384
"""In one message: a quarter of a megabyte."""


class KeyNews:
    """What has changed in all since the last time; what came and went in between is one removal.

    Moves of a block between the tiers are no news.
    """

    def __init__(self) -> None:
        self._cleared = False
        self._is_stored: dict[bytes, bool] = {}

    def note(self, event: CacheEvent) -> None:
        """Take an event of the prefix cache."""
        if isinstance(event, BlocksStored):
            self.stored(event.block_keys)
        elif isinstance(event, BlocksRemoved):
            self.removed(event.block_keys)
        else:
            self.cleared()

    def stored(self, keys: Iterable[bytes]) -> None:
        """``keys`` came."""
        self._is_stored.update(dict.fromkeys(keys, True))

    def removed(self, keys: Iterable[bytes]) -> None:
        """``keys`` went."""
        self._is_stored.update(dict.fromkeys(keys, False))

    def cleared(self) -> None:
        """All keys went."""
        self._cleared = True
        self._is_stored.clear()

    def take(self, max_keys: int = MAX_KEYS) -> BlockChanges | None:
        """The changes since the last time, or ``max_keys`` of them; None where there are none."""
        if not (self._is_stored or self._cleared):
            return None
        changes = list(self._is_stored.items())
        taken = changes[:max_keys]
        news = BlockChanges(
            cleared=self._cleared,
            removed=b"".join(key for key, is_stored in taken if not is_stored),
            stored=b"".join(key for key, is_stored in taken if is_stored),
        )
        self._cleared, self._is_stored = False, dict(changes[max_keys:])
        return news
