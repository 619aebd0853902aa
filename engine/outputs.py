"""What leaves the engine for a request: tokens, what it wants of its prompt, why it ended."""

from __future__ import annotations

from .plan import SampledToken
from .request import Request
from .types import ErrorKind, FinishReason, TokenLogprobs, TokenOutput


def token_output(
    request: Request, token: SampledToken, reason: FinishReason | None, stop_token_id: int | None
) -> TokenOutput:
    """One more token, which is among the request's output already."""
    is_first = len(request.output_token_ids) == request.num_given_tokens + 1
    return TokenOutput(
        request_id=request.request_id,
        token_ids=[token.token_id],
        logprobs=None if token.logprobs is None else [token.logprobs],
        finish_reason=reason,
        stop_token_id=stop_token_id,
        num_cached_tokens=(request.num_cached_tokens or 0) if is_first else 0,
        queue_seconds=request.queue_seconds if is_first else None,
        prompt_logprobs=_prompt_logprobs(request) if is_first else None,
    )


def prompt_output(request: Request) -> TokenOutput:
    """The only output of a request that ends with its prompt."""
    output, vector = request.prompt_output, None
    if output is not None and request.pooling is not None:
        vector = output.embedding()
    return TokenOutput(
        request_id=request.request_id,
        token_ids=[],
        finish_reason="length" if vector is None else "stop",
        num_cached_tokens=request.num_cached_tokens or 0,
        queue_seconds=request.queue_seconds,
        prompt_logprobs=_prompt_logprobs(request),
        embedding=vector,
    )


def ended_output(
    request: Request, reason: FinishReason, error: str | None, kind: ErrorKind = "failed"
) -> TokenOutput:
    """The end of a request, with nothing of its own."""
    return TokenOutput(
        request_id=request.request_id,
        token_ids=[],
        finish_reason=reason,
        error=error,
        error_kind=kind,
    )


def overloaded_output(request_id: str, limit: int, retry_after: float) -> TokenOutput:
    """The refusal of a request, while ``limit`` others wait."""
    return TokenOutput(
        request_id=request_id,
        token_ids=[],
        finish_reason="error",
        error=f"the queue is full: {limit} requests may wait",
        error_kind="overloaded",
        retry_after=retry_after,
    )


def _prompt_logprobs(request: Request) -> list[TokenLogprobs | None] | None:
    output = request.prompt_output
    return None if output is None or output.kind != "logprobs" else output.hand_over()
