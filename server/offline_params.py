"""Sampling parameters given to ``LLM``: checked here, as no request body was parsed before."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..engine.errors import RequestError
from ..engine.types import Grammar, SamplingParams
from .token_lists import check_token_id

_INTEGERS = ("top_k", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs", "n", "seed")
_NUMBERS = (
    *("temperature", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


def check_params(params: SamplingParams, vocab_size: int) -> SamplingParams:
    """``params`` with its lists as tuples; raises BranchlineError naming the field.

    A single ``stop`` string is one, and a list is as good as a tuple.
    """
    stop = (params.stop,) if isinstance(params.stop, str) else _entries("stop", params.stop)
    _require("stop", all(isinstance(entry, str) and entry for entry in stop), "non-empty strings")
    _check_types(params)
    _check_numbers(params)
    _require("logit_bias", isinstance(params.logit_bias, dict), "a dict from token id to bias")
    for token_id, bias in params.logit_bias.items():
        _check_ids("logit_bias", (token_id,), vocab_size)
        _require("logit_bias", _is_number(bias) and math.isfinite(bias), "finite numbers")
    is_grammar = params.grammar is None or isinstance(params.grammar, Grammar)
    _require("grammar", is_grammar, "a Grammar, such as Grammar('regex', '[0-9]+')")
    words = _entries("bad_word_ids", params.bad_word_ids)
    return replace(
        params,
        stop=stop,
        stop_token_ids=_ids("stop_token_ids", params.stop_token_ids, vocab_size),
        allowed_token_ids=_ids("allowed_token_ids", params.allowed_token_ids, vocab_size),
        bad_word_ids=tuple(_word(word, vocab_size) for word in words),
    )


def _word(ids: Any, vocab_size: int) -> tuple[int, ...]:
    word = _ids("bad_word_ids", ids, vocab_size)
    _require("bad_word_ids", bool(word), "sequences of at least one token id")
    return word


def _ids(field: str, ids: Any, vocab_size: int) -> tuple[int, ...]:
    entries = _entries(field, ids)
    _check_ids(field, entries, vocab_size)
    return entries


def _check_ids(field: str, ids: Iterable[Any], vocab_size: int) -> None:
    for token_id in ids:
        _require(field, type(token_id) is int, "token ids")
        check_token_id(field, token_id, vocab_size)


def _entries(field: str, value: Any) -> tuple[Any, ...]:
    _require(field, isinstance(value, Iterable) and not isinstance(value, str), "a list")
    return tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_types(params: SamplingParams) -> None:
    for name in _INTEGERS:
        value = getattr(params, name)
        _require(name, value is None or type(value) is int, "a whole number")
    for name in _NUMBERS:
        _require(name, _is_number(getattr(params, name)), "a number")
    for name in ("top_k", "min_tokens", "n"):
        _require(name, getattr(params, name) is not None, "a whole number")


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
    within("repetition_penalty", 1e-6, finite, "at least 1e-6")
    within("min_tokens", 0, math.inf, "0 or more")
    within("max_tokens", 0, math.inf, "0 or more")
    within("logprobs", 0, math.inf, "0 or more")
    within("prompt_logprobs", 0, math.inf, "0 or more")
    within("n", 1, math.inf, "at least 1")
    within("seed", -(2**63), 2**63 - 1, "a number of 64 bits")
    _require("top_p", 0 < params.top_p <= 1, "over 0, at most 1")
    nothing = params.max_tokens == 0 and params.prompt_logprobs is None
    _require("max_tokens", not nothing, "at least 1 without prompt_logprobs")


def _require(field: str, holds: bool, allowed: str) -> None:
    if not holds:
        raise RequestError(field, f"must be {allowed}")
