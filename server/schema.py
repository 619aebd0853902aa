"""``/openapi.json``: the bodies that come in and go out, which the endpoints handle themselves."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from msgspec import Struct
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .openai import Body

_REF = "#/components/schemas/{model}"

_FILE = {"type": "string", "format": "binary"}
_FILES = {
    "type": "object",
    "properties": {"archive": _FILE, "files": {"type": "array", "items": _FILE}},
}

Described = dict[str, Any]
Answers = dict[int | str, Described]


def body_schema(
    model: type[BaseModel],
    *,
    required: bool = True,
    uploads: Sequence[str] = (),
    form: type[BaseModel] | None = None,
) -> Described:
    """``openapi_extra`` of an endpoint that takes ``model``.

    Or a file of one of the types ``uploads``, or files in a form that has ``form``'s fields too.
    """
    content: Described = {"application/json": {"schema": _reference(model)}}
    content |= {media_type: {"schema": _FILE} for media_type in uploads}
    if form is not None:
        content["multipart/form-data"] = {"schema": {"allOf": [_FILES, _reference(form)]}}
    return {"requestBody": {"required": required, "content": content}}


def answers(answer: type[Struct], *statuses: int) -> Answers:
    """``responses`` of an endpoint that answers this, with 200 or what ``statuses`` says."""
    content = {"application/json": {"schema": _reference(answer)}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses or (200,)
    }


def stream_or_whole(answer: type[Struct]) -> Answers:
    """``responses`` of an endpoint that answers this, or a stream of events where asked to."""
    described = answers(answer)
    described[200]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return described


def plain_answers(*statuses: int, media_type: str = "application/json") -> Answers:
    """``responses`` of an endpoint whose answers have no type of their own."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {media_type: {}}}
        for status in statuses
    }


def _reference(model: type[BaseModel] | type[Struct]) -> Described:
    return {"$ref": _REF.format(model=model.__name__)}


def install_openapi(
    app: FastAPI, bodies: Sequence[type[BaseModel]], structs: Sequence[type[Struct]] = ()
) -> None:
    """Add the schemas of what comes in and goes out, and the error shape, to the description.

    Every operation may answer with an error in OpenAI's shape, unless it says otherwise for
    ``4XX`` or ``503`` itself.
    """

    def openapi() -> Described:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, bodies, structs)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(
    app: FastAPI, bodies: Sequence[type[BaseModel]], structs: Sequence[type[Struct]]
) -> Described:
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, definitions = models_json_schema(
        [(model, "validation") for model in bodies], ref_template=_REF
    )
    _, outgoing = msgspec.json.schema_components(
        structs, ref_template=_REF.replace("model", "name")
    )
    for body in bodies:
        if issubclass(body, Body):
            _close(definitions["$defs"][body.__name__], body)
    schemas: Described = definitions["$defs"] | outgoing | {"Error": _error_schema()}
    described.setdefault("components", {})["schemas"] = schemas
    error = {"content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    for path in described["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            for answer in responses.values():
                _name_kinds(answer.get("content", {}))
            responses.setdefault("4XX", {"description": "Refused, and why"} | error)
            responses.setdefault("503", {"description": "Not able to answer now"} | error)
    return described


def _name_kinds(content: Described) -> None:
    """Say at least whether it is an object or text."""
    for media_type, body in content.items():
        if not body.get("schema"):
            body["schema"] = {"type": "object" if "json" in media_type else "string"}


def _close(described: Described, body: type[Body]) -> None:
    """Say which fields are read past, which are taken at some values only, and that is all."""
    extras = {name: {"description": "Read past."} for name in sorted(body.accepted)}
    neutral = {name: {"enum": [None, *values]} for name, values in body.neutral.items()}
    described["properties"] = extras | neutral | described["properties"]
    described["additionalProperties"] = False


def _error_schema() -> Described:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    detail = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": fields | {"param": nullable, "code": nullable},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": detail}}
