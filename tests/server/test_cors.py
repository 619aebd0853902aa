"""Web pages of other origins: what a browser asks first, and what it may read afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import click
import httpx
import pytest
from fake_engine import FakeEngine

from branchline.gateway.fleet.cors import parse_origins
from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import BASE, access, make_client, make_services
from .test_config import parse, refuse

PAGE, OTHER, KEY = "https://chat.example.com", "https://evil.example.com", "sk-one"
BODY = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@asynccontextmanager
async def serving(tokenizer: Tokenizer, *origins: str) -> AsyncIterator[httpx.AsyncClient]:
    services = make_services(tokenizer, FakeEngine(), access(api_key=(KEY,), admin_key=("a",)))
    config = replace(services.config, cors_origins=origins)
    async with make_client(create_app(replace(services, config=config))) as client:
        yield client


def sent(origin: str = PAGE, **more: str) -> Mapping[str, str]:
    return {"origin": origin, "authorization": f"Bearer {KEY}", **more}


PATHS = ("/v1/chat/completions", "/v1/messages", "/tokenize", "/v1/models", "/admin/adapters")


@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_needs_no_key(tokenizer: Tokenizer, path: str) -> None:
    async with serving(tokenizer, PAGE) as client:
        response = await client.options(path, headers={"origin": PAGE, **PREFLIGHT})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "POST" in response.headers["access-control-allow-methods"]
        allowed = response.headers["access-control-allow-headers"]
        assert allowed == PREFLIGHT["access-control-request-headers"]
        refused = await client.options(path, headers={"origin": OTHER, **PREFLIGHT})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers


async def test_a_page_reads_answers_refusals_and_streams(tokenizer: Tokenizer) -> None:
    async with serving(tokenizer, PAGE) as client:
        for more, status in (({}, 200), ({"stream": True}, 200), ({"n": 0}, 400)):
            response = await client.post(
                "/v1/chat/completions", json={**BODY, **more}, headers=sent()
            )
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "Origin" in response.headers["vary"]
            exposed = response.headers["access-control-expose-headers"].split(", ")
            assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens"} <= {*exposed}
        assert response.headers["x-request-id"]
        nameless = await client.post("/v1/chat/completions", json=BODY, headers={"origin": PAGE})
        assert nameless.status_code == 401
        assert nameless.headers["access-control-allow-origin"] == PAGE, "it can read why"


async def test_others_read_nothing(tokenizer: Tokenizer) -> None:
    async with serving(tokenizer, PAGE) as client:
        for origin in (OTHER, "null", f"{PAGE}.evil.com", "http://chat.example.com"):
            response = await client.post("/v1/chat/completions", json=BODY, headers=sent(origin))
            assert "access-control-allow-origin" not in response.headers


async def test_all_pages(tokenizer: Tokenizer) -> None:
    async with serving(tokenizer, "*") as client:
        response = await client.post("/v1/chat/completions", json=BODY, headers=sent(OTHER))
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


async def test_it_is_off_by_default(tokenizer: Tokenizer) -> None:
    async with serving(tokenizer) as client:
        response = await client.post("/v1/chat/completions", json=BODY, headers=sent())
        assert not [name for name in response.headers if name.startswith("access-control")]
        preflight = await client.options(
            "/v1/chat/completions", headers={"origin": PAGE, **PREFLIGHT}
        )
        assert preflight.status_code == 401


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(
        monkeypatch,
        *("m", "--cors-origin", PAGE, "--cors-origin", "http://localhost:5173"),
        *("--allowed-origins", f'["{PAGE}", "vscode-webview://x"]'),
    )
    assert config.cors_origins == (PAGE, "http://localhost:5173", "vscode-webview://x")
    assert parse(monkeypatch, "m").cors_origins == ()
    assert parse(monkeypatch, "m", "--allowed-origins", '["*"]').cors_origins == ("*",)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--cors-origin", "chat.example.com"), "--cors-origin"),
        (("--cors-origin", f"{PAGE}/"), "--cors-origin"),
        (("--cors-origin", f"{PAGE}/app"), "--cors-origin"),
        (("--cors-origin", f"{PAGE},{OTHER}"), "--cors-origin"),
        (("--cors-origin", "https://Chat.example.com"), "--cors-origin"),
        (("--cors-origin", ""), "--cors-origin"),
        (("--allowed-origins", PAGE), "--allowed-origins"),
        (("--allowed-origins", "[1]"), "--allowed-origins"),
        (("--allowed-origins", '["x"]'), "--allowed-origins"),
    ],
)
def test_bad_flags(monkeypatch: pytest.MonkeyPatch, words: Any, flag: str) -> None:
    assert flag in refuse(monkeypatch, "m", *words)


def test_origins_are_kept_once() -> None:
    assert parse_origins([PAGE, PAGE], f'["{PAGE}"]') == (PAGE,)
    with pytest.raises(ValueError, match="--allowed-origins"):
        parse_origins([], "{")
    assert issubclass(click.UsageError, click.ClickException)
