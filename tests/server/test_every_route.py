"""What holds for each route of the application: keys, request ids, errors in the right shape."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fastapi import FastAPI
from fastapi.routing import APIRoute

from branchline.server.app import create_app
from branchline.server.text.tokenizer import Tokenizer

from .conftest import access, make_client, make_services

OPEN = {"/health", "/ready", "/metrics", "/version", "/openapi.json"}
"""Nobody needs a key for these."""


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer) -> FastAPI:
    who = access(api_key=("sk-one", "sk-two"), admin_key=("sk-admin",), fleet_secret="s")
    return create_app(make_services(tokenizer, FakeEngine(), who))


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and path, with something in place of its parameters."""
    found = []
    for route in app.routes:
        path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
        assert path, f"a route of another kind: {route}"
        methods = route.methods if isinstance(route, APIRoute) else {"GET"}
        found += [(method, path) for method in sorted(methods or ())]
    return found


def check_shape(response: httpx.Response, path: str) -> None:
    body = response.json()
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}
        assert body["request_id"] == response.headers["request-id"]
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_every_route_asks_for_a_key(app: FastAPI) -> None:
    routes = [(method, path) for method, path in routes_of(app) if path not in OPEN]
    paths = {path for _, path in routes}
    assert {"/v1/chat/completions", "/v1/messages", "/tokenize", "/v1/models/x"} <= paths
    async with make_client(app) as client:
        for method, path in routes:
            for headers in ({}, {"authorization": "Bearer sk-three"}, {"x-api-key": "sk-on"}):
                response = await client.request(method, path, headers=headers)
                where = f"{method} {path} {headers}"
                if path.startswith("/fleet/"):
                    assert response.status_code == 404, where
                else:
                    assert response.status_code == 401, where
                if method != "HEAD":
                    check_shape(response, path)


async def test_each_key_opens_every_route(app: FastAPI) -> None:
    async with make_client(app) as client:
        for method, path in routes_of(app):
            if path in OPEN or path.startswith(("/admin", "/fleet/")) or "lora" in path:
                continue
            for key in ("sk-one", "sk-two"):
                bearer = {"authorization": f"Bearer {key}"}
                for headers in (bearer, {"x-api-key": key}):
                    response = await client.request(method, path, headers=headers)
                    assert response.status_code != 401, f"{method} {path} {headers}"


async def test_every_answer_has_a_request_id(app: FastAPI) -> None:
    async with make_client(app) as client:
        for method, path in routes_of(app):
            response = await client.request(method, path, headers={"x-request-id": "mine-1"})
            assert response.headers["x-request-id"] == "mine-1", f"{method} {path}"
            if path.startswith("/v1/messages"):
                assert response.headers["request-id"] == "mine-1"
            drawn = await client.request(method, path, headers={"x-request-id": "no good"})
            assert re.fullmatch("[0-9a-f]{32}", drawn.headers["x-request-id"])


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/messages/nothing", "/tokenize/x"])
async def test_paths_where_nothing_is(app: FastAPI, path: str) -> None:
    async with make_client(app) as client:
        key: dict[str, Any] = {"authorization": "Bearer sk-one"}
        response = await client.post(path, headers=key)
        assert response.status_code == 404
        check_shape(response, path)
