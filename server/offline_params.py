"""Sampling parameters given to ``LLM``: checked here, as no request body was parsed before."""

from __future__ import annotations

import math
from dataclasses import replace

from ..engine.errors import RequestError
from ..engine.types import SamplingParams
from .sampling import check_token_id


def check_params(params: SamplingParams, vocab_size: int) -> SamplingParams:
    """``params``, a single ``stop`` string as a tuple; raises BranchlineError naming the field."""
    stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop)
    _require("stop", all(isinstance(entry, str) and entry for entry in stop), "non-empty strings")
    _check_numbers(params)
    for token_id, bias in params.logit_bias.items():
        check_token_id("logit_bias", token_id, vocab_size)
        _require("logit_bias", math.isfinite(bias), "finite")
    for token_id in params.stop_token_ids:
        check_token_id("stop_token_ids", token_id, vocab_size)
    return replace(params, stop=stop, stop_token_ids=tuple(params.stop_token_ids))


def _check_numbers(params: SamplingParams) -> None:
    def within(name: str, low: float, high: float, allowed: str) -> None:
        value = getattr(params, name)
        _require(name, value is None or (low <= value <= high), allowed)

    finite = 3.4e38
    within("temperature", 0, finite, "0 or more")
    within("top_k", -1, 2**31 - 1, "-1 or more")
    within("min_p", 0, 1, "between 0 and 1")
    within("presence_penalty", -finite, finite, "finite")
    within("frequency_penalty", -finite, finite, "finite")
    within("min_tokens", 0, math.inf, "0 or more")
    within("max_tokens", 1, math.inf, "at least 1")
    within("logprobs", 0, math.inf, "0 or more")
    within("n", 1, math.inf, "at least 1")
    within("seed", -(2**63), 2**63 - 1, "a number of 64 bits")
    _require("top_p", 0 < params.top_p <= 1, "over 0, at most 1")
    _require("repetition_penalty", 0 < params.repetition_penalty <= finite, "over 0")


def _require(field: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise RequestError(field, f"must be {allowed}")
