"""What a request gives of its prompt besides tokens, gathered from one chunk after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .types import GenerationRequest, TokenLogprobs

PromptKind = Literal["logprobs", "last", "mean"]


@dataclass(frozen=True, slots=True)
class PromptPart:
    """What one step gave of one prompt, of its rows up to ``end``.

    ``vector`` [hidden_size] float32 is the sum of those rows. ``error`` ends the request instead.
    """

    end: int
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    vector: NDArray[np.float32] | None = None
    error: str | None = None


@dataclass(slots=True)
class PromptOutput:
    """Rows [begin, end) of a prompt's final hidden states are still wanted.

    Row i gives the logprobs of token i + 1, or is summed up into the vector. What was gathered
    stays when the request is preempted: each row is read once.
    """

    kind: PromptKind
    begin: int
    end: int
    num_top: int = 0
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    total: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, generation: GenerationRequest) -> PromptOutput | None:
        """Nothing gathered yet; None for a request that wants nothing of its prompt."""
        num_tokens = len(generation.prompt_token_ids)
        if generation.pooling is not None:
            begin = 0 if generation.pooling == "mean" else num_tokens - 1
            return cls(generation.pooling, begin, num_tokens)
        num_top = generation.params.prompt_logprobs
        if num_top is None:
            return None
        return cls("logprobs", 0, num_tokens - 1, num_top, [None])

    @property
    def max_reused_tokens(self) -> int | None:
        """Tokens at the start that need not be computed; None: any number of them."""
        return self.begin if self.begin < self.end else None

    def wanted(self, start: int, end: int) -> range:
        """The wanted ones of rows [start, end)."""
        return range(max(start, self.begin), min(end, self.end))

    def take(self, part: PromptPart) -> None:
        """Take in what a step gave."""
        self.begin = part.end
        self.logprobs += part.logprobs
        if part.vector is not None:
            vector = part.vector.astype(np.float64)
            self.total = vector if self.total is None else self.total + vector

    def hand_over(self) -> list[TokenLogprobs | None]:
        """What was gathered of logprobs, which is kept no longer."""
        logprobs, self.logprobs = self.logprobs, []
        return logprobs

    def embedding(self) -> list[float]:
        """The pooled vector, once no row is wanted any more."""
        assert self.total is not None
        assert self.begin == self.end
        mean = self.total if self.kind == "last" else self.total / self.end
        embedding: list[float] = mean.astype(np.float32).tolist()
        return embedding
