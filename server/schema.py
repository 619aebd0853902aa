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


def _reference(model: type[BaseModel] | type[Struct]) -> Described:
    return {"$ref": _REF.format(model=model.__name__)}


def install_openapi(
    app: FastAPI, bodies: Sequence[type[BaseModel]], structs: Sequence[type[Struct]] = ()
) -> None:
    """Add the schemas of what comes in and goes out, and the error shape, to the description."""

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
    schemas: Described = definitions["$defs"] | outgoing | {"Error": _error_schema()}
    described.setdefault("components", {})["schemas"] = schemas
    error = {"content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = {"description": "Refused, and why"} | error
            operation["responses"]["503"] = {"description": "Not able to answer now"} | error
    return described


def _error_schema() -> Described:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    detail = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": fields | {"param": nullable, "code": nullable},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": detail}}
