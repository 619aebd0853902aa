"""What gateways ask a replica, under ``/fleet/``; the door asks for the secret."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.responses import Response

from ...gateway.fleet.key_answer import CONTENT_TYPE
from ..errors import no_path
from .replica import FleetReplica
from .versions_api import add_fleet_adapters


class RequestAnswer(msgspec.Struct, frozen=True):
    """``known``: it is here, or ended within the last minute. ``sent``: its answer has begun."""

    known: bool
    sent: bool


def add_fleet(app: FastAPI, replica: FleetReplica) -> None:
    """Add the routes."""

    @app.get("/fleet/state", include_in_schema=False)
    async def get_state() -> Response:
        return _json(replica.report())

    @app.get("/fleet/adapters", include_in_schema=False)
    async def get_adapters() -> Response:
        return _json(replica.places.current)

    @app.get("/fleet/keys", include_in_schema=False)
    async def get_keys(epoch: str | None = None, after: int | None = None) -> Response:
        if replica.keys is None:
            raise no_path("GET", "/fleet/keys")
        return Response(replica.keys.answer(epoch, after), media_type=CONTENT_TYPE)

    @app.get("/fleet/requests/{request_id:path}", include_in_schema=False)
    async def get_request(request_id: str) -> Response:
        entry = replica.ledger.find(request_id)
        return _json(RequestAnswer(entry is not None, entry is not None and entry.is_sent))

    add_fleet_adapters(app, replica.adapters)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
