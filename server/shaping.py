"""Shaping of what is large, in a thread: others' tokens wait for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..engine.types import TokenLogprobs

T = TypeVar("T")

MOST_AT_ONCE = 2000
"""Logprobs, or tokens, that are shaped in the loop: some milliseconds."""


async def shaped(work: Callable[[], T], size: int) -> T:
    """What ``work`` gives; where ``size`` is large it is done in a thread."""
    return work() if size <= MOST_AT_ONCE else await asyncio.to_thread(work)


def num_entries(positions: Sequence[TokenLogprobs | None] | None) -> int:
    """How many logprobs these are, those of the tokens themselves among them."""
    if not positions or positions[-1] is None:
        return 0
    return len(positions) * (1 + len(positions[-1].top_token_ids))
