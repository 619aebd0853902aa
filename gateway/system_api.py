"""``/health``, ``/ready``, ``/metrics``, ``/version``: for probes and scrapers, without a key.

Who scrapes without an admin key gets no series of single tenants and models: this is a door that
tenants stand at, and they don't trust each other.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .admin_check import AdminCheck
from .errors import GatewayError
from .gate import Gate
from .metrics import CONTENT_TYPE, GatewayMetrics
from .workers.merged_metrics import merge
from .workers.siblings import Siblings

if TYPE_CHECKING:
    from .view.fleet_view import FleetView


@dataclass(frozen=True, slots=True)
class SystemApi:
    """What is asked by machines. ``version`` is the package's.

    ``siblings`` are the other workers, where this gateway has some.
    """

    gate: Gate
    view: FleetView
    metrics: GatewayMetrics
    version: str
    admin: AdminCheck
    siblings: Siblings | None = None

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/health", self._health, methods=["GET"]),
            Route("/ready", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/version", self._version, methods=["GET"]),
        ]

    async def _health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        """503 only while draining or without any replica; Redis away is 200, ``degraded``."""
        num_up = sum(replica.is_up for replica in self.view.snapshot().replicas)
        redis = self.view.redis_state
        status = "ok" if redis != "away" else "degraded"
        if self.gate.is_closed:
            status = "draining"
        elif not num_up:
            status = "no_replicas"
        ready = status in ("ok", "degraded")
        body = {"status": status, "num_replicas_up": num_up, "redis": redis}
        return _json(body, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        text = await self._counted(self._may_see_names(request))
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def _counted(self, with_names: bool) -> bytes:
        """What this gateway has counted; with siblings, what each of them has."""
        own = self.metrics.render()
        if self.siblings is None:
            return own if with_names else _without_names(own)
        texts = await self.siblings.collect(own)
        if not with_names:
            texts = {number: _without_names(text) for number, text in texts.items()}
        # Beside the loop: all series of many workers would keep streams waiting.
        return await asyncio.to_thread(merge, texts, self.siblings.num_workers)

    def _may_see_names(self, request: Request) -> bool:
        try:
            self.admin.check(request.headers)
        except GatewayError:
            return False
        return True

    async def _version(self, request: Request) -> Response:
        return _json({"version": self.version})


def _without_names(text: bytes) -> bytes:
    return b"".join(
        line
        for line in text.splitlines(keepends=True)
        if line.startswith(b"#") or not (b'tenant="' in line or b'model="' in line)
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
