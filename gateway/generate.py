"""A POST under ``/v1``: from the client's bytes to a settled account."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import prepare
from .account import Account
from .body import BodyBudget, HeldBody, ModelRequest
from .endpoints import endpoint_of
from .errors import GatewayError
from .fleet import headers as fleet
from .fleet.identity import PROBE_TENANT
from .fleet.tracing import Tracer
from .jobs import JobMaker, Received
from .kept_history import KeptHistory, read_request
from .prefix_keys import request_text
from .proxy.attempts import Attempts, NoReplica
from .proxy.client_side import ClientSide, Receive, Send, watched
from .proxy.exchange import exchange
from .proxy.guard import Guard
from .proxy.header_rules import encode_headers
from .proxy.job import Job, Trail
from .proxy.parts import ProxyParts
from .proxy.stream import StreamRelay
from .proxy.turns import Turn
from .proxy.whole import relay_whole
from .types import Caller, Estimate, Target, Usage

if TYPE_CHECKING:
    from .limits.limiter import Admission, Limiter
    from .tenants.directory import TenantDirectory

PROBE = Caller(tenant=PROBE_TENANT)
"""Who sends the fleet's secret: a health check, on the base model, without limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateParts:
    """What this door works with, beside the proxy's own parts."""

    proxy: ProxyParts
    tenants: TenantDirectory
    limiter: Limiter
    jobs: JobMaker
    fleet_secret: str
    bodies: BodyBudget
    kept: KeptHistory | None = None
    tracer: Tracer | None = None


