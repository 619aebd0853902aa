"""What tells one caller's requests from another's, so that a split alias treats them alike."""

from __future__ import annotations

import hashlib

from fastapi import Request

from ..gateway.fleet.headers import MAX_KEY_LENGTH, REQUEST_KEY
from .access import Tenant
from .errors import bad_field
from .openai import Body

_BODY_FIELDS = ("user", "prompt_cache_key")


def request_key(request: Request, body: Body, raw: bytes, tenant: Tenant) -> str:
    """The header if there is one, else the body's ``user`` or ``prompt_cache_key``, else a hash.

    That is of the tenant and the whole body. Raises ApiError 400 for a bad header.
    """
    given = request.headers.getlist(REQUEST_KEY)
    if given:
        if len(given) > 1 or not 1 <= len(given[0]) <= MAX_KEY_LENGTH:
            raise bad_field(REQUEST_KEY, f"must be one value of 1 to {MAX_KEY_LENGTH} characters")
        return given[0]
    extra = body.model_extra or {}
    for field in _BODY_FIELDS:
        value = extra.get(field, getattr(body, field, None))
        if isinstance(value, str) and value:
            return value
    return hashlib.sha256(tenant.name.encode() + b"\n" + raw).hexdigest()
