"""From JSON to a body: what is wrong is said with the field's name and what is allowed."""

from __future__ import annotations

import re
import typing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from ..errors import GatewayError, bad_field

MAX_BODY_BYTES = 1 << 20

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `(?P<place>.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class BodyError(ValueError):
    """A field that is no good: ``param`` names it, the message says why."""

    def __init__(self, param: str, problem: str) -> None:
        super().__init__(f"{param}: {problem}" if param else problem)
        self.param = param
        self.problem = problem


def convert(value: Any, kind: type[T]) -> T:
    """A decoded value as a body; raises BodyError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), kind) from None


async def read_body(request: Request, kind: type[T]) -> T:
    """A request's body; raises GatewayError 400 and 413. An empty one is an empty object."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise GatewayError(413, f"The body has over {MAX_BODY_BYTES} bytes")
    try:
        return convert(msgspec.json.decode(bytes(raw) or b"{}"), kind)
    except BodyError as problem:
        raise bad_field(problem.param or "body", problem.problem) from None
    except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        shown = " ".join(ascii(str(error))[1:-1].split())[:200]
        raise bad_field("body", f"is no JSON: {shown}") from None


def _explained(message: str, kind: type[msgspec.Struct]) -> BodyError:
    matched = _PLACE.fullmatch(message)
    assert matched is not None
    problem, place = matched["problem"], (matched["place"] or "$").removeprefix("$").lstrip(".")
    unknown = _UNKNOWN.fullmatch(problem)
    if unknown is None:
        return BodyError(_shown(place), problem[:1].lower() + problem[1:])
    param = f"{place}.{unknown[1]}".lstrip(".")
    allowed = ", ".join(_fields_at(kind, place))
    return BodyError(_shown(param), f"there is no such field; there are: {allowed}")


def _fields_at(kind: type[msgspec.Struct], place: str) -> tuple[str, ...]:
    """The fields of the object that ``place`` (``limits``, ``tenants[...]``) leads to."""
    here: Any = kind
    for part in re.findall(r"[A-Za-z_]+|\[", place):
        if part == "[":
            here = typing.get_args(_stripped(here))[-1]
        else:
            here = typing.get_type_hints(_stripped(here))[part]
    return tuple(_stripped(here).__struct_fields__)


def _stripped(hint: Any) -> Any:
    """A type without ``| None``."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return options[0] if options and type(None) in typing.get_args(hint) else hint


def _shown(name: str) -> str:
    """A stranger's field name, fit for a message."""
    return ascii(name[:100])[1:-1]
