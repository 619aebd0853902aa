"""Which of a request's sampling fields can't be had together."""

from __future__ import annotations

from collections.abc import Sequence

from .beam import BeamTerms
from .config import Limits
from .errors import ApiError, bad_field
from .openai import CompletionRequest, SamplingFields
from .token_lists import at_most

# A search goes by the model's own logprobs: what would change them it must not read past.
_NOT_WITH_BEAMS = (
    "stop",
    "logit_bias",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
)


def check_together(body: SamplingFields, limits: Limits) -> None:
    """Raises ApiError 400 for fields of which one excludes another."""
    if body.prompt_logprobs is not None and body.stream:
        raise bad_field("prompt_logprobs", "can't be had together with stream")
    if body.truncate_prompt_tokens == 0:
        raise bad_field("truncate_prompt_tokens", "must be -1 or at least 1")
    if body.use_beam_search:
        _check_beams(body, limits)
    elif body.length_penalty not in (None, 1.0):
        raise bad_field("length_penalty", "needs use_beam_search to be true")
    if isinstance(body, CompletionRequest):
        _check_completion(body, limits)


def beam_terms(body: SamplingFields) -> BeamTerms | None:
    """How the request wants beams searched, None for not at all.

    As wide as ``n``, as in vLLM, or as ``best_of`` where that is given.
    """
    if not body.use_beam_search:
        return None
    best_of = body.best_of if isinstance(body, CompletionRequest) else None
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return BeamTerms(best_of or body.n or 1, penalty)


def check_prompt_scores(
    body: SamplingFields, num_tokens: Sequence[int], num_choices: int, limits: Limits
) -> None:
    """Raises ApiError 400 where the prompts have more logprobs than one answer can hold.

    ``num_tokens`` are in each prompt, of which ``num_choices`` choices each tell the logprobs.
    """
    echoed = body.logprobs if isinstance(body, CompletionRequest) and body.echo else None
    num_each = sum(n + 1 for n in (body.prompt_logprobs, echoed) if n is not None)
    num_entries, most = sum(num_tokens) * num_choices * num_each, limits.max_prompt_logprobs_entries
    if num_entries > most:
        raise bad_field(
            "logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
            f"asks for {num_entries} logprobs of the prompts' {sum(num_tokens)} tokens in "
            f"{num_choices} choices of each, the most is {most}",
        )


def _check_beams(body: SamplingFields, limits: Limits) -> None:
    if body.stream:
        raise bad_field("use_beam_search", "can't be had together with stream")
    for field in _NOT_WITH_BEAMS:
        value = getattr(body, field)
        if value and (field, value) != ("repetition_penalty", 1.0):
            raise _excluded(field, "use_beam_search")
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        raise _excluded("echo", "use_beam_search and logprobs")
    terms = beam_terms(body)
    assert terms is not None
    field = "n" if terms.width == body.n else "best_of"
    at_most(field, terms.width, limits.max_beam_width)


def _check_completion(body: CompletionRequest, limits: Limits) -> None:
    n = body.n or 1
    if body.best_of is not None:
        at_most("best_of", body.best_of, limits.max_choices)
        if body.best_of < n:
            raise bad_field("best_of", f"is {body.best_of}, under n of {n}")
        if body.best_of > n and body.stream:
            raise bad_field("best_of", "can't be over n together with stream")
    if body.max_tokens == 0:
        if not (body.echo or body.prompt_logprobs is not None):
            raise bad_field("max_tokens", "must be at least 1 without echo or prompt_logprobs")
        for field in ("use_beam_search", "min_tokens"):
            if getattr(body, field):
                raise _excluded(field, "max_tokens of 0")


def _excluded(field: str, other: str) -> ApiError:
    return bad_field(field, f"can't be had together with {other}")
