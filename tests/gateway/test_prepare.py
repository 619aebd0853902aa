"""What of a request decides between the sides of a split."""

from __future__ import annotations

import pytest

from branchline.gateway.body import ModelRequest
from branchline.gateway.errors import GatewayError
from branchline.gateway.prepare import split_key
from branchline.gateway.types import Caller

HEADER = "x-branchline-request-key"
CALLER = Caller(tenant="acme")


def key(header: str | None = None, text: bytes = b"hi", **fields: str) -> str:
    headers = {} if header is None else {HEADER: header}
    return split_key(CALLER, headers, ModelRequest(**fields), text)


def test_the_header_goes_before_the_body_and_that_before_the_prompt() -> None:
    assert key("h", user="u", prompt_cache_key="k") == key("h")
    assert key(user="u", prompt_cache_key="k") == key(user="u") != key(prompt_cache_key="k")
    assert key(text=b"one") != key(text=b"two")
    assert key(text=b"a" * 1024 + b"one") == key(text=b"a" * 1024 + b"two")


def test_tenants_have_keys_of_their_own() -> None:
    other = split_key(Caller(tenant="other"), {HEADER: "h"}, ModelRequest(), b"")
    assert other != key("h")


@pytest.mark.parametrize("header", ["", "x" * 257])
def test_a_bad_header_is_named(header: str) -> None:
    with pytest.raises(GatewayError, match=HEADER) as raised:
        key(header)
    assert raised.value.status == 400
