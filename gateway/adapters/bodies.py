"""What comes in over the fleet's admin API, strict: an unknown key is an error that names it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import ClientDisconnect, Request

from ..errors import GatewayError
from ..fleet.aliases import AliasTarget
from ..fleet.versions import PinTier

MAX_BODY_BYTES = 1 << 20
IDLE_SECONDS = 30.0

Text = Annotated[str, Meta(min_length=1, max_length=4096)]
VersionNumber = Annotated[int, Meta(ge=1, le=2**53)]
T = TypeVar("T")

_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_MISSING = re.compile(r"missing required field `([^`]*)`")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No field but those that are named."""


class PutAdapter(_Body, frozen=True):
    """The body of ``PUT /admin/adapters/{name}``: where replicas fetch it from."""

    source: Text
    pin: PinTier | None = None


class TierRequest(_Body, frozen=True):
    """The body of ``pin``, ``load`` and ``evict``."""

    tier: PinTier = "device"


class RollbackRequest(_Body, frozen=True):
    """The body of ``rollback``; without a version it is the one before the current one."""

    version: VersionNumber | None = None


class AliasShare(_Body, frozen=True):
    """One part of a split; ``version`` None follows the adapter's current one."""

    adapter: Text
    percent: Annotated[float, Meta(ge=0, le=100)]
    version: VersionNumber | None = None


class PutAlias(_Body, frozen=True):
    """The body of ``PUT /admin/aliases/{alias}``: one ``adapter``, or a ``split``."""

    adapter: Text | None = None
    version: VersionNumber | None = None
    split: Annotated[list[AliasShare], Meta(min_length=1, max_length=64)] | None = None

    @property
    def targets(self) -> list[AliasTarget]:
        """What it points at; raises GatewayError 400 unless it is one adapter or a split."""
        if (self.adapter is None) == (self.split is None):
            raise _bad_field("adapter", "exactly one of adapter and split is needed")
        if self.adapter is not None:
            return [AliasTarget(self.adapter, self.version)]
        if self.version is not None:
            raise _bad_field("version", "goes with adapter; in a split each part has its own")
        return [AliasTarget(part.adapter, part.version, part.percent) for part in self.split or ()]


async def parsed(request: Request, type_: type[T]) -> T:
    """The body; an empty one stands for ``{}``. Raises GatewayError 400, 408, 413."""
    raw = bytearray()
    async for chunk in pieces(request):
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise GatewayError(413, "The body is too large.", code="body_too_large")
    try:
        return msgspec.json.decode(bytes(raw) or b"{}", type=type_)
    except msgspec.ValidationError as error:
        raise _fault(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GatewayError(400, f"The body is not valid JSON: {error}.") from None


async def pieces(request: Request, idle_seconds: float = IDLE_SECONDS) -> AsyncIterator[bytes]:
    """The body as it comes; raises GatewayError 408, and 400 when the client leaves."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise GatewayError(
                408,
                f"Nothing of the body came for {idle_seconds:g} s.",
                code="body_timeout",
                headers={"connection": "close"},
            ) from None
        except ClientDisconnect as error:
            raise GatewayError(400, "The client left before its upload was complete.") from error
        if chunk is None:
            return
        yield chunk


def _fault(problem: str) -> GatewayError:
    path = _PATH.search(problem)
    place = path[1] if path else ""
    message = _PATH.sub("", problem)
    if found := _UNKNOWN.search(message):
        param = f"{place}.{found[1][:100]}".lstrip(".")
        return _bad_field(param, "is not a known field here", "unknown_parameter")
    if found := _MISSING.search(message):
        param = f"{place}.{found[1]}".lstrip(".")
        return _bad_field(param, "is required", "missing_required_parameter")
    if not place:
        return GatewayError(400, "The body must be a JSON object.")
    return _bad_field(place, message[:1].lower() + message[1:])


def _bad_field(param: str, problem: str, code: str | None = None) -> GatewayError:
    """400 without a code where a server gives none."""
    return GatewayError(400, f"{param}: {problem}", param=param, code=code)
