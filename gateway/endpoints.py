"""The endpoints that replicas answer: how a body is read, what is charged, how a stream ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from .body import Decode, ModelRequest, decode_plain, parse_body
from .errors import GatewayError, bad_field
from .fleet import messages_input, responses_input

RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
MAX_INPUTS = 2048

Charges = Literal["answer", "input", "request"]
"""What an endpoint takes of a tenant's limits: all tokens, those of its input, or requests only."""

_ANY = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One of them.

    ``keeps_done``: its clients' streams end with ``[DONE]``. ``has_default_model``: without a
    model the base is asked.
    """

    decode: Decode = decode_plain
    charges: Charges = "answer"
    keeps_done: bool = True
    has_default_model: bool = False

    def parse(self, body: bytes) -> ModelRequest:
        """Raises GatewayError 400 that names the field."""
        return parse_body(body, self.decode)


def _decode_as(read: Callable[[Mapping[str, Any]], ModelRequest]) -> Decode:
    """What ``read`` makes of a body that is an object."""

    def decode(body: bytes) -> ModelRequest:
        given = _ANY.decode(body)
        if not isinstance(given, dict):
            raise GatewayError(400, "The body must be a JSON object.")
        return read(given)

    return decode


def responses_request(given: Mapping[str, Any], history: Sequence[object] = ()) -> ModelRequest:
    """Of a body for /v1/responses; ``history``: the items of the responses before it."""
    as_given = msgspec.convert({**given, "prompt": None}, ModelRequest)  # faults in its words
    chat = msgspec.convert(responses_input.chat_body(given, history), ModelRequest)
    return replace(chat, previous_response_id=as_given.previous_response_id)


def _messages(given: Mapping[str, Any]) -> ModelRequest:
    return msgspec.convert(messages_input.chat_body(given), ModelRequest)


def _embeddings(given: Mapping[str, Any]) -> ModelRequest:
    inputs = given.get("input")
    if not isinstance(inputs, str | list):
        raise bad_field("input", "must be a string, token ids, or a non-empty list of either")
    request = msgspec.convert({**given, "prompt": inputs, "messages": None}, ModelRequest)
    if request.num_prompts > MAX_INPUTS:
        raise bad_field("input", f"holds {request.num_prompts} inputs, the most is {MAX_INPUTS}")
    return request


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": Endpoint(),
        "/v1/completions": Endpoint(),
        RESPONSES: Endpoint(decode=_decode_as(responses_request), keeps_done=False),
        MESSAGES: Endpoint(decode=_decode_as(_messages), keeps_done=False),
        "/v1/messages/count_tokens": Endpoint(decode=_decode_as(_messages), charges="request"),
        "/v1/embeddings": Endpoint(decode=_decode_as(_embeddings), charges="input"),
        "/tokenize": Endpoint(charges="request", has_default_model=True),
        "/detokenize": Endpoint(charges="request", has_default_model=True),
    }
)


def endpoint_of(path: str) -> Endpoint:
    """By its path, which is one of them."""
    return ENDPOINTS[path]
