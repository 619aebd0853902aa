"""Replicas over real HTTP that hold adapter archives in memory, and fail where a test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
from aiohttp import web

from branchline.gateway.fleet.records import AdapterPlace, ReplicaReport
from branchline.gateway.fleet.versions import (
    BlobAnswer,
    BlobRemoval,
    PutVersion,
    VersionRemoval,
    VersionReport,
    VersionReports,
    version_id_of,
    wire_name,
)
from branchline.gateway.types import FleetSnapshot, ReplicaView

SECRET = "fleet-secret"


class FakeReplica:
    """``fails`` are stages: blob_begin, blob_middle, blob_end, blob_hang, put, put_cut, delete.

    An archive is any bytes; ``bad…`` is refused. ``sources`` are archives by source.
    """

    def __init__(self, name: str, sources: dict[str, bytes] | None = None) -> None:
        self.name = name
        self.url = ""
        self.is_up = True
        self.state = "ready"
        self.epoch = "e1"
        self.speed = 0.0
        self.fails: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.versions: dict[str, VersionReport] = {}
        self.young: set[str] = set()
        self.own: dict[str, AdapterPlace] = {}
        self.models = ["base"]
        self.sources = sources if sources is not None else {}
        self.calls: list[tuple[str, object]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.put_go = asyncio.Event()
        self.put_go.set()
        self.num_received = 0

    def view(self) -> ReplicaView:
        places = dict(self.own)
        for version_id, report in self.versions.items():
            name = wire_name(version_id)
            places[name] = AdapterPlace(name=name, digest=report.digest, tier="disk")
        report = ReplicaReport(
            replica_id=self.name,
            url=self.url,
            epoch=self.epoch,
            beat=1,
            state=self.state,  # type: ignore[arg-type]
            fingerprint="f",
            models=self.models,
            max_model_len=4096,
            prefill_tokens_per_second=self.speed,
        )
        return ReplicaView(report=report, places=places, out_reason=None if self.is_up else "lease")

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[self._guard])
        app.router.add_post("/fleet/blobs", self._post_blob)
        app.router.add_delete("/fleet/blobs/{sha}", self._drop_blob)
        app.router.add_post("/fleet/versions", self._put)
        app.router.add_get("/fleet/versions", self._list)
        app.router.add_get("/fleet/versions/{id}", self._get)
        app.router.add_delete("/fleet/versions/{id}", self._delete)
        app.router.add_post("/fleet/versions/{id}/{verb}", self._turn)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: object) -> web.StreamResponse:
        if request.headers.get("x-branchline-fleet-secret") != SECRET:
            return _error(401, "no")
        return await handler(request)  # type: ignore[operator,no-any-return]

    async def _post_blob(self, request: web.Request) -> web.StreamResponse:
        if "blob_begin" in self.fails:
            _cut(request)
        digest, data = hashlib.sha256(), bytearray()
        async for chunk in request.content.iter_any():
            await self.go.wait()
            self.num_received += len(chunk)
            digest.update(chunk)
            if len(data) < 4 << 20:  # as much as any test looks at
                data += chunk
            if "blob_middle" in self.fails and self.num_received > 100_000:
                _cut(request)
            if "blob_hang" in self.fails:
                await asyncio.Event().wait()
            if "blob_refused" in self.fails:
                return _error(413, "too large", code="body_too_large")
        if "blob_end" in self.fails:
            return _error(507, "full")
        self.blobs[digest.hexdigest()] = bytes(data)
        fields = {"pin": "host"} if "pin" in request.content_type else {}
        return _answer(BlobAnswer(sha256=digest.hexdigest(), size=len(data), fields=fields))

    async def _drop_blob(self, request: web.Request) -> web.StreamResponse:
        self.blobs.pop(request.match_info["sha"], None)
        return _answer(BlobRemoval(is_there=False))

    async def _put(self, request: web.Request) -> web.StreamResponse:
        put = msgspec.json.decode(await request.read(), type=PutVersion)
        self.calls.append(("put", put))
        await self.go.wait()
        await self.put_go.wait()
        if "put_cut" in self.fails:
            _cut(request)
        if "put" in self.fails:
            return _error(500, "broken")
        if put.version_id in self.versions:
            return _answer(self.versions[put.version_id])
        data = await self._obtain(put)
        if data is None:
            return _error(404, "nobody has it", code="blob_not_found")
        sha = hashlib.sha256(data).hexdigest()
        if data.startswith(b"bad") or "refuse" in self.fails:
            self.blobs.pop(sha, None)
            return _error(400, "is bad", param="adapter_model", code="adapter_refused")
        self.blobs[sha] = data
        report = report_of(data, put)
        if put.version_id not in (None, report.version_id):
            return _error(409, "changed", code="source_changed")
        self.versions[report.version_id] = report
        return _answer(report)

    async def _obtain(self, put: PutVersion) -> bytes | None:
        if put.blob in self.blobs:
            return self.blobs[put.blob]
        for peer in put.peers:
            other = _REPLICAS.get(peer)
            if other is None or "down" in other.fails:
                continue
            for report in other.versions.values():
                if report.version_id == put.version_id or report.blob == put.blob:
                    return other.blobs[report.blob or ""]
            if put.blob in other.blobs:
                return other.blobs[put.blob]
        return self.sources.get(put.source or "")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return _answer(VersionReports(versions=list(self.versions.values())))

    async def _get(self, request: web.Request) -> web.StreamResponse:
        report = self.versions.get(request.match_info["id"])
        return _error(404, "not here") if report is None else _answer(report)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        version_id = request.match_info["id"]
        self.calls.append(("delete", version_id))
        if "delete" in self.fails:
            return _error(500, "broken")
        if version_id in self.young and float(request.query["min_age"]) > 0:
            return _error(409, "young", code="version_put_recently")
        report = self.versions.pop(version_id, None)
        if report is None:
            return _error(404, "not here")
        self.blobs.pop(report.blob or "", None)
        return _answer(VersionRemoval(done=True, freed_device_bytes=100, freed_host_bytes=50))

    async def _turn(self, request: web.Request) -> web.StreamResponse:
        version_id, verb = request.match_info["id"], request.match_info["verb"]
        self.calls.append((verb, version_id))
        if verb in self.fails:
            return _error(409, "no room", code="adapter_busy")
        report = self.versions.get(version_id)
        if report is None:
            return _error(404, "not here")
        tier = request.query["tier"]
        changes = {
            "pin": {"pin": tier, "tier": tier},
            "unpin": {"pin": None},
            "load": {"tier": tier},
            "evict": {"tier": "disk"},
        }[verb]
        self.versions[version_id] = msgspec.structs.replace(report, **changes)
        return _answer(self.versions[version_id])


def report_of(data: bytes, put: PutVersion | None = None) -> VersionReport:
    """What a replica makes of an archive: what stands before a ``#`` counts."""
    digest = hashlib.sha256(data.partition(b"#")[0]).hexdigest()
    return VersionReport(
        version_id=version_id_of(digest, None),
        digest=digest,
        blob=hashlib.sha256(data).hexdigest(),
        rank=8,
        modules=["q_proj"],
        device_bytes=100,
        host_bytes=50,
        file_bytes=50,
        uses_base_prefix=data.startswith(b"alora"),
        tier="disk",
        pin=None if put is None else put.pin,
        source_kind="directory" if put is not None and put.source else None,
        source=None if put is None else put.source,
    )


