"""What every HTTP request passes first: request id, API key, the gate of a draining server."""

from __future__ import annotations

import hmac
import re
import uuid
from collections.abc import Sequence
from contextlib import nullcontext

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import digest_key
from .errors import ApiError
from .gate import Gate

REQUEST_ID = "x-request-id"

_GOOD_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class Door:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, gate: Gate, api_key_digests: Sequence[bytes]) -> None:
        self._app = app
        self._gate = gate
        self._api_key_digests = tuple(api_key_digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not come in, pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        send = _with_request_id(send, _request_id(headers))
        guarded = scope["path"].startswith("/v1/")
        try:
            if guarded:
                self._check_key(headers)
            with self._gate.enter() if guarded and scope["method"] == "POST" else nullcontext():
                await self._app(scope, receive, send)
        except ApiError as error:
            await error.response(_challenge(error))(scope, receive, send)

    def _check_key(self, headers: Headers) -> None:
        """Compare with every key, in constant time, so that timing tells nothing."""
        if not self._api_key_digests:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = digest_key(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._api_key_digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                "A valid API key is needed: send the header 'Authorization: Bearer KEY'.",
                status=401,
                type="authentication_error",
                code="invalid_api_key",
            )


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


def _challenge(error: ApiError) -> dict[str, str]:
    return {"www-authenticate": "Bearer"} if error.status == 401 else {}
