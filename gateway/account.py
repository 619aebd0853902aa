"""What a request has taken, as far as anyone said; and what it is charged where nobody did."""

from __future__ import annotations

import math
import time

from .estimates import NO_TOKENS
from .proxy.job import Job, Trail
from .proxy.stream import StreamRelay
from .types import Estimate, Usage

UNSEEN_TOKENS_PER_SECOND = 100
"""Charged for each answer that a client did not wait for: what a replica computes at most."""


class Account:
    """Of one request; ``status`` is of the replica's answer, once there is one."""

    def __init__(self, job: Job, trail: Trail, estimate: Estimate, num_answers: int) -> None:
        self.told: Usage | None = None
        self.relay: StreamRelay | None = None
        self.status: int | None = None
        self._job, self._trail = job, trail
        self._estimate, self._num_answers = estimate, num_answers

    @property
    def is_counted(self) -> bool:
        """Whether the prompt's tokens are a replica's count."""
        if self.relay is not None:
            return self.relay.record.num_prompt_tokens is not None
        return self.told is not None

    def usage(self) -> Usage | None:
        """None: nothing was done for it, and even the request does not count."""
        status, likely = self.status, self._job.num_prompt_tokens
        if self.told is not None or self._trail.sent is None:
            return self.told
        if self._estimate == NO_TOKENS:
            return Usage(num_input_tokens=0, num_output_tokens=0)
        if status is not None and status >= 400:
            is_its_fault = status < 500 and status != 429
            return Usage(num_input_tokens=0, num_output_tokens=0) if is_its_fault else None
        if self.relay is not None:
            return self.relay.usage(likely)
        return Usage(num_input_tokens=likely, num_output_tokens=self._unseen())

    def _unseen(self) -> int:
        """Output of an answer that was left, or was too long to look through."""
        assert self._trail.sent is not None
        if self._trail.answered is not None:
            return self._estimate.num_output_tokens
        seconds = time.perf_counter() - self._trail.sent
        most = math.ceil(seconds * UNSEEN_TOKENS_PER_SECOND) * self._num_answers
        return min(most, self._estimate.num_output_tokens)
