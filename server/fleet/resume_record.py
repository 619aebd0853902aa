"""Requests that take up a stream: the record in front of the body, read and bounded."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from fastapi import Request

from ...gateway.fleet.headers import RESUME, STREAM_STATE
from ...gateway.fleet.resume import ResumeRecord
from ..body import read_body
from ..config import Limits
from ..door import FLEET_STATE
from ..errors import bad_field

MAX_NUMBER = 2**53
"""The largest that every reader of JSON takes."""

_RECORDS = msgspec.json.Decoder(ResumeRecord)


def is_from_fleet(request: Request) -> bool:
    """Whether a gateway of this fleet sends this; all others' fleet headers mean nothing."""
    return getattr(request.state, FLEET_STATE, False) is True


def wants_state(request: Request) -> bool:
    """Whether a stream is to carry what is needed to resume it."""
    return is_from_fleet(request) and request.headers.get(STREAM_STATE) == "1"


async def read_request(request: Request, limits: Limits) -> tuple[ResumeRecord | None, bytes]:
    """The record, None where there is none, and the client's body.

    Raises ApiError 400 for a bad record, and what ``read_body`` raises. The record may be as long
    as a body.
    """
    if not is_from_fleet(request) or RESUME not in request.headers:
        return None, await read_body(request, limits)
    length = _length(request.headers.getlist(RESUME), limits.max_body_bytes)
    both = replace(limits, max_body_bytes=length + limits.max_body_bytes)
    raw = await read_body(request, both)
    if len(raw) < length:
        raise bad_field(RESUME, f"says {length} bytes, but the body has {len(raw)}")
    return _parse(raw[:length]), raw[length:]


def _length(values: list[str], most: int) -> int:
    [text] = values if len(values) == 1 else [""]
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not is_number or not 0 < int(text) <= most:
        raise bad_field(RESUME, f"must be the length of a record, 1 to {most} bytes")
    return int(text)


def _parse(raw: bytes) -> ResumeRecord:
    try:
        record = _RECORDS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise bad_field(RESUME, f"the record can't be read: {error}") from None
    numbers = (record.opening.created, record.num_cached_tokens or 0, record.num_events)
    if min(numbers) < 0 or max(numbers) > MAX_NUMBER:
        raise bad_field(RESUME, f"numbers must be in [0, {MAX_NUMBER}]")
    return record
