"""The gateway's HTTP door: raw ASGI where it is hot, starlette routes for the rest.

```
POST the paths of endpoints.py                 generate.py, through the proxy
     /v1/responses/ID                          kept_api.py, from whichever replica answers
GET  /v1/models, /v1/models/NAME               what the caller may use
GET  /health /ready /metrics /version          no key
     /admin/*  /debug/route                    admins
```

Every answer has an ``x-request-id``: the client's own where it is fit for a log, else a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Message, Receive, Scope, Send

from .access_log import AccessLog
from .admin_check import AdminCheck
from .body import ClientLeft
from .endpoints import ENDPOINTS
from .error_shapes import error_answer, id_headers
from .errors import GatewayError
from .fleet.headers import REQUEST_ID
from .fleet.http_server import ABORT, request_id_of
from .fleet.messages_errors import is_messages_path
from .gate import Gate
from .generate import GenerateDoor
from .kept_api import KEPT_ENDPOINT, KEPT_RESPONSES, KeptDoor
from .metrics import GatewayMetrics
from .models_api import ModelsDoor
from .proxy.guard import ClientGone, UpstreamLost
from .proxy.header_rules import read_headers
from .proxy.job import Trail

_ADMIN = ("/admin", "/debug")


class GatewayApp:
    """The ASGI application."""

    def __init__(
        self,
        *,
        gate: Gate,
        door: GenerateDoor,
        models: ModelsDoor,
        kept: KeptDoor,
        admin: AdminCheck,
        metrics: GatewayMetrics,
        access_log: AccessLog,
        routes: Sequence[BaseRoute],
    ) -> None:
        self._gate, self._door, self._models, self._admin = gate, door, models, admin
        self._kept = kept
        self._metrics, self._access_log = metrics, access_log
        self._rest = Starlette(routes=routes, exception_handlers=_HANDLERS)
        self._rest.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = read_headers(scope["headers"])
        request_id = request_id_of((headers or {}).get(REQUEST_ID, ""))
        path, method = scope["path"], scope["method"]
        tagged = _with_request_id(send, path, request_id)
        try:
            if headers is None:
                raise GatewayError(400, "A header that may be there once is there twice.")
            if path in ENDPOINTS and method == "POST":
                await self._generate(scope, headers, request_id, receive, send)
            elif path.startswith(KEPT_RESPONSES):
                await self._kept_response(scope, headers, request_id, receive, send)
            else:
                await self._other(scope, headers, receive, tagged)
        except GatewayError as error:
            await error_answer(path, error, request_id)(scope, receive, tagged)

    async def _generate(
        self,
        scope: Scope,
        headers: Mapping[str, str],
        request_id: str,
        receive: Receive,
        send: Send,
    ) -> None:
        trail = Trail(request_id=request_id, path=scope["path"])
        work = partial(self._door.answer, trail, headers, receive, send)
        await self._counted(trail, scope, receive, send, work)

    async def _kept_response(
        self,
        scope: Scope,
        headers: Mapping[str, str],
        request_id: str,
        receive: Receive,
        send: Send,
    ) -> None:
        trail = Trail(request_id=request_id, path=KEPT_ENDPOINT)
        target = (scope["method"], scope["path"], scope["query_string"])
        work = partial(self._kept.answer, trail, target, headers, receive, send)
        await self._counted(trail, scope, receive, send, work)

    async def _counted(
        self,
        trail: Trail,
        scope: Scope,
        receive: Receive,
        send: Send,
        work: Callable[[], Awaitable[None]],
    ) -> None:
        """Do the work of a request inside the gate, and tell metrics and log what became of it."""
        try:
            with self._gate.enter():
                self._metrics.in_flight.inc()
                try:
                    await work()
                finally:
                    self._metrics.in_flight.dec()
        except GatewayError as error:
            trail.status = error.status
            self._metrics.limited(error.code)
            refused = error_answer(trail.path, error, trail.request_id)
            await refused(scope, receive, _with_request_id(send, trail.path, trail.request_id))
        except (ClientGone, ClientLeft, UpstreamLost):
            await _cut(scope)
        finally:
            if trail.status >= 400 and trail.outcome == "ok":
                trail.outcome = "refused" if trail.status < 500 else "failed"
            self._metrics.ended(trail)
            self._access_log.ended(trail)

    async def _other(
        self, scope: Scope, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        path, method = scope["path"], scope["method"]
        if not path.isprintable():
            raise GatewayError(404, "There is nothing at this path.", code="not_found")
        if path in ENDPOINTS:
            raise wrong_method(path, method, "POST")
        if is_messages_path(path):
            raise no_path(path, method)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            if method not in ("GET", "HEAD"):
                raise wrong_method(path, method, "GET")
            answer = await self._models.answer(headers, path.removeprefix("/v1/models")[1:])
            await answer(scope, receive, send)
            return
        if path.startswith(_ADMIN):
            self._admin.check(headers)
        await self._rest(scope, receive, send)


def wrong_method(path: str, method: str, allowed: str) -> GatewayError:
    """405."""
    return GatewayError(
        405,
        f"{path} does not take {method}; allowed: {allowed}.",
        code="method_not_allowed",
        headers={"allow": allowed},
    )


def no_path(path: str, method: str) -> GatewayError:
    """404."""
    return GatewayError(404, f"There is no {method} {path} here.", code="not_found")


def json_response(value: object, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        return no_path(path, method).response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return wrong_method(path, method, allowed).response()
    return GatewayError(error.status_code, str(error.detail)).response()


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error.response()


async def _on_error(request: Request, error: Exception) -> Response:
    message = "The gateway failed on this request; its log says why."
    return GatewayError(500, message, code="internal_error").response()


_HANDLERS = {
    HTTPException: _on_http,
    GatewayError: _on_gateway_error,
    Exception: _on_error,
}


async def _cut(scope: Scope) -> None:
    """End a connection in the middle of its answer, with all that is written for it."""
    abort = scope.get("extensions", {}).get(ABORT)
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # the server hears of it first


def _with_request_id(send: Send, path: str, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *id_headers(path, request_id)]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_id
