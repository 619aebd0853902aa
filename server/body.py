"""Request bodies: bounded bytes to checked models, every fault a 4xx that names the field."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from ..gateway.fleet.nesting import too_many
from .config import Limits
from .errors import ApiError, bad_field
from .openai import Body

MAX_FAULTS = 4096
"""Of more none is told: pydantic makes a table of each. ``body_lists`` ends at the first."""

BodyT = TypeVar("BodyT", bound=Body)
ModelT = TypeVar("ModelT", bound=BaseModel)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body; raises ApiError 413 once it is known to be too large, 408 if it is slow."""
    try:
        async with asyncio.timeout(limits.body_timeout):
            return await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise too_slow(
            f"The body was not here within {limits.body_timeout:g} s, the most this server waits."
        ) from None


async def _read(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise too_large("body", max_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise too_large("body", max_bytes)
            chunks.append(chunk)
    except ClientDisconnect as error:
        raise ApiError("The client left before its request was complete.") from error
    return b"".join(chunks)


def parse_body(model: type[BodyT], body: bytes) -> BodyT:
    """Parse and check a body of the OpenAI API; raises ApiError 400 for the first fault."""
    parsed = parse_json(model, body)
    for name, value in (parsed.model_extra or {}).items():
        _check_extra(model, name, value)
    return parsed


def parse_json(model: type[ModelT], body: bytes) -> ModelT:
    """Parse and check any body; raises ApiError 400 for the first fault."""
    if what := too_many(body):
        raise ApiError(f"The body holds {what}, the most here.")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _first_fault(error) from None


def check_value(model: type[ModelT], value: object) -> ModelT:
    """As ``parse_json``, of what is decoded already."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _first_fault(error) from None


def _check_extra(model: type[Body], name: str, value: object) -> None:
    neutral = model.neutral
    if name in model.accepted or (name in neutral and value is None):
        return
    if name not in neutral:
        raise bad_field(
            _shown(name), "is not a parameter of this endpoint", code="unknown_parameter"
        )
    allowed = neutral[name]
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        can_be = ", ".join(["null", *map(repr, allowed)])
        raise bad_field(name, f"is not supported; it may be {can_be}", code="unsupported_parameter")


def _first_fault(error: ValidationError) -> ApiError:
    if error.error_count() > MAX_FAULTS:
        return ApiError(f"The body has {error.error_count()} faults, such as unknown fields.")
    return _from_details(
        error.errors(include_url=False, include_context=False, include_input=False)
    )


def _from_details(details: list[ErrorDetails]) -> ApiError:
    """The deepest fault: of a union's branches, the one that got furthest."""
    first = max(details, key=lambda detail: len(_path(detail["loc"])))
    if first["type"] == "json_invalid":
        return ApiError(
            f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}."
        )
    path = _path(first["loc"])
    if not path:
        return ApiError("The body must be a JSON object.")
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    if first["type"] == "missing":
        return bad_field(param, "is required", code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return bad_field(param, "is not a known field here", code="unknown_parameter")
    same_place = [d["msg"] for d in details if _path(d["loc"]) == path]
    message = " or ".join(dict.fromkeys(_lowered(msg) for msg in same_place))
    return bad_field(param, message)


def _path(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A fault's place in the body, without the names of a union's branches."""
    return tuple(
        part if isinstance(part, int) else _shown(part)
        for part in loc
        if isinstance(part, int) or not _is_branch(part)
    )


def _is_branch(part: str) -> bool:
    """Whether it is a name that pydantic gives to a union's branch, or a tag of ours."""
    is_plain = part in {"str", "int"} or part.startswith(("list[", "dict[", "literal[", "<"))
    return is_plain or part in _names_of_models()


@cache
def _names_of_models() -> frozenset[str]:
    found, models = set[str](), [BaseModel]
    while models:
        models += (model := models.pop()).__subclasses__()
        found.add(model.__name__)
    return frozenset(found)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(name: str) -> str:
    """A client's own word, short enough for a message."""
    return name if len(name) <= 100 else f"{name[:100]}…"


def too_large(what: str, max_bytes: int) -> ApiError:
    """413 for a body, or a part of one, over its limit."""
    return ApiError(
        f"The {what} is larger than {max_bytes} bytes, the most this server takes.",
        status=413,
        code="body_too_large",
    )


def too_slow(message: str) -> ApiError:
    """408 for a body that does not come; closed, because the rest may come for ever."""
    return ApiError(message, status=408, code="body_timeout", headers={"connection": "close"})
