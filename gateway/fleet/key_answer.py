"""The answer of ``GET /fleet/keys``, as msgpack."""

from __future__ import annotations

import msgspec

from .records import KeyEvents, KeySnapshot

CONTENT_TYPE = "application/msgpack"


class KeyAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The batches that follow the one asked for, or all keys where those are not there any more."""

    events: list[KeyEvents] = []
    snapshot: KeySnapshot | None = None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(KeyAnswer)


def encode_answer(answer: KeyAnswer) -> bytes:
    """The answer's body."""
    return _ENCODER.encode(answer)


def decode_answer(body: bytes) -> KeyAnswer:
    """Raises msgspec.MsgspecError for what is none."""
    return _DECODER.decode(body)
