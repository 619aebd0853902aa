"""When a request ends: its stopping tokens, its own length and the model's."""

from __future__ import annotations

from collections.abc import Collection

from .request import Request
from .types import FinishReason


def finish_reason(
    request: Request, eos_token_ids: Collection[int], max_model_len: int
) -> tuple[FinishReason | None, int | None]:
    """Why the last output token ends the request, and the stop token id that did, if one."""
    params, token_id = request.params, request.output_token_ids[-1]
    num_output = len(request.output_token_ids)
    if num_output >= params.min_tokens:
        if token_id in eos_token_ids and not params.ignore_eos:
            return "stop", None
        if token_id in params.stop_token_ids:
            return "stop", token_id
    if params.max_tokens is not None and num_output >= params.max_tokens:
        return "length", None
    if len(request.token_ids) >= max_model_len:
        return "length", None
    return None, None


def can_run_ahead(request: Request, max_model_len: int) -> bool:
    """Whether a step may be planned for a request whose last token nobody has seen yet.

    Not when that token is its last by length, nor when the next one depends on its text.
    """
    if not request.num_pending_tokens:
        return True
    params = request.params
    at_end = params.max_tokens is not None and request.num_output_tokens >= params.max_tokens
    needs_text = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
        or request.num_output_tokens <= params.min_tokens
    )
    return not (at_end or needs_text or request.num_tokens >= max_model_len)
