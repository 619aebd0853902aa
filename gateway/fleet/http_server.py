"""uvicorn as our processes run it, and the ids of requests."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 1 << 16
"""Of a request's line and headers; a connection that sends more is cut."""

ABORT = "branchline.abort"
"""In a request's extensions: cuts its connection, whatever is still to be written."""

_GOOD_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to who runs it: they drain first and stop listening later."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class GuardedProtocol(HttpToolsProtocol):
    """httptools, with a way to cut a connection from inside, and a bound on heads."""

    _num_head_bytes = 0
    _num_field_bytes = 0
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        """Counts what a head has so far."""
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._num_head_bytes > MAX_HEAD_BYTES and self._is_in_head:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts trailers too, which come behind a body and are kept as well."""
        self._num_field_bytes += len(name) + len(value)
        if self._num_field_bytes > MAX_HEAD_BYTES:
            self.transport.abort()
        else:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """From here on it is the body."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is a head."""
        self._is_in_head, self._num_head_bytes = True, 0
        super().on_message_complete()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._num_field_bytes = 0
        super().on_message_begin()
        extensions: dict[str, Any] = {ABORT: self.transport.abort}
        self.scope["extensions"] = extensions


def request_id_of(given: str) -> str:
    """The client's own id where it is fit for a header and a log, else a new one."""
    return given if _GOOD_REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
