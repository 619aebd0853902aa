"""Errors of the Messages API, in Anthropic's shape."""

from __future__ import annotations

_ROOT = "/v1/messages"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def is_messages_path(path: str) -> bool:
    """Whether clients of a path expect this shape."""
    return path == _ROOT or path.startswith(f"{_ROOT}/")


def messages_error(status: int, message: str, request_id: str | None = None) -> dict[str, object]:
    """The body of an error, and of an ``error`` event in a stream."""
    otherwise = "api_error" if status >= 500 else "invalid_request_error"
    error: dict[str, object] = {
        "type": "error",
        "error": {"type": _TYPES.get(status, otherwise), "message": message},
    }
    return error if request_id is None else {**error, "request_id": request_id}
