"""``/openapi.json``: the request bodies, which the endpoints parse for themselves."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/{model}"


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra`` of an endpoint that takes ``model``."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def install_openapi(app: FastAPI, *models: type[BaseModel]) -> None:
    """Add the bodies' schemas and the error shape to the application's description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, *models)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe(app: FastAPI, *models: type[BaseModel]) -> dict[str, Any]:
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REF
    )
    schemas: dict[str, Any] = definitions["$defs"] | {"Error": _error_schema()}
    described.setdefault("components", {})["schemas"] = schemas
    error = {"content": {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}}
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = {"description": "Refused, and why"} | error
            operation["responses"]["503"] = {"description": "Not able to answer now"} | error
    return described


def _error_schema() -> dict[str, Any]:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    detail = {
        "type": "object",
        "required": ["message", "type", "param", "code"],
        "properties": fields | {"param": nullable, "code": nullable},
    }
    return {"type": "object", "required": ["error"], "properties": {"error": detail}}
