"""From a parsed body to what is routed, reserved and sent."""

from __future__ import annotations

import string
from collections.abc import Mapping
from hashlib import blake2b

import msgspec

from .body import ModelRequest
from .errors import GatewayError, bad_field
from .estimates import PromptSize
from .fleet import headers as fleet
from .prefix_keys import MAX_BYTES, PrefixNamespace, request_variant
from .shedding import fill, retry_seconds, threshold
from .types import Caller, FleetSnapshot, Target

_LETTERS = string.ascii_letters.encode() + b" "

DEFAULT_MODEL_LEN = 4096
"""Stands in while no replica is known."""


def prompt_size(request: ModelRequest, text: bytes, body: bytes) -> PromptSize:
    """How much prompt there is; ``text`` is its canonical text, of the first prompt."""
    if request.messages is not None:
        shown = text if len(text) < MAX_BYTES else max(text, body, key=len)
        if request.tools:
            shown += msgspec.json.encode(request.tools)
        return _text_size(shown, num_messages=len(request.messages))
    prompt = request.prompt
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            return PromptSize(num_token_ids=len(prompt))
        if isinstance(prompt[0], list):
            ids = sum(len(one) for one in prompt if isinstance(one, list))
            return PromptSize(num_token_ids=ids)
    is_short = isinstance(prompt, str) and len(text) < MAX_BYTES
    return _text_size(text if is_short else body)


def _text_size(text: bytes, num_messages: int = 0) -> PromptSize:
    return PromptSize(
        num_bytes=len(text),
        num_dense_bytes=len(text.translate(None, _LETTERS)),
        num_messages=num_messages,
    )


def prefix_namespace(caller: Caller, target: Target, request: ModelRequest) -> PrefixNamespace:
    """Who shares what is cached for this request: as the replica will see it."""
    return PrefixNamespace(
        adapter=None if target.uses_base_prefix else target.digest,
        isolation="group" if caller.cache_group else "tenant",
        owner=caller.cache_group or caller.tenant,
        salt=request.cache_salt,
        variant=request_variant(
            is_chat=request.messages is not None,
            add_special_tokens=request.add_special_tokens,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=request.tools,
            tool_choice=request.tool_choice,
            reasoning_effort=request.reasoning_effort,
        ),
    )


def split_key(
    caller: Caller, headers: Mapping[str, str], request: ModelRequest, text: bytes
) -> str:
    """What a canary split goes by: one user, one conversation keeps its side.

    The header if there is one, else the body's ``user`` or ``prompt_cache_key``, else the
    beginning of the prompt. Raises GatewayError 400 for a bad header.
    """
    who = headers.get(fleet.REQUEST_KEY)
    if who is not None and not 1 <= len(who) <= fleet.MAX_KEY_LENGTH:
        problem = f"must be 1 to {fleet.MAX_KEY_LENGTH} characters"
        raise bad_field(fleet.REQUEST_KEY, problem)
    who = who or request.user or request.prompt_cache_key
    if who is None:
        who = blake2b(text[:1024], digest_size=8).hexdigest()
    return f"{caller.tenant}\n{who}"


def affinity(caller: Caller, target: Target) -> bytes:
    """A hash of tenant and adapter."""
    return blake2b(f"{caller.tenant}\n{target.wire_name}".encode(), digest_size=8).digest()


def fleet_headers(caller: Caller, target: Target, *, is_stream: bool) -> dict[str, str]:
    """What a replica is told beside the body."""
    headers = {**caller_headers(caller), fleet.MODEL: target.wire_name}
    if is_stream:
        headers[fleet.STREAM_STATE] = "1"
    return headers


def caller_headers(caller: Caller) -> dict[str, str]:
    """What a replica is told of who asks."""
    headers = {
        fleet.TENANT: caller.tenant,
        fleet.TENANT_WEIGHT: f"{caller.weight:g}",
        fleet.PRIORITY: str(caller.priority),
    }
    if caller.cache_group:
        headers[fleet.CACHE_GROUP] = caller.cache_group
    return headers


def max_model_len(snapshot: FleetSnapshot) -> int:
    """The longest context that a replica has."""
    return max((r.report.max_model_len for r in snapshot.replicas), default=DEFAULT_MODEL_LEN)


def check_overload(caller: Caller, priorities: tuple[int, ...], snapshot: FleetSnapshot) -> None:
    """Raises GatewayError 429 for who has to wait while all queues are this full."""
    limit = threshold(caller.priority, priorities)
    if fill(snapshot.replicas) >= limit:
        raise GatewayError(
            429,
            "All replicas are busy, and requests of a higher priority go first.",
            code="overloaded",
            headers={"retry-after": str(retry_seconds(snapshot.replicas))},
        )


def asks_for_route(headers: Mapping[str, str]) -> bool:
    """Whether a request asks to be told where it went."""
    return headers.get(fleet.EXPLAIN_ROUTE) == "1"
