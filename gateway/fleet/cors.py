"""Which web pages may call from a browser, by the Fetch standard's CORS protocol."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from .headers import EXPLAIN_ROUTE, MESSAGES_REQUEST_ID, REQUEST_ID

ANY_ORIGIN = "*"
PREFLIGHT_SECONDS = 600

# As browsers write it: without a path, and a host in lower case.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,A-Z]+")

_RATE_LIMITS = [
    f"x-ratelimit-{what}-{kind}"
    for what in ("limit", "remaining", "reset")
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
]
EXPOSED_HEADERS = (REQUEST_ID, MESSAGES_REQUEST_ID, "retry-after", EXPLAIN_ROUTE, *_RATE_LIMITS)
"""What a page may read of an answer beside its body and type."""


def parse_origins(given: Iterable[str], listed: str | None) -> tuple[str, ...]:
    """``--cors-origin`` and vLLM's ``--allowed-origins``, a JSON list; raises ValueError."""
    origins = [(text.strip(), "--cors-origin") for text in given]
    if listed is not None:
        origins += [(text.strip(), "--allowed-origins") for text in _strings(listed)]
    for origin, flag in origins:
        if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{flag}: {origin!r} must be * or SCHEME://HOST[:PORT], and no path")
    return tuple(dict.fromkeys(origin for origin, _ in origins))


def _strings(listed: str) -> list[str]:
    try:
        values = json.loads(listed)
    except ValueError:
        values = None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("--allowed-origins: must be a JSON list of strings, such as '[\"*\"]'")
    return values


def cors_settings(origins: tuple[str, ...]) -> dict[str, Any]:
    """``CORSMiddleware``'s. Keys travel in headers, so no page needs credentials of a browser's."""
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        "allow_headers": ("*",),
        "allow_private_network": True,
        "expose_headers": EXPOSED_HEADERS,
        "max_age": PREFLIGHT_SECONDS,
    }


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """``app`` for pages of these origins; a preflight is answered before any key is asked for."""
    return CORSMiddleware(app, **cors_settings(origins)) if origins else app
