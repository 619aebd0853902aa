"""Web pages of other origins at the gateway: what a browser asks first, what it reads then."""

from __future__ import annotations

import pytest
from gateway_house import chat, gateway_house

from .test_gateway_config import BASE, parsed

PAGE, OTHER = "https://chat.example.com", "https://evil.example.com"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_pages_of_an_origin() -> None:
    async with gateway_house(cors_origins=(PAGE,), allow_anonymous=False) as house:
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/models", "/tokenize"):
            asked = {"origin": PAGE, **PREFLIGHT}
            async with house.session.options(f"{house.url}{path}", headers=asked) as response:
                assert response.status == 200, path
                assert response.headers["access-control-allow-origin"] == PAGE
                allowed = response.headers["access-control-allow-headers"]
                assert allowed == PREFLIGHT["access-control-request-headers"]
            asked = {"origin": OTHER, **PREFLIGHT}
            async with house.session.options(f"{house.url}{path}", headers=asked) as response:
                assert response.status == 400
        for stream in (False, True):
            body = chat(stream=stream)
            async with house.post(json=body, headers={"origin": PAGE}) as response:
                await response.read()
                assert response.status == 200
                assert response.headers["access-control-allow-origin"] == PAGE
                exposed = response.headers["access-control-expose-headers"]
                assert "x-request-id" in exposed
                assert "x-ratelimit-remaining-requests" in exposed
        async with house.post(json={"n": "x"}, headers={"origin": PAGE}) as response:
            assert response.status == 400
            assert response.headers["access-control-allow-origin"] == PAGE
        async with house.post(json=chat(), headers={"origin": OTHER}) as response:
            assert "access-control-allow-origin" not in response.headers


async def test_it_is_off_by_default() -> None:
    async with gateway_house() as house:
        async with house.post(json=chat(), headers={"origin": PAGE}) as response:
            assert not [name for name in response.headers if name.lower().startswith("access-c")]
        asked = {"origin": PAGE, **PREFLIGHT}
        url = f"{house.url}/v1/chat/completions"
        async with house.session.options(url, headers=asked) as response:
            assert response.status == 405


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*BASE, "--cors-origin", PAGE, "--allowed-origins", f'["{OTHER}"]')
    assert parsed(monkeypatch, *words).cors_origins == (PAGE, OTHER)
    assert parsed(monkeypatch, *BASE).cors_origins == ()
    with pytest.raises(ValueError, match="--cors-origin"):
        parsed(monkeypatch, *BASE, "--cors-origin", "example.com")
