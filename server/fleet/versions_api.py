"""Blobs and versions under ``/fleet/``, for gateways and peers; the door asks for the secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request
from starlette.responses import Response, StreamingResponse

from ...gateway.fleet.versions import (
    MAX_PEERS,
    SHA256,
    VERSION_ID,
    BlobAnswer,
    BlobRemoval,
    PinTier,
    PutVersion,
    VersionReports,
)
from ..adapters.files import CHUNK_BYTES
from ..adapters.manager import AdapterManager
from ..adapters.sources import SourcePolicy
from ..admin_answers import answered, json_answer
from ..body import read_body
from ..catalog import Catalog
from ..config import Limits
from ..errors import ApiError, bad_field
from .blob_intake import BlobIntake
from .blobs import Blob, BlobStore
from .versions import FleetVersions, blobs_of

VERBS = ("load", "evict", "pin", "unpin")
VERSION = "/fleet/versions/{version_id}"
ARCHIVE = "application/octet-stream"

Seconds = Annotated[float, Query(ge=0, le=600)]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FleetAdapters:
    """What the routes work with."""

    blobs: BlobStore
    intake: BlobIntake
    versions: FleetVersions
    limits: Limits


def build_fleet_adapters(
    manager: AdapterManager,
    catalog: Catalog,
    policy: SourcePolicy,
    limits: Limits,
    directory: Path,
    secret: str,
) -> FleetAdapters:
    """The fleet's part of a server's adapters; ``directory`` is ``StateDirectory.blobs``."""
    blobs = BlobStore(directory, lambda: blobs_of(manager, catalog), max_bytes=policy.max_bytes)

    def workroom() -> AbstractContextManager[Path]:
        return manager.staging()

    intake = BlobIntake(blobs, policy, workroom, secret)
    return FleetAdapters(blobs, intake, FleetVersions(manager, catalog, intake), limits)


def add_fleet_adapters(app: FastAPI, adapters: FleetAdapters) -> None:
    """Add the routes. They ask for nothing themselves: the door does."""
    _add_blobs(app, adapters)
    _add_versions(app, adapters)
    _add_changes(app, adapters)


def _add_blobs(app: FastAPI, adapters: FleetAdapters) -> None:
    @app.post("/fleet/blobs", include_in_schema=False)
    async def post_blob(request: Request) -> Response:
        blob, fields = await adapters.intake.receive(request)
        return json_answer(BlobAnswer(sha256=blob.sha256, size=blob.size, fields=fields))

    @app.api_route("/fleet/blobs/{sha256}", methods=["GET", "HEAD"], include_in_schema=False)
    async def get_blob(request: Request, sha256: str) -> Response:
        blob = adapters.blobs.get(sha256)
        if blob is None or not SHA256.fullmatch(sha256):
            raise ApiError("There is no such blob here.", status=404, code="blob_not_found")
        if request.method == "HEAD":
            return Response(None, 200, {"content-length": str(blob.size)}, ARCHIVE)
        return _file_answer(adapters.blobs, blob)

    @app.delete("/fleet/blobs/{sha256}", include_in_schema=False)
    async def drop_blob(sha256: str) -> Response:
        adapters.blobs.discard(sha256)
        return json_answer(BlobRemoval(is_there=adapters.blobs.get(sha256) is not None))

    @app.get(f"{VERSION}/archive", include_in_schema=False)
    async def get_archive(version_id: str) -> Response:
        return _file_answer(adapters.blobs, adapters.versions.archive(_checked(version_id)))


def _add_versions(app: FastAPI, adapters: FleetAdapters) -> None:
    versions = adapters.versions

    @app.get("/fleet/versions", include_in_schema=False)
    async def list_versions() -> Response:
        return json_answer(VersionReports(versions=await answered(versions.list())))

    @app.get(VERSION, include_in_schema=False)
    async def get_version(version_id: str) -> Response:
        return json_answer(await answered(versions.get(_checked(version_id))))


def _add_changes(app: FastAPI, adapters: FleetAdapters) -> None:
    versions = adapters.versions

    @app.post("/fleet/versions", include_in_schema=False)
    async def put_version(request: Request) -> Response:
        put = _parsed(PutVersion, await read_body(request, adapters.limits))
        return json_answer(await answered(versions.put(_checked_put(put))))

    @app.delete(VERSION, include_in_schema=False)
    async def delete_version(version_id: str, wait: Seconds = 0, min_age: Seconds = 0) -> Response:
        return json_answer(await answered(versions.delete(_checked(version_id), wait, min_age)))

    @app.post(f"{VERSION}/{{verb}}", include_in_schema=False)
    async def turn_version(version_id: str, verb: str, tier: PinTier = "device") -> Response:
        if verb not in VERBS:
            raise ApiError("There is nothing at this path.", status=404, code="not_found")
        return json_answer(await answered(versions.turn(_checked(version_id), verb, tier)))


def _file_answer(blobs: BlobStore, blob: Blob) -> Response:
    """The archive; opened now, so that it is sent whole even if it is removed meanwhile."""
    file = blobs.path(blob).open("rb")

    async def chunks() -> AsyncIterator[bytes]:
        with file:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk

    headers = {"content-length": str(blob.size)}
    return StreamingResponse(chunks(), 200, headers, ARCHIVE)


def _parsed(model: type[T], raw: bytes) -> T:
    try:
        return msgspec.json.decode(raw, type=model)
    except msgspec.DecodeError as error:
        raise ApiError(f"The body is no good: {error}.") from None


def _checked(version_id: str) -> str:
    if not VERSION_ID.fullmatch(version_id):
        raise bad_field("version_id", "must be 32 hexadecimal digits")
    return version_id


def _checked_put(put: PutVersion) -> PutVersion:
    if put.version_id is not None:
        _checked(put.version_id)
    if put.blob is not None and not SHA256.fullmatch(put.blob):
        raise bad_field("blob", "must be 64 hexadecimal digits")
    if len(put.peers) > MAX_PEERS or not all(
        p.startswith(("http://", "https://")) for p in put.peers
    ):
        raise bad_field("peers", f"must be at most {MAX_PEERS} URLs")
    return put
