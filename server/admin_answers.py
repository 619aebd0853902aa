"""How the admin API answers: JSON, and a 503 where the engine takes too long."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from .errors import unavailable

T = TypeVar("T")


async def answered(call: Coroutine[Any, Any, T]) -> T:
    """What the engine answers; raises ApiError 503 where it takes too long."""
    try:
        return await call
    except TimeoutError:
        raise unavailable("The engine has not answered in time.", "engine_busy") from None


def json_answer(body: object, status: int = 200) -> Response:
    """A msgspec struct, or what JSON is made of."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
