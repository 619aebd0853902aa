"""``GET /admin/fleet``, ``POST /debug/route``: how the fleet stands, why a request goes where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import prepare
from .body import BodyBudget, ClientLeft, HeldBody, ModelRequest
from .endpoints import ENDPOINTS
from .errors import GatewayError
from .fleet.identity import TENANT_NAME, TENANT_NAME_RULE
from .jobs import JobMaker, Received
from .kept_history import KeptHistory, read_request
from .prefix_keys import request_text
from .proxy.job import Job
from .proxy.parts import ProxyParts
from .types import Caller, ReplicaView

DEFAULT_ENDPOINT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class FleetApi:
    """For admins; who they are is checked before."""

    proxy: ProxyParts
    jobs: JobMaker
    kept: KeptHistory | None = None

    def routes(self) -> list[Route]:
        """Both."""
        return [
            Route("/admin/fleet", self._fleet, methods=["GET"]),
            Route("/debug/route", self._route, methods=["POST"]),
        ]

    async def _fleet(self, request: Request) -> Response:
        view = self.proxy.view
        return _json(
            {
                "redis": view.redis_state,
                "replicas": [_replica(replica) for replica in view.snapshot().replicas],
                "gateways": sorted(view.gateways()),
            }
        )

    async def _route(self, request: Request) -> Response:
        """Where a body would go, for the tenant in ``?tenant=``, and why.

        It is that of a chat or text completion, or of what ``?endpoint=`` names.
        """
        length = request.headers.get("content-length", "")
        held = HeldBody(BodyBudget(), tenant="")
        try:
            body = await held.read(request.receive, length, self.proxy.limits)
        except ClientLeft:
            return Response(status_code=400)
        tenant = request.query_params.get("tenant", "default")
        if not TENANT_NAME.fullmatch(tenant):
            raise GatewayError(400, f"tenant: must be {TENANT_NAME_RULE}", param="tenant")
        group = request.query_params.get("cache_group")
        path = request.query_params.get("endpoint", DEFAULT_ENDPOINT)
        if path not in ENDPOINTS:
            raise GatewayError(400, f"endpoint: must be one of {', '.join(ENDPOINTS)}")
        asked_for = (await read_request(path, body, tenant, self.kept)).request
        caller = Caller(tenant=tenant, cache_group=group)
        job = self._job(caller, request.headers, asked_for, Received("", path, {}, body))
        snapshot = self.proxy.view.snapshot()
        asked = self.proxy.route_request(job, frozenset())
        decision = self.proxy.router.choose(asked, snapshot, explain=True)
        return _json(
            {
                "target": asdict(job.target),
                "num_prompt_tokens": job.num_prompt_tokens,
                "num_matched_tokens": dict(asked.num_matched_tokens),
                "decision": None if decision is None else asdict(decision),
            }
        )

    def _job(
        self,
        caller: Caller,
        headers: Mapping[str, str],
        request: ModelRequest,
        received: Received,
    ) -> Job:
        text = request_text(request.messages, request.prompt)
        view = self.proxy.view
        key = prepare.split_key(caller, headers, request, text)
        target = self.proxy.adapters.resolve(caller, request.model, key, view.snapshot())
        return self.jobs.make(caller, target, request, text, received)


def _replica(replica: ReplicaView) -> dict[str, Any]:
    report = replica.report
    return {
        "id": report.replica_id,
        "url": report.url,
        "epoch": report.epoch,
        "state": report.state,
        "is_up": replica.is_up,
        "out_reason": replica.out_reason,
        "warmth": round(replica.warmth, 3),
        "models": report.models,
        "num_running": report.num_running,
        "num_waiting": report.num_waiting,
        "num_queued_prefill_tokens": report.num_queued_prefill_tokens,
        "prefill_tokens_per_second": report.prefill_tokens_per_second,
        "num_on_their_way": replica.load.num_requests,
        "num_adapters": len(replica.places),
        "progress": report.progress,
    }


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
