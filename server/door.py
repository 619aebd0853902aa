"""What every HTTP request passes first: request id, keys, the gate of a draining server."""

from __future__ import annotations

import re
import uuid
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import Tenant
from .admission import Admission
from .errors import ApiError
from .gate import Gate

REQUEST_ID = "x-request-id"
TENANT_STATE = "tenant"

_GOOD_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Door:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, gate: Gate, admission: Admission) -> None:
        self._app = app
        self._gate = gate
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not come in, pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = _with_request_id(send, _request_id(headers))
        try:
            guarded = self._admit(scope, headers)
            with self._gate.enter() if guarded and scope["method"] == "POST" else nullcontext():
                await self._app(scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers) -> bool:
        """Whether this is a guarded path; notes the tenant in the request's state."""
        path = scope["path"]
        if path.startswith("/v1/"):
            scope.setdefault("state", {})[TENANT_STATE] = self._admission.tenant(headers)
        elif path == "/admin" or path.startswith("/admin/"):
            self._admission.check_admin(headers)
        else:
            return False
        return True


def tenant_of(request: Request) -> Tenant:
    """The tenant that the door noted for a request under ``/v1/``."""
    tenant = getattr(request.state, TENANT_STATE)
    assert isinstance(tenant, Tenant)
    return tenant


def _request_id(headers: Headers) -> str:
    """The client's own id where it is fit for a header and a log, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _with_request_id(send: Send, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)[REQUEST_ID] = request_id
        await send(message)

    return send_with_id
