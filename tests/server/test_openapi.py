"""``/openapi.json`` says all there is, and it holds: a slice of schemathesis in memory."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import schemathesis
from api_fuzz import Seen, fuzz, operations
from fake_engine import FakeEngine, say
from fastapi import FastAPI
from fastapi.routing import APIRoute

from branchline.server.app import create_app
from branchline.server.openai import Body, ChatRequest, CompletionRequest
from branchline.server.text.tokenizer import Tokenizer

from .conftest import make_services

NUM_CASES = 8
BODIES = (ChatRequest, CompletionRequest)


@pytest.fixture(scope="module")
def app(tokenizer: Tokenizer) -> FastAPI:
    return create_app(make_services(tokenizer, FakeEngine(say("hello"))))


@pytest.fixture(scope="module")
def described(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def test_every_route_says_what_comes_in_and_out(app: FastAPI, described: dict[str, Any]) -> None:
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) >= 30
    for route in routes:
        path = route.path.replace(":path", "")
        for method in route.methods:
            operation = described["paths"][path][method.lower()]
            answers = operation["responses"]
            assert operation.get("description"), path
            assert any(status.startswith("2") for status in answers), path
            assert {"4XX", "503"} <= set(answers), path
            for status, answer in answers.items():
                for kind, content in answer["content"].items():
                    assert content.get("schema"), f"{method} {path} {status} {kind}"


def test_what_takes_a_body_describes_it(described: dict[str, Any]) -> None:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1/") and method == "post" and "{" not in path:
                content = operation["requestBody"]["content"]["application/json"]
                name = content["schema"]["$ref"].rpartition("/")[2]
                assert described["components"]["schemas"][name]["properties"], path


def test_references_lead_somewhere(described: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str):
                assert target.rpartition("/")[2] in described["components"]["schemas"], target
            for value in node.values():
                walk(value)
        if isinstance(node, list):
            for value in node:
                walk(value)

    walk(described["paths"])
    walk(described["components"])
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("body", BODIES)
def test_the_three_lists_are_in_the_description(
    described: dict[str, Any], body: type[Body]
) -> None:
    schema = described["components"]["schemas"][body.__name__]
    listed = {*body.model_fields, *body.accepted, *body.neutral}
    assert set(schema["properties"]) == listed
    assert schema["additionalProperties"] is False


def test_no_made_up_request_gives_a_5xx(app: FastAPI) -> None:
    schema: Any = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = Seen()
    for operation in operations(schema.include(path_regex="^/v1/[a-z/]+$|^/(de)?tokenize")):
        fuzz(operation, lambda case: case.call(), seen, NUM_CASES)
    assert seen.num_cases > 100, seen.report()
    assert seen.statuses["POST /v1/chat/completions"][200] > 1, seen.report()
