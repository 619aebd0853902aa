"""One request's place in its grammar, kept in step with the tokens that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..types import SamplingParams
from .cache import Compiled
from .compiler import reason_of

Bits = npt.NDArray[np.uint32]
WORD = 32


@dataclass(frozen=True, slots=True)
class AllowedTokens:
    """What may come next: a bit a token id in ``bits`` [W] of 32 each; those beyond are clear.

    ``bits`` None: anything. ``error`` is why nothing may; ``must_end``: nothing but an end may.
    """

    bits: Bits | None = None
    error: str | None = None
    must_end: bool = False


class RequestGrammar:
    """A matcher of a request's own, and how many of its tokens that has taken in.

    One thread at a time. ``end_ids`` end the request; where the grammar ends, one of them comes.
    """

    def __init__(self, compiled: Compiled, params: SamplingParams, eos_ids: Sequence[int]) -> None:
        self._matcher = compiled.matcher.deep_copy()
        self._end_id = compiled.tokenizer.end_id
        # A stop token that is text comes where the grammar has its text, and nowhere else.
        special = compiled.tokenizer.special_ids
        own = (token_id for token_id in params.stop_token_ids if token_id in special)
        self.end_ids = tuple(dict.fromkeys((*eos_ids, *own)))
        self._stops = frozenset((*eos_ids, *params.stop_token_ids))
        self._num_consumed = 0

    def allow(self, tokens: Sequence[int], must_wait: bool) -> AllowedTokens:
        """What may follow ``tokens``, all of the output so far; no end while ``must_wait``.

        A grammar that can't go on ends all the same.
        """
        if tokens and (tokens[-1] in self._stops or tokens[-1] < 0):
            return AllowedTokens()  # it has ended, unseen yet: what is chosen is for nobody
        new = list(tokens[self._num_consumed :])
        if new and self._matcher.try_consume_tokens(new) != len(new):
            return AllowedTokens(error=self._fault() or "does not match the tokens so far")
        self._num_consumed = len(tokens)
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        error = self._fault()
        return AllowedTokens(error=error) if error else self._allowed(mask, must_wait)

    def _fault(self) -> str | None:
        if not self._matcher.is_error():
            return None
        return f"is too complex to go on: {reason_of(self._matcher.get_error())}"

    def _allowed(self, mask: Bits, must_wait: bool) -> AllowedTokens:
        bits = np.zeros(max(self._end_id, *self.end_ids) // WORD + 1, np.uint32)
        bits[: len(mask)] = mask
        word, end = self._end_id // WORD, np.uint32(1 << self._end_id % WORD)
        can_end = bool(bits[word] & end)
        bits[word] &= ~end
        can_go_on = bool(bits.any())
        if can_end and not (can_go_on and must_wait):
            for token_id in self.end_ids:
                bits[token_id // WORD] |= np.uint32(1 << token_id % WORD)
        return AllowedTokens(bits, must_end=can_end and not can_go_on)
