"""One request's outputs on their way to a reader, and whether that one keeps up."""

from __future__ import annotations

import asyncio

from .types import TokenOutput

MAX_UNREAD_ENTRIES, MIN_UNREAD_ENTRIES = 4096, 256
"""Outputs and their logprobs that wait for one reader before its request is held: the fewer, the
more requests share ``MAX_ENTRIES_IN_ALL``."""
MAX_ENTRIES_IN_ALL = 1 << 20


def unread_bound(num_requests: int) -> int:
    """Entries that each of so many requests may have unread."""
    share = MAX_ENTRIES_IN_ALL // max(1, num_requests)
    return max(MIN_UNREAD_ENTRIES, min(share, MAX_UNREAD_ENTRIES))


class UnreadOutputs:
    """A queue that says when the engine should hold the request, and when it should go on.

    That is when a quarter of the bound is left: enough to read until the next outputs come. What
    comes of a prompt is not counted: it comes once, with the first output.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[TokenOutput | None] = asyncio.Queue()
        self._num_entries = 0
        self._is_held = False
        self._go_on_at = 0

    def put(self, output: TokenOutput, bound: int = MAX_UNREAD_ENTRIES) -> bool:
        """Add an output; True if that is over ``bound`` and the request is to be held."""
        self._queue.put_nowait(output)
        self._num_entries += _num_entries(output)
        if self._num_entries <= bound or self._is_held:
            return False
        self._is_held, self._go_on_at = output.finish_reason is None, bound // 4
        return self._is_held

    def end(self) -> None:
        """Let the reader know, behind all that it has not read, that nothing more will come."""
        self._queue.put_nowait(None)

    async def get(self) -> TokenOutput | None:
        """The next output; None: there will be none."""
        return await self._queue.get()

    def read(self, output: TokenOutput) -> bool:
        """Count an output as read; True if the request is to go on."""
        self._num_entries -= _num_entries(output)
        if not self._is_held or self._num_entries > self._go_on_at:
            return False
        self._is_held = False
        return True


def _num_entries(output: TokenOutput) -> int:
    number = 1
    for entry in output.logprobs or ():
        number += 1 + len(entry.top_token_ids)
    return number
