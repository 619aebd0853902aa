"""Errors as a client sees them: OpenAI's shape, and the only place that knows HTTP statuses.

BranchlineError (lora.errors)
└── ApiError            status, message, type, param, code
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import TypedDict

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from ..engine.errors import EngineDeadError, RequestError
from ..gateway.fleet.headers import ERROR_CODE
from ..gateway.fleet.messages_errors import is_messages_path, messages_error
from ..lora.errors import AdapterError, BranchlineError

logger = logging.getLogger(__name__)

REQUEST_ID_STATE = "request_id"
"""Under which name the door notes a request's id in its state."""


class ErrorDetail(TypedDict):
    """The inside of an error body."""

    message: str
    type: str
    param: str | None
    code: str | None


class ApiError(BranchlineError):
    """A refusal or failure: its HTTP status, OpenAI's four fields, and headers of its own."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def detail(self) -> ErrorDetail:
        """What goes under ``error`` in a body or an in-band event."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """The whole HTTP answer, with ``headers`` beside the error's own."""
        return Response(
            msgspec.json.encode({"error": self.detail}),
            status_code=self.status,
            media_type="application/json",
            headers={**self.headers, **(headers or {})},
        )


def shaped(error: ApiError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The whole HTTP answer, in the shape that the clients of a path expect."""
    if not is_messages_path(scope["path"]):
        return error.response(headers)
    request_id = scope.get("state", {}).get(REQUEST_ID_STATE)
    code = {} if error.code is None else {ERROR_CODE: error.code}
    return Response(
        msgspec.json.encode(messages_error(error.status, error.message, request_id)),
        status_code=error.status,
        media_type="application/json",
        headers={**error.headers, **(headers or {}), **code},
    )


def bad_field(param: str, message: str, code: str | None = None) -> ApiError:
    """400 for one field of the request."""
    return ApiError(f"{param}: {message}", param=param, code=code)


def no_path(method: str, path: str) -> ApiError:
    """404 for a path where nothing is."""
    return ApiError(f"There is no {method} {path} here.", status=404, code="not_found")


def unavailable(message: str, code: str) -> ApiError:
    """503: nothing is wrong with the request, come back later."""
    return ApiError(message, status=503, type="server_error", code=code)


def overloaded(message: str, retry_after: float | None) -> ApiError:
    """429: the queue is full, and this request's tenant has more than its share of it.

    Not a 503: who is turned away depends on whose request it is, and a router must not take
    this server for a broken one.
    """
    return ApiError(
        message,
        status=429,
        type="rate_limit_error",
        code="queue_full",
        headers={"retry-after": str(max(1, math.ceil(retry_after or 1)))},
    )


def refused(error: str) -> ApiError:
    """400 for a request that the engine can't take; it says ``field: reason``."""
    field, colon, reason = error.partition(": ")
    if colon and field.isidentifier():
        return bad_field(field, reason)
    return ApiError(error)


def internal_error(message: str) -> ApiError:
    """500: a fault of ours."""
    return ApiError(message, status=500, type="server_error", code="internal_error")


def to_api_error(error: Exception) -> ApiError:
    """Any exception as what the client gets to see; what is unexpected keeps its details here."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AdapterError):
        return bad_field(error.field, error.message, code="adapter_refused")
    if isinstance(error, RequestError):
        return bad_field(error.field, error.message)
    if isinstance(error, EngineDeadError):
        return unavailable(f"The engine stopped: {error}.", "engine_dead")
    logger.error("unexpected error", exc_info=error)
    return internal_error("The server failed on this request; its log says why.")


def install_error_handlers(app: FastAPI) -> None:
    """Shape every error that leaves the application."""

    async def on_error(request: Request, error: Exception) -> Response:
        return shaped(to_api_error(error), request.scope)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return shaped(_from_http(request, error), request.scope, error.headers)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return shaped(bad_field(str(first["loc"][-1]), str(first["msg"])), request.scope)

    app.add_exception_handler(BranchlineError, on_error)
    app.add_exception_handler(Exception, on_error)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def _from_http(request: Request, error: HTTPException) -> ApiError:
    path, method = request.url.path, request.method
    if error.status_code == HTTPStatus.NOT_FOUND:
        return no_path(method, path)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return ApiError(
            f"{path} does not take {method}; allowed: {allowed}.",
            status=405,
            code="method_not_allowed",
        )
    return ApiError(str(error.detail), status=error.status_code)
