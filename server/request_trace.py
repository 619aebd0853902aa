"""The span of one HTTP request, under the caller's where it sent one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Message, Scope, Send

from ..gateway.fleet.headers import REQUEST_ID, TRACE_PARENT
from ..gateway.fleet.tracing import Tracer


@contextmanager
def traced(tracer: Tracer, headers: Headers, scope: Scope, send: Send) -> Iterator[Send]:
    """``send``, and inside a span that ends with the response; its status is noted."""
    facts = {"http.request.method": scope["method"], "url.path": scope["path"]}
    span = tracer.start("server.request", headers.get(TRACE_PARENT), facts)
    if REQUEST_ID in headers:
        span.set("request_id", headers[REQUEST_ID][:128])
    error: str | None = "no answer"

    async def send_and_note(message: Message) -> None:
        nonlocal error
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set("http.response.status_code", status)
            error = f"status {status}" if status >= 500 else None
        await send(message)

    try:
        with span.active():
            yield send_and_note
    except BaseException as failure:
        error = type(failure).__name__
        raise
    finally:
        span.end(error)
