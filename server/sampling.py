"""A request's sampling fields, over the model's defaults, as ``SamplingParams``."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..engine.types import SamplingParams
from .catalog import ServedModel
from .config import Limits
from .errors import ApiError, bad_field
from .openai import ChatRequest, CompletionRequest, SamplingFields
from .sampling_rules import check_together
from .text.tokenizer import Tokenizer
from .token_lists import at_most, bad_word_ids, check_token_id, check_token_ids

COMPLETION_MAX_TOKENS = 16

_DEFAULT_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (1e-6, 1.0),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 100.0),
    "max_new_tokens": (1, 2**31 - 1),
}
_PLAIN = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "n",
)


@dataclass(frozen=True, slots=True)
class SamplingContext:
    """What a request's fields are read against.

    ``end_token_ids`` end an answer beside the ends that the engine knows of. ``tokenizer`` is
    asked only for ``bad_words``.
    """

    limits: Limits
    vocab_size: int
    max_model_len: int
    defaults: SamplingParams
    end_token_ids: frozenset[int] = frozenset()
    tokenizer: Tokenizer | None = None

    def of(self, model: ServedModel) -> SamplingContext:
        """The same for a request to ``model``, whose vocabulary and ends may be its own."""
        if model.vocab_size is None and model.tokenizer is None:
            return self
        return replace(
            self,
            vocab_size=model.vocab_size or self.vocab_size,
            end_token_ids=model.tokenizer.end_token_ids if model.tokenizer else frozenset(),
            tokenizer=model.tokenizer or self.tokenizer,
        )


def read_defaults(directory: str | None) -> SamplingParams:
    """The model's own defaults, from its ``generation_config.json`` (vLLM's ``auto``).

    Its ``temperature``, ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty`` stand in
    for what a request leaves out, and ``max_new_tokens`` for ``max_tokens``. A file that is
    absent or odd changes nothing, and None stands for no file.
    """
    fields: Any = {}
    if directory is not None:
        with contextlib.suppress(OSError, ValueError):
            path = Path(directory, "generation_config.json")
            fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        fields = {}
    known: dict[str, Any] = {}
    for field, (low, high) in _DEFAULT_RANGES.items():
        value = fields.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            known[field] = value
    if "top_k" in known:
        known["top_k"] = int(known["top_k"])
    max_new_tokens = known.pop("max_new_tokens", None)
    known["max_tokens"] = None if max_new_tokens is None else int(max_new_tokens)
    return SamplingParams(**known)


def sampling_params(body: SamplingFields, context: SamplingContext) -> SamplingParams:
    """Check and convert; raises ApiError naming the field. ``max_tokens`` None: not asked for."""
    limits = context.limits
    given = {name: getattr(body, name) for name in _PLAIN if getattr(body, name) is not None}
    at_most("n", given.get("n", 1), limits.max_choices)
    check_together(body, limits)
    params = replace(
        context.defaults,
        **given,
        max_tokens=_max_tokens(body),
        stop=_stop(body.stop, limits),
        stop_token_ids=_stop_token_ids(body.stop_token_ids, context),
        logit_bias=_logit_bias(body.logit_bias or {}, context),
        logprobs=_logprobs(body, limits),
        prompt_logprobs=_prompt_logprobs(body, limits),
        allowed_token_ids=check_token_ids(
            "allowed_token_ids",
            body.allowed_token_ids,
            limits.max_allowed_token_ids,
            context.vocab_size,
        ),
        bad_word_ids=_bad_words(body.bad_words, context),
    )
    return with_ends(params, context.end_token_ids)


def with_ends(params: SamplingParams, end_token_ids: frozenset[int]) -> SamplingParams:
    """``params`` that stop at an adapter's own ends too, of which the engine knows nothing.

    ``Detokenizer`` names none of them as the reason.
    """
    ends = () if params.ignore_eos else sorted(end_token_ids.difference(params.stop_token_ids))
    return replace(params, stop_token_ids=(*params.stop_token_ids, *ends))


def with_seed(params: SamplingParams) -> SamplingParams:
    """``params`` with a seed of its own where the request gave none."""
    return params if params.seed is not None else replace(params, seed=secrets.randbits(63))


def fit_max_tokens(
    params: SamplingParams,
    num_prompt_tokens: int,
    max_model_len: int,
    *,
    default: int | None = None,
    prompt_field: str = "prompt",
) -> SamplingParams:
    """Settle ``max_tokens`` in what the prompt leaves of the context; raises ApiError 400.

    ``default`` stands in when the request asked for no number; None: all the room there is.
    """
    room = max_model_len - num_prompt_tokens
    limit = f"This model's maximum context length is {max_model_len} tokens"
    if room < (params.max_tokens != 0):
        raise ApiError(
            f"{limit}, but the prompt has {num_prompt_tokens} tokens, which leaves none for an "
            "answer.",
            param=prompt_field,
            code="context_length_exceeded",
        )
    if params.max_tokens is not None and params.max_tokens > room:
        raise ApiError(
            f"{limit}, but {num_prompt_tokens + params.max_tokens} were asked for "
            f"({num_prompt_tokens} in the prompt, {params.max_tokens} in the answer).",
            param="max_tokens",
            code="context_length_exceeded",
        )
    max_tokens = params.max_tokens
    if max_tokens is None:
        max_tokens = min(room, default or room)
    if params.min_tokens > max_tokens:
        raise bad_field("min_tokens", f"is {params.min_tokens}, over max_tokens of {max_tokens}")
    return replace(params, max_tokens=max_tokens)


def _max_tokens(body: SamplingFields) -> int | None:
    if not isinstance(body, ChatRequest):
        return body.max_tokens
    asked = body.max_completion_tokens
    if asked is not None and body.max_tokens is not None and asked != body.max_tokens:
        raise bad_field("max_tokens", "differs from max_completion_tokens; give one of them")
    return asked or body.max_tokens


def _stop(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    at_most("stop", len(stops), limits.max_stop, "entries")
    if any(not entry for entry in stops):
        raise bad_field("stop", "must not hold an empty string")
    at_most("stop", max(map(len, stops), default=0), limits.max_stop_characters, "characters")
    return stops


def _stop_token_ids(ids: list[int] | None, context: SamplingContext) -> tuple[int, ...]:
    limit = context.limits.max_stop_token_ids
    return check_token_ids("stop_token_ids", ids, limit, context.vocab_size)


def _bad_words(words: list[str] | None, context: SamplingContext) -> tuple[tuple[int, ...], ...]:
    if not words:
        return ()
    limits = context.limits
    at_most("bad_words", len(words), limits.max_bad_words, "entries")
    at_most("bad_words", max(map(len, words)), limits.max_bad_word_characters, "characters")
    assert context.tokenizer is not None, "it comes with the services"
    return bad_word_ids(context.tokenizer, words, context.vocab_size)


def _logit_bias(entries: Mapping[str, float], context: SamplingContext) -> dict[int, float]:
    at_most("logit_bias", len(entries), context.limits.max_logit_bias, "entries")
    bias: dict[int, float] = {}
    for key, value in entries.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 12):
            raise bad_field("logit_bias", f"{key[:40]!r} is not a token id")
        check_token_id("logit_bias", int(key), context.vocab_size)
        bias[int(key)] = value
    return bias


def _logprobs(body: SamplingFields, limits: Limits) -> int | None:
    if isinstance(body, ChatRequest):
        if body.top_logprobs is not None and not body.logprobs:
            raise bad_field("top_logprobs", "needs logprobs to be true")
        at_most("top_logprobs", body.top_logprobs or 0, limits.max_logprobs)
        return (body.top_logprobs or 0) if body.logprobs else None
    assert isinstance(body, CompletionRequest)
    at_most("logprobs", body.logprobs or 0, limits.max_logprobs)
    return body.logprobs


def _prompt_logprobs(body: SamplingFields, limits: Limits) -> int | None:
    """As many as are asked for; an echo has as many as the answer."""
    at_most("prompt_logprobs", body.prompt_logprobs or 0, limits.max_logprobs)
    echoed = body.logprobs if isinstance(body, CompletionRequest) and body.echo else None
    return max((n for n in (body.prompt_logprobs, echoed) if n is not None), default=None)
