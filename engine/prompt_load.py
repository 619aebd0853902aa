"""What is still to be computed of prompts, and how fast that goes here."""

from __future__ import annotations

from .cache_use import CacheUse
from .fair_queue import FairQueue
from .plan import StepPlan
from .seats import Seats

# What a step leaves of the weight of those before it: about the last fifty count.
_DECAY = 0.98
# A step of fewer takes its time whatever it computes, and says nothing of the pace.
_MIN_TOKENS = 32


class PromptLoad:
    """Prompt tokens in the queue and in the batch, and the pace of steps that compute some."""

    def __init__(self, seats: Seats, queue: FairQueue, use: CacheUse) -> None:
        self._seats = seats
        self._queue = queue
        self._use = use
        self._num_tokens = self._seconds = 0.0
        self._num_seen = self._num_hits = 0.0
        self._last_use = (0, 0)

    @property
    def num_queued_tokens(self) -> int:
        """Prompt tokens that are neither cached nor computed.

        What is cached of a waiting request shows when it starts: until then it is taken for as
        much as it was of the requests that started last.
        """
        waiting = self._queue.num_waiting_tokens
        if self._num_seen:
            waiting -= int(waiting * self._num_hits / self._num_seen)
        return waiting + sum(
            max(0, len(request.prompt_token_ids) - request.num_computed_tokens)
            for request in self._seats.running
        )

    @property
    def tokens_per_second(self) -> float:
        """Prompt tokens a second, in steps that compute mostly prompts; 0 before there was one."""
        return self._num_tokens / self._seconds if self._seconds else 0.0

    def record(self, plan: StepPlan, seconds: float) -> None:
        """Take in a step that was computed."""
        num_tokens = sum(
            max(0, min(chunk.end, len(chunk.request.prompt_token_ids)) - chunk.start)
            for chunk in plan.chunks
        )
        num_others = sum(chunk.num_scheduled_tokens for chunk in plan.chunks) - num_tokens
        if num_tokens >= max(_MIN_TOKENS, num_others):
            self._num_tokens = self._num_tokens * _DECAY + num_tokens
            self._seconds = self._seconds * _DECAY + seconds
        now = (self._use.num_query_tokens, self._use.num_hit_tokens)
        if now != self._last_use:
            self._num_seen = self._num_seen * _DECAY + now[0] - self._last_use[0]
            self._num_hits = self._num_hits * _DECAY + now[1] - self._last_use[1]
            self._last_use = now
