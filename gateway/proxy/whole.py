"""Answers that come in one piece: kept back until they are whole, so that a loss can be retried."""

from __future__ import annotations

import msgspec

from ..types import Outcome, Usage
from .attempt import Attempt
from .attempts import Attempts
from .client_side import ClientSide
from .guard import UpstreamLost
from .header_rules import to_client


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    # as /v1/responses and /v1/messages say it
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None


_DECODER = msgspec.json.Decoder(_Answer)


async def relay_whole(
    attempts: Attempts, attempt: Attempt, client: ClientSide, max_buffered_bytes: int
) -> Usage | None:
    """Pass an answer on; its usage, if it says it. Raises NoReplica, ClientGone, UpstreamLost.

    One that is longer than ``max_buffered_bytes`` begins to go out before it is whole.
    """
    while True:
        parts: list[bytes] = []
        num_bytes = 0
        try:
            while data := await attempt.read():
                parts.append(data)
                num_bytes += len(data)
                if num_bytes > max_buffered_bytes:
                    await _pass_on(attempt, client, parts)
                    return None
            break
        except UpstreamLost as lost:
            attempts.lost(attempt, lost)
            if client.has_started:
                raise
        except BaseException:
            attempt.abandon("client_left")
            raise
        attempt = await attempts.open()
    body = b"".join(parts)
    status, headers = attempt.status, to_client(attempt.response.headers)
    await attempt.finish(_outcome(status))
    await client.whole(status, headers, body)
    return read_usage(body) if status < 300 else None


async def _pass_on(attempt: Attempt, client: ClientSide, parts: list[bytes]) -> None:
    await client.start(attempt.status, to_client(attempt.response.headers))
    await client.write(b"".join(parts))
    while data := await attempt.read():
        await client.write(data)
    await attempt.finish(_outcome(attempt.status))
    await client.write(b"", more=False)


def _outcome(status: int) -> Outcome:
    return "ok" if status < 400 else "refused"


def read_usage(body: bytes) -> Usage | None:
    """``usage`` of an answer or of the last chunk of a stream."""
    try:
        usage = _DECODER.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if usage is None:
        return None
    details = usage.prompt_tokens_details or usage.input_tokens_details
    read, created = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    return Usage(
        num_input_tokens=usage.prompt_tokens + usage.input_tokens + read + created,
        num_output_tokens=usage.completion_tokens + usage.output_tokens,
        num_cached_tokens=(details and details.cached_tokens) or read,
    )
