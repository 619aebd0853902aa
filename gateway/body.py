"""A request's body: read within bounds, and of it only what routing and limits need.

The bytes go on as they came. A replica reads them again, and its reader and this one agree where
it matters: of equal keys both take the last. What answers is not even left to that: the gateway
sends it beside the body (``headers.MODEL``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any

import msgspec

from .config import ProxyLimits
from .errors import GatewayError, bad_field
from .fleet.nesting import too_many

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_CHOICES = 128
MAX_PROMPTS = 256
MAX_MESSAGES = 8192
MAX_HELD_BYTES = 1 << 30

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
_Name = Annotated[str, msgspec.Meta(max_length=1024)]


class ClientLeft(Exception):  # noqa: N818 - not an error of anyone's
    """The client closed the connection before its answer was there."""


class StreamOptions(msgspec.Struct, frozen=True):
    """Of ``stream_options``."""

    include_usage: bool | None = None


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway reads of a body; the rest is the replica's business."""

    model: _Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: _Choices | None = None
    best_of: _Choices | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    max_output_tokens: _Count | None = None
    cache_salt: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    messages: list[Any] | None = None
    prompt: str | list[Any] | None = None
    add_special_tokens: Any = None
    chat_template_kwargs: Any = None
    tools: Any = None
    tool_choice: Any = None
    reasoning_effort: Any = None
    previous_response_id: _Name | None = None

    @property
    def num_answers(self) -> int:
        """How many answers are computed for it, beams and those that are not shown among them."""
        return max(self.n or 1, self.best_of or 1) * self.num_prompts

    @property
    def num_prompts(self) -> int:
        """How many answers it asks for, ``n`` aside."""
        if isinstance(self.prompt, list) and self.prompt and not isinstance(self.prompt[0], int):
            return len(self.prompt)
        return 1


Decode = Callable[[bytes], ModelRequest]

decode_plain: Decode = msgspec.json.Decoder(ModelRequest).decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AT = re.compile(r" - at `\$\.?([^`]*)`$")


def parse_body(body: bytes, decode: Decode = decode_plain) -> ModelRequest:
    """Raises GatewayError 400 that names the field; ``decode`` is an endpoint's own reading."""
    if what := too_many(body):
        raise GatewayError(400, f"The body holds {what}, the most here.")
    try:
        parsed = decode(body)
    except msgspec.ValidationError as error:
        raise _from_validation(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise GatewayError(400, not_json(body, error)) from None
    except RecursionError:
        raise GatewayError(400, "The body is nested too deeply.") from None
    if decode is decode_plain and parsed.num_prompts > MAX_PROMPTS:
        raise bad_field("prompt", f"holds {parsed.num_prompts} prompts, the most is {MAX_PROMPTS}")
    if parsed.messages is not None and len(parsed.messages) > MAX_MESSAGES:
        num_messages = len(parsed.messages)
        raise bad_field("messages", f"holds {num_messages} messages, the most is {MAX_MESSAGES}")
    return parsed


def not_json(body: bytes, error: Exception) -> str:
    """What is wrong with a body that can't be read; msgspec takes half a pair for a cut end."""
    what = "it is empty" if not body.strip() else str(error).removesuffix(".")
    if "truncated" in what:
        what = "it ends too early"
        if _SURROGATE.search(body) and body.rstrip().endswith((b"}", b"]", b'"')):
            what = "a string in it is cut, or holds half of a surrogate pair"
    return f"The body is not valid JSON: {what}."


def _from_validation(message: str) -> GatewayError:
    """msgspec's ``Expected `int | null`, got `str` - at `$.n```: its words, our shape."""
    found = _AT.search(message)
    if found is None or not found[1]:
        return GatewayError(400, "The body must be a JSON object.")
    problem = message[: found.start()].replace("`", "")
    return bad_field(found[1][:100], problem[:1].lower() + problem[1:])


class BodyBudget:
    """The bytes of all bodies that are held at a time; no tenant gets over a quarter of them."""

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_of_tenant = max_bytes // 4
        self._num_free = max_bytes
        self._held: dict[str, int] = {}

    def take(self, tenant: str, num_bytes: int) -> None:
        """Raises GatewayError 503 when there is no room."""
        held = self._held.get(tenant, 0) + num_bytes
        if num_bytes > self._num_free or held > self._max_of_tenant:
            raise GatewayError(
                503,
                "The gateway holds all the request bodies that it has room for.",
                code="too_many_bytes_here",
                headers={"retry-after": "1", "connection": "close"},
            )
        self._held[tenant] = held
        self._num_free -= num_bytes

    def give_back(self, tenant: str, num_bytes: int) -> None:
        """They are held no more."""
        self._num_free += num_bytes
        left = self._held.get(tenant, 0) - num_bytes
        if left > 0:
            self._held[tenant] = left
        else:
            self._held.pop(tenant, None)


class HeldBody:
    """One request's part of the budget, while it has ``bytes``; to be released once."""

    def __init__(self, budget: BodyBudget, tenant: str) -> None:
        self._budget, self._tenant = budget, tenant
        self._num_bytes = 0

    async def read(self, receive: Receive, content_length: str, limits: ProxyLimits) -> bytes:
        """The whole body; raises GatewayError 413, 408 or 503, and ClientLeft."""
        if content_length.isdecimal() and int(content_length[:20]) > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        try:
            async with asyncio.timeout(limits.body_timeout):
                return await self._read(receive, limits.max_body_bytes)
        except TimeoutError:
            raise _too_slow(limits.body_timeout) from None

    async def _read(self, receive: Receive, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part: bytes = message.get("body", b"")
            if self._num_bytes + len(part) > max_bytes:
                raise _too_large(max_bytes)
            self._budget.take(self._tenant, len(part))
            self._num_bytes += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def release(self) -> None:
        """The request is over."""
        self._budget.give_back(self._tenant, self._num_bytes)
        self._num_bytes = 0


def _too_large(max_bytes: int) -> GatewayError:
    return GatewayError(
        413,
        f"The body is larger than {max_bytes} bytes, the most this gateway takes.",
        code="body_too_large",
        headers={"connection": "close"},
    )


def _too_slow(timeout: float) -> GatewayError:
    return GatewayError(
        408,
        f"The body was not here within {timeout:g} s, the most this gateway waits.",
        code="body_timeout",
        headers={"connection": "close"},
    )
