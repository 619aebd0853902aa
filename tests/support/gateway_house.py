"""A gateway's application over mock replicas, in one event loop; the fleet is a stand-in."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import uvicorn
from mock_replica import MockReplica, mock_replicas

from branchline.gateway.access_log import AccessLog
from branchline.gateway.adapters.directory import ModelEntry
from branchline.gateway.config import GatewayConfig, ProxyLimits
from branchline.gateway.errors import GatewayError
from branchline.gateway.fleet.http_server import GuardedProtocol
from branchline.gateway.fleet.records import AdapterPlace
from branchline.gateway.fleet.tracing import Tracer
from branchline.gateway.fleet_parts import FleetParts
from branchline.gateway.routing.router import Router, policy_named
from branchline.gateway.services import GatewayServices, assemble
from branchline.gateway.store.store import Store
from branchline.gateway.types import (
    Caller,
    Estimate,
    FleetSnapshot,
    Outcome,
    ReplicaView,
    Target,
    Usage,
)
from branchline.gateway.view.key_index import KeyIndex

SECRET = "secret-of-the-house"
LIMITS = ProxyLimits(
    first_byte_timeout=0.3, silence_timeout=0.3, resume_timeout=2.0, client_timeout=5.0
)


class StubFlight:
    """As the view's, with what became of it."""

    def __init__(self, view: StubView, replica_id: str) -> None:
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.replica_id = replica_id
        self._view = view
        self._is_over = False

    def first_byte(self) -> None: ...

    def progress(self) -> None: ...

    def end(self, outcome: Outcome) -> None:
        if not self._is_over:
            self._is_over = True
            self._view.flights.remove(self)
            self._view.outcomes[self.replica_id, outcome] += 1


class StubView:
    """A fleet of mock replicas that never goes out by itself."""

    def __init__(self, replicas: list[MockReplica]) -> None:
        self.replicas = replicas
        self.out: dict[str, str] = {}
        self.flights: list[StubFlight] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.redis_state = "up"
        self.num_waiting = 0

    def snapshot(self) -> FleetSnapshot:
        views = [self._view(replica) for replica in self.replicas]
        return FleetSnapshot(tuple(views))

    def _view(self, replica: MockReplica) -> ReplicaView:
        places: Mapping[str, AdapterPlace] = {place.name: place for place in replica.places}
        return ReplicaView(
            report=replica.report(), places=places, out_reason=self.out.get(replica.replica_id)
        )

    def begin(self, replica_id: str, num_prefill_tokens: int) -> StubFlight:
        flight = StubFlight(self, replica_id)
        self.flights.append(flight)
        return flight

    def subscribe(self, listener: object) -> None: ...

    def gateways(self) -> Mapping[str, object]:
        return {"this": None}


