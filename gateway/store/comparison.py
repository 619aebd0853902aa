"""A gateway's copy against all that is in Redis: each is given what it lacks."""

from __future__ import annotations

import logging

from .documents import StoreDown
from .local_copy import LocalCopy
from .remote import Moved, RemoteStore

_ATTEMPTS = 4

logger = logging.getLogger(__name__)


async def compare(remote: RemoteStore, copy: LocalCopy) -> tuple[LocalCopy, int]:
    """The state that both have then, and how many entries Redis had lost.

    Raises RedisDown, and StoreDown where Redis changes too fast.
    """
    num_restored = 0
    for _ in range(_ATTEMPTS):
        try:
            fresh = await remote.read(copy.newest_revision)
            num_restored += await _give_back(remote, copy, fresh)
            news = await remote.poll(fresh)
        except Moved:  # again, or more at once than a poll tells
            continue
        fresh.apply(news.entries)
        fresh.position = news.position
        return fresh, num_restored
    raise StoreDown("the store in Redis changes too fast to be read")


async def _give_back(remote: RemoteStore, copy: LocalCopy, fresh: LocalCopy) -> int:
    lost = copy.newer_than(fresh)
    if not lost:
        return 0
    if copy.synced_revision < fresh.forgotten_revision:
        logger.warning("this gateway was away too long: %d documents are stale", len(lost))
        return 0
    num_taken = await remote.merge(fresh.generation, lost)
    if num_taken:
        logger.warning("Redis had lost %d entries of the store: restored", num_taken)
    return num_taken