class Generation:
    """One request at this door."""

    def __init__(
        self, parts: GenerateParts, trail: Trail, headers: Mapping[str, str], client: ClientSide
    ) -> None:
        self._parts, self._proxy = parts, parts.proxy
        self._trail, self._headers, self._client = trail, headers, client
        self._endpoint = endpoint_of(trail.path)
        self._is_whole = False

    async def run(self, guard: Guard, receive: Receive) -> None:
        """Answer it; raises GatewayError where nothing is sent yet, ClientGone, ClientLeft."""
        caller = await self._caller()
        held = HeldBody(self._parts.bodies, caller.tenant)
        try:
            length = self._headers.get("content-length", "")
            body = await held.read(receive, length, self._proxy.limits)
            await self._serve(caller, body, guard, receive)
        finally:
            held.release()

    async def _serve(self, caller: Caller, body: bytes, guard: Guard, receive: Receive) -> None:
        self._trail.arrived = time.perf_counter()
        async with watched(receive, guard):
            turn = await self._proxy.turns.take()
            try:
                path, kept = self._trail.path, self._parts.kept
                reading = await read_request(path, body, caller.tenant, kept)
                request, self._is_whole = reading.request, reading.is_whole
                job = await self._job(caller, request, body)
                estimate = self._estimate(job, request)
                admission = await self._admit(job, estimate)
                account = Account(job, self._trail, estimate, request.num_answers)
                await self._proxied(job, guard, admission, account, turn)
            finally:
                turn.release()

    async def _caller(self) -> Caller:
        given = self._headers.get(fleet.FLEET_SECRET, "").strip().encode("latin-1")
        if given and hmac.compare_digest(given, self._parts.fleet_secret.encode()):
            caller = PROBE
        else:
            caller = await self._parts.tenants.identify(self._headers)
        self._trail.tenant = caller.tenant
        self._trail.tenant_is_known = True
        return caller

    async def _job(self, caller: Caller, request: ModelRequest, body: bytes) -> Job:
        """Everything that routing and replicas are told; raises GatewayError 400, 404."""
        trail = self._trail
        text = request_text(request.messages, request.prompt)
        key = prepare.split_key(caller, self._headers, request, text)
        model = request.model
        if model is None and self._endpoint.has_default_model:
            model = self._proxy.adapters.default_model(caller, self._proxy.view.snapshot())
        caller, target = await self._target(caller, model, key)
        if caller is PROBE and target.digest is not None:
            raise GatewayError(404, "This is for base models only.", code="model_not_found")
        trail.model, trail.label = target.name, target.label
        received = Received(trail.request_id, trail.path, self._headers, body)
        if self._endpoint.charges == "request":  # nothing is computed that could be cached
            text = b""
        return self._parts.jobs.make(caller, target, request, text, received)

    def _estimate(self, job: Job, request: ModelRequest) -> Estimate:
        longest = prepare.max_model_len(self._proxy.view.snapshot())
        return self._parts.jobs.estimates.estimate(
            job.target.wire_name, request, job.size, longest, self._endpoint.charges
        )

    async def _target(self, caller: Caller, model: str | None, key: str) -> tuple[Caller, Target]:
        """What the name stands for, and the caller, as of then; raises GatewayError 400, 404.

        Before a name is called unknown the store is asked: it may have come by another gateway.
        """
        adapters, snapshot = self._proxy.adapters, self._proxy.view.snapshot()
        try:
            return caller, adapters.resolve(caller, model, key, snapshot)
        except GatewayError as error:
            if error.status != 404:
                raise
            if not snapshot.replicas:
                raise NoReplica(None).answer() from None  # nobody knows any name yet
            if not await self._parts.tenants.look_again():
                raise
        if caller is not PROBE:
            caller = self._parts.tenants.caller(self._headers)
        return caller, adapters.resolve(caller, model, key, snapshot)

    async def _admit(self, job: Job, estimate: Estimate) -> Admission | None:
        """Reserve; raises GatewayError 429. None: without limits."""
        caller, parts = job.caller, self._parts
        if caller is PROBE:
            return None
        span = self._trail.span and self._trail.span.child("gateway.admit")
        try:
            prepare.check_overload(caller, self._priorities(), self._proxy.view.snapshot())
            record = parts.tenants.record(caller.tenant)
            admission = await parts.limiter.admit(caller, record, estimate, job.target.label)
        except GatewayError as error:
            self._proxy.metrics.limited(error.code)
            raise
        finally:
            if span is not None:
                span.end()
        self._client.headers += encode_headers(admission.headers)
        return admission

    def _priorities(self) -> tuple[int, ...]:
        return self._parts.tenants.priorities

    async def _proxied(
        self,
        job: Job,
        guard: Guard,
        admission: Admission | None,
        account: Account,
        turn: Turn,
    ) -> None:
        """Send it on, pass the answer back, and settle what it took."""
        try:
            self._proxy.budget.note_request()
            attempts = Attempts(self._proxy, job, self._trail, guard)
            attempts.turn = turn
            await self._answer(attempts, account)
        finally:
            self._trail.usage = usage = account.usage()
            if admission is not None:
                admission.settle(usage)
            if usage is not None:
                self._learn(job.target, job, usage, account.is_counted)

    async def _answer(self, attempts: Attempts, account: Account) -> None:
        client, proxy = self._client, self._proxy
        try:
            attempt = await attempts.open()
            account.status = attempt.status
            if attempt.status < 300 and attempt.is_event_stream:
                account.relay = StreamRelay(proxy, attempts, client, self._trail)
                await account.relay.run(attempt)
            else:
                limit = proxy.limits.max_buffered_bytes
                account.told = await relay_whole(attempts, attempt, client, limit)
        except NoReplica as none:
            account.status = none.refusal.status if none.refusal else 503
            if none.refusal is None:
                raise none.answer() from None
            await client.whole(none.refusal.status, none.refusal.headers, none.refusal.body)

    def _learn(self, target: Target, job: Job, usage: Usage, is_counted: bool) -> None:
        tokens = usage.num_input_tokens + usage.num_output_tokens
        self._proxy.adapters.note_demand(target, tokens)
        if is_counted and self._is_whole:
            self._parts.jobs.estimates.learn(target.wire_name, job.size, usage.num_input_tokens)


class GenerateDoor:
    """Answers requests, whatever happens: errors in OpenAI's shape, one log line each."""

    def __init__(self, parts: GenerateParts) -> None:
        self._parts = parts

    async def answer(
        self, trail: Trail, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        """Never raises but for a connection that has to be cut."""
        trail.explain = prepare.asks_for_route(headers)
        if self._parts.tracer is not None:
            trail.span = self._parts.tracer.start(
                "gateway.request", headers.get(fleet.TRACE_PARENT), {"endpoint": trail.path}
            )

        async def work(guard: Guard, client: ClientSide) -> None:
            await Generation(self._parts, trail, headers, client).run(guard, receive)

        try:
            await exchange(self._parts.proxy, trail, send, work)
        finally:
            _end_span(trail)


def _end_span(trail: Trail) -> None:
    if trail.span is not None:
        trail.span.set("tenant", trail.tenant or "")
        trail.span.set("model", trail.label or "")
        trail.span.set("status", trail.status)
        trail.span.end(trail.outcome if trail.status >= 500 else None)