class StubAdapters:
    """The base model, and adapters of every name in ``adapters``."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.ensured: list[tuple[str, str, bool]] = []
        self.demand: list[int] = []

    def resolve(
        self, caller: Caller, model: str | None, split_key: str, snapshot: FleetSnapshot
    ) -> Target:
        allowed = caller.models if caller.models is not None else {model: model}
        name = allowed.get(model or "")
        if name == "base":
            return Target(name="base", wire_name="base")
        if name in self.adapters:
            digest = self.adapters[name]
            wire_name = f"fleet/{digest}"
            return Target(
                name=name, wire_name=wire_name, digest=digest, in_registry=True, label=name
            )
        raise GatewayError(404, f"no {model}", param="model", code="model_not_found")

    def default_model(self, caller: Caller, snapshot: FleetSnapshot) -> str | None:
        named = {"base": "base"} if caller.models is None else caller.models
        return next((name for name, meant in named.items() if meant == "base"), None)

    def models(self, caller: Caller, snapshot: FleetSnapshot) -> list[ModelEntry]:
        names = ["base", *self.adapters] if caller.models is None else list(caller.models)
        return [ModelEntry(name) for name in names]

    async def ensure(self, target: Target, replica: ReplicaView, *, anew: bool = False) -> None:
        self.ensured.append((target.wire_name, replica.replica_id, anew))

    def note_demand(self, target: Target, num_tokens: int = 0) -> None:
        self.demand.append(num_tokens)


class StubTenants:
    """Keys are names of callers; without ``callers`` all are anonymous."""

    def __init__(self) -> None:
        self.callers: dict[str, Caller] = {}
        self.news: dict[str, Caller] = {}
        self.num_looks = 0

    def caller(self, headers: Mapping[str, str]) -> Caller:
        if not self.callers:
            return Caller(tenant="default")
        key = headers.get("authorization", "").removeprefix("Bearer ")
        if key not in self.callers:
            raise GatewayError(401, "A valid API key is needed.", code="invalid_api_key")
        return self.callers[key]

    async def identify(self, headers: Mapping[str, str]) -> Caller:
        return self.caller(headers)

    async def look_again(self) -> bool:
        self.num_looks += 1
        self.callers |= self.news
        return True

    def record(self, tenant: str) -> None:
        return None

    @property
    def priorities(self) -> tuple[int, ...]:
        return tuple(sorted({caller.priority for caller in self.callers.values()}))


class StubAdmission:
    def __init__(self, limiter: StubLimiter) -> None:
        self.headers = {"x-ratelimit-limit-requests": "60"}
        self._limiter = limiter

    def settle(self, usage: Usage | None) -> None:
        self._limiter.settled.append(usage)


class StubLimiter:
    """Lets all in until ``refuses``; keeps what was reserved and settled."""

    def __init__(self) -> None:
        self.refuses = False
        self.labels: list[str] = []
        self.reserved: list[Estimate] = []
        self.settled: list[Usage | None] = []

    async def admit(
        self, caller: Caller, record: object, estimate: Estimate, label: str
    ) -> StubAdmission:
        if self.refuses:
            headers = {"retry-after": "7", "x-ratelimit-remaining-requests": "0"}
            raise GatewayError(429, "too many", code="rate_limit_exceeded", headers=headers)
        self.reserved.append(estimate)
        self.labels.append(label)
        return StubAdmission(self)


@dataclass
class House:
    """A gateway at ``url`` and all that is behind it."""

    url: str
    replicas: list[MockReplica]
    view: StubView
    adapters: StubAdapters
    tenants: StubTenants
    limiter: StubLimiter
    services: GatewayServices
    session: aiohttp.ClientSession
    log: list[str] = field(default_factory=list)

    def post(self, path: str = "/v1/chat/completions", **options: Any) -> Any:
        """A request's context manager, as aiohttp has it."""
        return self.session.post(f"{self.url}{path}", **options)

    def get(self, path: str, **options: Any) -> Any:
        return self.session.get(f"{self.url}{path}", **options)

    async def answer(self, body: dict[str, Any], **options: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a chat."""
        async with self.post(json={**chat(), **body}, **options) as response:
            return response.status, await response.json()

    async def stream(self, body: dict[str, Any], **options: Any) -> str:
        """All bytes of a streamed chat."""
        request = {**chat(), "stream": True, **body}
        async with self.post(json=request, **options) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    def last_log(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.log[-1]))

    async def until(self, condition: Any, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A chat's body."""
    return {"model": "base", "messages": [{"role": "user", "content": text}], **fields}


def text_of(events: str) -> str:
    """The text that a stream's events make."""
    parts = []
    for line in events.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                parts.append(choice["delta"].get("content", ""))
    return "".join(parts)


def config(**options: Any) -> GatewayConfig:
    """A gateway's config for tests."""
    given = {"limits": LIMITS, "allow_anonymous": True, "port": 0, **options}
    return GatewayConfig(redis=None, replicas=("http://x",), fleet_secret=SECRET, **given)


@asynccontextmanager
async def gateway_house(
    number: int = 2, tracer: Tracer | None = None, kept: Any = None, **options: Any
) -> AsyncIterator[House]:
    """A gateway before so many mock replicas; ``kept`` is what Redis holds of responses."""
    async with mock_replicas(number, SECRET) as replicas:
        view, adapters = StubView(replicas), StubAdapters()
        tenants, limiter = StubTenants(), StubLimiter()
        parts: Any = {
            "view": view,
            "router": Router(policy_named("round-robin"), seed=1),
            "index": KeyIndex(),
            "adapters": adapters,
            "store": Store(None, "test"),
            "tenants": tenants,
            "limiter": limiter,
            "kept": kept,
        }
        log: list[str] = []
        services = assemble(
            config(**options), FleetParts(**parts), "0.test", AccessLog(True, log.append), tracer
        )
        watching = asyncio.create_task(services.proxy.watchdog.run())
        async with _served(services) as url, aiohttp.ClientSession() as session:
            yield House(url, replicas, view, adapters, tenants, limiter, services, session, log)
        watching.cancel()
        await services.proxy.upstream.close()


@asynccontextmanager
async def _served(services: GatewayServices) -> AsyncIterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        services.app,
        loop="none",
        http=GuardedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