_REPLICAS: dict[str, FakeReplica] = {}


@dataclass
class FakeFleet:
    """Some replicas, a session to call them with, and what a view would show."""

    session: aiohttp.ClientSession
    replicas: list[FakeReplica] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    sources: dict[str, bytes] = field(default_factory=dict)

    def snapshot(self) -> FleetSnapshot:
        return FleetSnapshot(tuple(replica.view() for replica in self.replicas))

    def __getitem__(self, name: str) -> FakeReplica:
        return next(replica for replica in self.replicas if replica.name == name)

    def holding(self, data: bytes) -> set[str]:
        """Names of the replicas that hold what an archive is."""
        version_id = report_of(data).version_id
        return {replica.name for replica in self.replicas if version_id in replica.versions}

    async def join(self, name: str) -> FakeReplica:
        """Another replica comes."""
        replica = FakeReplica(name, self.sources)
        runner = web.AppRunner(replica.app(), shutdown_timeout=0.1)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        replica.url = f"http://127.0.0.1:{port}"
        _REPLICAS[replica.url] = replica
        self.stack.callback(_REPLICAS.pop, replica.url)
        self.replicas.append(replica)
        return replica


@asynccontextmanager
async def fake_fleet(*names: str) -> AsyncIterator[FakeFleet]:
    async with aiohttp.ClientSession() as session, AsyncExitStack() as stack:
        fleet = FakeFleet(session, stack=stack)
        for name in names:
            await fleet.join(name)
        yield fleet


def _answer(body: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _error(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> web.Response:
    body = {"error": {"message": message, "type": "x", "param": param, "code": code}}
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


def _cut(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError
