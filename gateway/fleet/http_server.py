"""uvicorn as our processes run it, and the ids of requests."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

_GOOD_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class HttpServer(uvicorn.Server):
    """uvicorn, with signals left to who runs it: they drain first and stop listening later."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def request_id_of(given: str) -> str:
    """The client's own id where it is fit for a header and a log, else a new one."""
    return given if _GOOD_REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
