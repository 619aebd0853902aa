"""When a request ends: its stopping tokens, its own length and the model's."""

from __future__ import annotations

from collections.abc import Collection

from .request import Request
from .types import FinishReason


def finish_reason(
    request: Request, eos_token_ids: Collection[int], max_model_len: int
) -> tuple[FinishReason | None, int | None]:
    """Why the last output token ends the request, and the stop token id that did, if one.

    A grammar lets no end come before ``min_tokens``, or at all where ends are to be ignored, but
    where nothing else can.
    """
    params, token_id = request.params, request.output_token_ids[-1]
    num_output = len(request.output_token_ids)
    has_grammar = params.grammar is not None
    if num_output >= params.min_tokens or has_grammar:
        if token_id in eos_token_ids and (has_grammar or not params.ignore_eos):
            return "stop", None
        if token_id in params.stop_token_ids:
            return "stop", token_id
    if params.max_tokens is not None and num_output >= params.max_tokens:
        return "length", None
    if len(request.token_ids) >= max_model_len:
        return "length", None
    return None, None


def can_run_ahead(request: Request, max_model_len: int) -> bool:
    """Whether a step may be planned for a request whose last token nobody may have seen yet.

    Not when that token is its last by length, nor when the next one depends on its text.
    """
    if not request.num_pending_tokens:
        return request.num_uncomputed_tokens > 0  # none are left of a prompt that is all there is
    params = request.params
    at_end = params.max_tokens is not None and request.num_output_tokens >= params.max_tokens
    needs_text = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or bool(params.bad_word_ids)
        or request.num_output_tokens <= params.min_tokens
    )
    return not (at_end or needs_text or request.num_tokens >= max_model_len)
