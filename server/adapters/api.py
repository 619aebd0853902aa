"""The admin API of adapters and aliases: routes over the manager; the door asks for the key."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ...engine.adapter_types import PinTier
from ..admin_answers import answered, json_answer
from ..aliases import AliasTarget
from ..body import parse_json, read_body
from ..errors import ApiError, bad_field
from ..paging import After, Limit, page_of
from ..schema import answers, body_schema
from ..services import Services
from .bodies import (
    AdapterEntry,
    AdapterList,
    AliasEntry,
    AliasList,
    AliasRemoval,
    PutAdapter,
    PutAlias,
    PutAnswer,
    RemovalAnswer,
    RollbackRequest,
    TierRequest,
    UploadFields,
    VersionEntry,
    VersionList,
)
from .names import check_new_name
from .results import AdapterState, PutResult
from .sources import AdapterSource, parse_source
from .upload import ARCHIVE_TYPES, receive_upload

ADAPTERS, ALIASES = "/admin/adapters", "/admin/aliases"
ADAPTER, ALIAS = f"{ADAPTERS}/{{name:path}}", f"{ALIASES}/{{alias:path}}"

# What clients send JSON as, some of them unasked; all else is an upload.
JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded", "text/plain")

MAX_WAIT_SECONDS = 600
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS)]

ModelT = TypeVar("ModelT", bound=BaseModel)


def add_adapter_api(app: FastAPI, services: Services) -> None:
    """Add the routes. Of two that fit a path, the one that was added first has it."""
    _add_reports(app, services)
    _add_changes(app, services)
    _add_tiers(app, services)
    _add_aliases(app, services)


def _add_reports(app: FastAPI, services: Services) -> None:
    manager = services.adapters

    @app.get(ADAPTERS, responses=answers(AdapterList))
    async def list_adapters(limit: Limit = None, after: After = None) -> Response:
        """Every adapter by name, or a page of ``limit`` after the name ``after``."""
        states = {state.name: state for state in await answered(manager.list())}
        page = page_of(sorted(states), limit, after)
        entries = [AdapterEntry.of(states[name]) for name in page.names]
        return json_answer(AdapterList(entries, page.has_more, page.last))

    @app.get(f"{ADAPTER}/versions", responses=answers(VersionList))
    async def list_versions(name: str) -> Response:
        """The versions of a name that are kept, oldest first."""
        current = (await answered(manager.get(name))).version.number
        entries = [VersionEntry.of(version, current) for version in manager.versions(name)]
        return json_answer(VersionList(name, entries))

    @app.get(ADAPTER, responses=answers(AdapterEntry))
    async def get_adapter(name: str) -> Response:
        """Everything known of one adapter."""
        return await _state(manager.get(name))


def _add_changes(app: FastAPI, services: Services) -> None:
    manager = services.adapters

    @app.put(
        ADAPTER,
        responses=answers(PutAnswer, 200, 201),
        openapi_extra=body_schema(PutAdapter, uploads=ARCHIVE_TYPES, form=UploadFields),
    )
    async def put_adapter(name: str, request: Request, pin: PinTier | None = None) -> Response:
        """Add an adapter, or replace it: from a source, or from the archive that is sent."""
        check_new_name(name, services.catalog)
        if _content_type(request) in JSON_TYPES:
            result = await _put_source(services, name, request, pin)
        else:
            result = await _put_upload(services, name, request, pin)
        return await _put_answer(services, name, result)

    @app.post(
        f"{ADAPTER}/rollback",
        responses=answers(PutAnswer),
        openapi_extra=body_schema(RollbackRequest, required=False),
    )
    async def roll_back_adapter(name: str, request: Request) -> Response:
        """Answer with an older version again."""
        body = await _parsed(services, request, RollbackRequest)
        result = await answered(manager.rollback(name, body.version))
        return await _put_answer(services, name, result)

    @app.delete(ADAPTER, responses=answers(RemovalAnswer, 200, 202))
    async def delete_adapter(name: str, wait: Wait = 0) -> Response:
        """Forget a name at once; 202 if requests still hold it after ``wait`` seconds."""
        result = await answered(manager.delete(name, wait))
        return json_answer(RemovalAnswer.of(result), 200 if result.done else 202)


def _add_tiers(app: FastAPI, services: Services) -> None:
    manager = services.adapters
    takes_tier = body_schema(TierRequest, required=False)

    @app.post(f"{ADAPTER}/pin", responses=answers(AdapterEntry), openapi_extra=takes_tier)
    async def pin_adapter(name: str, request: Request) -> Response:
        """Keep an adapter at a tier, and the versions that follow it."""
        body = await _parsed(services, request, TierRequest)
        return await _state(manager.pin(name, body.tier))

    @app.post(f"{ADAPTER}/unpin", responses=answers(AdapterEntry))
    async def unpin_adapter(name: str) -> Response:
        """End a pin; the adapter stays where it is until others need the room."""
        return await _state(manager.unpin(name))

    @app.post(f"{ADAPTER}/load", responses=answers(AdapterEntry), openapi_extra=takes_tier)
    async def load_adapter(name: str, request: Request) -> Response:
        """Bring an adapter to a tier; answers once it is there."""
        body = await _parsed(services, request, TierRequest)
        return await _state(manager.load(name, body.tier))

    @app.post(f"{ADAPTER}/evict", responses=answers(AdapterEntry), openapi_extra=takes_tier)
    async def evict_adapter(name: str, request: Request) -> Response:
        """Take an adapter off a tier, and off those above it."""
        body = await _parsed(services, request, TierRequest)
        return await _state(manager.evict(name, body.tier))


def _add_aliases(app: FastAPI, services: Services) -> None:
    manager = services.adapters

    @app.get(ALIASES, responses=answers(AliasList))
    async def list_aliases() -> Response:
        """Every alias and what it points at."""
        return json_answer(AliasList([AliasEntry.of(state) for state in manager.list_aliases()]))

    @app.put(ALIAS, responses=answers(AliasEntry, 200, 201), openapi_extra=body_schema(PutAlias))
    async def put_alias(alias: str, request: Request) -> Response:
        """Point an alias at an adapter, at one of its versions, or at a split of several."""
        body = await _parsed(services, request, PutAlias)
        is_new = all(state.name != alias for state in manager.list_aliases())
        try:
            state = await answered(manager.put_alias(alias, _targets(body)))
        except ApiError as error:
            raise _in_words_of_body(error, body) from error
        return json_answer(AliasEntry.of(state), 201 if is_new else 200)

    @app.delete(ALIAS, responses=answers(AliasRemoval))
    async def delete_alias(alias: str) -> Response:
        """Forget an alias; what it points at stays."""
        await answered(manager.delete_alias(alias))
        return json_answer(AliasRemoval(alias))

    @app.post(f"{ALIAS}/rollback", responses=answers(AliasEntry))
    async def roll_back_alias(alias: str) -> Response:
        """Point an alias where it pointed before."""
        return json_answer(AliasEntry.of(await answered(manager.rollback_alias(alias))))


async def _put_source(
    services: Services, name: str, request: Request, pin: PinTier | None
) -> PutResult:
    body = await _parsed(services, request, PutAdapter)
    source = await asyncio.to_thread(parse_source, body.source, services.source_policy)
    return await answered(services.adapters.put(name, source, pin=body.pin or pin))


async def _put_upload(
    services: Services, name: str, request: Request, pin: PinTier | None
) -> PutResult:
    manager = services.adapters
    with manager.staging() as directory:
        upload = await receive_upload(request, services.source_policy, directory)
        form = parse_json(UploadFields, msgspec.json.encode(upload.fields))
        source = AdapterSource("upload", "upload")
        put = manager.put(name, source, staged=upload.path, pin=form.pin or pin)
        return await answered(put)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _parsed(services: Services, request: Request, model: type[ModelT]) -> ModelT:
    """The body; an empty one stands for ``{}``."""
    return parse_json(model, await read_body(request, services.config.limits) or b"{}")


async def _state(call: Coroutine[Any, Any, AdapterState]) -> Response:
    return json_answer(AdapterEntry.of(await answered(call)))


async def _put_answer(services: Services, name: str, result: PutResult) -> Response:
    entry = AdapterEntry.of(await answered(services.adapters.get(name)))
    return json_answer(PutAnswer(result.changed, entry), 201 if result.created else 200)


def _targets(body: PutAlias) -> list[AliasTarget]:
    """What a body points at; raises ApiError 400 unless it is one adapter or a split."""
    if (body.adapter is None) == (body.split is None):
        raise bad_field("adapter", "exactly one of adapter and split is needed")
    if body.adapter is not None:
        return [AliasTarget(body.adapter, body.version)]
    if body.version is not None:
        raise bad_field("version", "goes with adapter; in a split each part has its own")
    return [AliasTarget(share.adapter, share.version, share.percent) for share in body.split or ()]


def _in_words_of_body(error: ApiError, body: PutAlias) -> ApiError:
    """The manager says ``targets`` of what the body calls its split, or adapter and version."""
    if error.param != "targets":
        return error
    param = "split"
    if body.adapter is not None:
        param = "version" if error.code == "version_not_found" else "adapter"
    message = error.message.replace("targets: ", f"{param}: ", 1)
    return ApiError(message, status=error.status, param=param, code=error.code)
