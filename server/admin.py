"""The admin API: the prefix cache, its pins, and the tenants."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from .admin_answers import answered, json_answer
from .admin_reports import CacheView, tenants_report
from .body import parse_json, read_body
from .errors import ApiError
from .pins import PinRequest, pin
from .schema import body_schema
from .services import Services
from .stream import CLIENT_LEFT_STATUS, ClientLeft, while_connected

MaxPrefixes = Annotated[int, Query(ge=0, le=1000)]


def add_admin(app: FastAPI, services: Services) -> None:
    """Add the routes; the door asks for the admin key."""
    _add_cache(app, services)
    _add_pins(app, services)

    @app.get("/admin/tenants")
    async def get_tenants() -> Response:
        """Every tenant: its weight, what it has in flight, and its tokens so far."""
        return json_answer(tenants_report(services.config.access, services.metrics.tenants))


def _add_cache(app: FastAPI, services: Services) -> None:
    catalog, supervisor = services.catalog, services.supervisor

    @app.get("/admin/cache")
    async def get_cache(max_prefixes: MaxPrefixes = 20, preview: bool = False) -> Response:
        """The prefix cache: size, hit rates, namespaces, the biggest prefixes, pins."""
        report = await answered(supervisor.report_cache(max_prefixes))
        view = CacheView(catalog, services.tokenizer if preview else None)
        return json_answer(view.report(report))

    @app.post("/admin/cache/reset")
    async def reset_cache() -> Response:
        """Forget every cached prefix; what runs now keeps its blocks."""
        return json_answer({"blocks_removed": await answered(supervisor.reset_cache())})


def _add_pins(app: FastAPI, services: Services) -> None:
    supervisor, view = services.supervisor, CacheView(services.catalog)

    @app.get("/admin/cache/pins")
    async def list_pins() -> Response:
        """Every pin that has not expired."""
        report = await answered(supervisor.report_cache(0))
        return json_answer({"pins": [view.pin(entry) for entry in report.pins]})

    @app.post("/admin/cache/pins", status_code=201, openapi_extra=body_schema(PinRequest))
    async def create_pin(request: Request) -> Response:
        """Keep a prefix on the device for ``ttl_seconds``."""
        try:
            raw = await read_body(request, services.config.limits)
            body = parse_json(PinRequest, raw)
            report = await while_connected(request, answered(pin(services, body)))
        except ClientLeft:
            return Response(status_code=CLIENT_LEFT_STATUS)
        return json_answer(view.pin(report), status=201)

    @app.delete("/admin/cache/pins/{pin_id}")
    async def delete_pin(pin_id: str) -> Response:
        """End a pin before its time."""
        if not await answered(supervisor.remove_pin(pin_id)):
            raise ApiError(
                f"There is no pin {pin_id[:100]!r}, or it has expired.",
                status=404,
                param="pin_id",
                code="pin_not_found",
            )
        return json_answer({"pin_id": pin_id, "removed": True})
