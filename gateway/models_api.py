"""``GET /v1/models``: every name that the caller may put in ``model``, and no other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from .errors import GatewayError

if TYPE_CHECKING:
    from .adapters.directory import AdapterDirectory, ModelEntry
    from .tenants.directory import TenantDirectory
    from .view.fleet_view import FleetView


class ModelsDoor:
    """Lists what is there now, for whom it is there."""

    def __init__(
        self, tenants: TenantDirectory, adapters: AdapterDirectory, view: FleetView
    ) -> None:
        self._tenants, self._adapters, self._view = tenants, adapters, view
        self._started = int(time.time())

    async def answer(self, headers: Mapping[str, str], name: str) -> Response:
        """All, or the one of that name; raises GatewayError 401, 404."""
        caller = await self._tenants.identify(headers)
        entries = self._adapters.models(caller, self._view.snapshot())
        if not name:
            cards = [self._card(entry) for entry in entries]
            return _json({"object": "list", "data": cards})
        found = next((entry for entry in entries if entry.id == name), None)
        if found is None:
            raise GatewayError(
                404,
                f"The model {name[:200]!r} does not exist.",
                param="model",
                code="model_not_found",
            )
        return _json(self._card(found))

    def _card(self, entry: ModelEntry) -> dict[str, Any]:
        return {
            "id": entry.id,
            "object": "model",
            "created": self._started if entry.created is None else entry.created,
            "owned_by": "branchline",
            "root": entry.id,
            "parent": entry.parent,
            "max_model_len": entry.max_model_len,
        }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
