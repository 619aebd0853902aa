"""The gateway's own errors in the shape that each endpoint's clients read, also within streams."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from .endpoints import MESSAGES, RESPONSES
from .errors import GatewayError
from .fleet.messages_errors import is_messages_path, messages_error
from .proxy.sse import DONE


class _Numbered(msgspec.Struct):
    sequence_number: int = -1


_NUMBERED = msgspec.json.Decoder(_Numbered)
_ERRORS = msgspec.json.Decoder(dict[str, Any])


def error_value(path: str, error: GatewayError, request_id: str | None = None) -> dict[str, Any]:
    """The body of an error at ``path``; None: of an event in a stream, whose head says the id."""
    if is_messages_path(path):
        return messages_error(error.status, error.message, request_id)
    return {"error": error.detail}


def id_headers(path: str, request_id: str) -> list[tuple[bytes, bytes]]:
    """What every answer at ``path`` says of its request."""
    names = [b"x-request-id"]
    if is_messages_path(path):  # where Anthropic's clients look for it
        names.append(b"request-id")
    return [(name, request_id.encode()) for name in names]


def with_own_id(path: str, body: bytes, request_id: str) -> bytes:
    """A replica's error with the client's id of the request, where its shape says one."""
    if not is_messages_path(path):
        return body
    try:
        value = _ERRORS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    return msgspec.json.encode({**value, "request_id": request_id})


def error_answer(path: str, error: GatewayError, request_id: str) -> Response:
    """The whole answer, but for ``id_headers``."""
    body = msgspec.json.encode(error_value(path, error, request_id))
    return Response(body, error.status, error.headers, "application/json")


def stream_error(path: str, error: GatewayError, last_event: bytes) -> bytes:
    """What ends a stream at ``path`` whose last event was ``last_event``."""
    if path == RESPONSES:
        number = _number_of(last_event) + 1
        detail = error.detail
        failed = {key: detail[key] for key in ("code", "message", "param")}
        return _named("error", {"type": "error", **failed, "sequence_number": number})
    value = error_value(path, error)
    if path == MESSAGES:
        return _named("error", value)
    return b"data: " + msgspec.json.encode(value) + b"\n\n" + DONE


def _named(name: str, value: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(value))


def _number_of(event: bytes) -> int:
    try:
        return _NUMBERED.decode(event.partition(b"data: ")[2]).sequence_number
    except (msgspec.DecodeError, UnicodeDecodeError):
        return -1
