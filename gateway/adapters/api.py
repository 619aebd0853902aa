"""The admin API of the fleet's adapters: the paths and bodies of a server's.

Whoever mounts the routes asks for the admin key before a body is read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable
from functools import wraps

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import GatewayError, bad_field
from .admin import AdapterAdmin, PutResult, pin_of
from .bodies import PutAdapter, PutAlias, RollbackRequest, TierRequest, parsed, pieces
from .entries import (
    AdapterEntry,
    AdapterList,
    AliasEntry,
    AliasList,
    AliasRemoval,
    PutAnswer,
    RemovalAnswer,
    VersionEntry,
    VersionList,
)
from .names import not_there
from .records import AdapterRecord

ADAPTERS, ALIASES = "/admin/adapters", "/admin/aliases"
ADAPTER, ALIAS = f"{ADAPTERS}/{{name:path}}", f"{ALIASES}/{{alias:path}}"
JSON_TYPES = ("", "application/json", "application/x-www-form-urlencoded", "text/plain")
"""What clients send JSON as, some of them unasked; all else is an upload."""
MAX_WAIT_SECONDS = 600.0
MAX_PAGE = 1000

Endpoint = Callable[[Request], Awaitable[Response]]


def adapter_routes(admin: AdapterAdmin) -> list[Route]:
    """The routes. Of two that fit a path, the first one has it."""
    api = _Api(admin)
    routes: list[tuple[str, str, Endpoint]] = [
        ("GET", ADAPTERS, api.list_adapters),
        ("GET", f"{ADAPTER}/versions", api.list_versions),
        ("POST", f"{ADAPTER}/rollback", api.roll_back),
        ("POST", f"{ADAPTER}/pin", api.pin),
        ("POST", f"{ADAPTER}/unpin", api.unpin),
        ("POST", f"{ADAPTER}/load", api.load),
        ("POST", f"{ADAPTER}/evict", api.evict),
        ("GET", ADAPTER, api.get_adapter),
        ("PUT", ADAPTER, api.put_adapter),
        ("DELETE", ADAPTER, api.delete_adapter),
        ("GET", ALIASES, api.list_aliases),
        ("POST", f"{ALIAS}/rollback", api.roll_back_alias),
        ("PUT", ALIAS, api.put_alias),
        ("DELETE", ALIAS, api.delete_alias),
    ]
    return [Route(path, _answering(admin, call), methods=[verb]) for verb, path, call in routes]


def _answering(admin: AdapterAdmin, endpoint: Endpoint) -> Endpoint:
    @wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            await admin.registry.refresh()
            return await endpoint(request)
        except GatewayError as error:
            return error.response()

    return answer


class _Api:
    """One method a route."""

    def __init__(self, admin: AdapterAdmin) -> None:
        self._admin = admin

    async def list_adapters(self, request: Request) -> Response:
        registry = self._admin.registry
        records = registry.adapters()
        names, after = sorted(records), request.query_params.get("after")
        limit = _number(request, "limit", 1, MAX_PAGE)
        start = 0 if after is None else bisect_right(names, after)
        page = names[start:] if limit is None else names[start : start + int(limit)]
        reports = await self._admin.reports()
        entries = [
            AdapterEntry.of(
                name,
                records[name],
                registry.aliases_of(name),
                reports.of(records[name].current.version_id),
            )
            for name in page
        ]
        has_more = start + len(page) < len(names)
        return _json(AdapterList(entries, has_more, page[-1] if page else None))

    async def get_adapter(self, request: Request) -> Response:
        return _json(await self._entry(request.path_params["name"]))

    async def list_versions(self, request: Request) -> Response:
        name = request.path_params["name"]
        record = self._record(name)
        reports, current = await self._admin.reports(), record.current.number
        entries = [
            VersionEntry.of(version, current, list(reports.of(version.version_id)))
            for version in record.versions
        ]
        return _json(VersionList(name, entries))

    async def put_adapter(self, request: Request) -> Response:
        name, pin = request.path_params["name"], pin_of(request.query_params.get("pin"))
        self._admin.check_name(name)
        content_type = request.headers.get("content-type", "")
        if content_type.partition(";")[0].strip().lower() in JSON_TYPES:
            body = await parsed(request, PutAdapter)
            result = await self._admin.put_source(name, body.source, body.pin or pin)
        else:
            result = await self._admin.put_upload(name, pieces(request), content_type, pin)
        return await self._put_answer(name, result)

    async def roll_back(self, request: Request) -> Response:
        name = request.path_params["name"]
        body = await parsed(request, RollbackRequest)
        return await self._put_answer(name, await self._admin.rollback(name, body.version))

    async def delete_adapter(self, request: Request) -> Response:
        wait = _number(request, "wait", 0, MAX_WAIT_SECONDS) or 0
        removal = await self._admin.delete(request.path_params["name"], wait)
        return _json(RemovalAnswer.of(removal), 200 if removal.done else 202)

    async def pin(self, request: Request) -> Response:
        body = await parsed(request, TierRequest)
        await self._admin.pin(request.path_params["name"], body.tier)
        return await self.get_adapter(request)

    async def unpin(self, request: Request) -> Response:
        await self._admin.unpin(request.path_params["name"])
        return await self.get_adapter(request)

    async def load(self, request: Request) -> Response:
        return await self._turn(request, "load")

    async def evict(self, request: Request) -> Response:
        return await self._turn(request, "evict")

    async def list_aliases(self, request: Request) -> Response:
        aliases = self._admin.registry.aliases()
        return _json(AliasList([AliasEntry.of(name, aliases[name]) for name in sorted(aliases)]))

    async def put_alias(self, request: Request) -> Response:
        alias = request.path_params["alias"]
        body = await parsed(request, PutAlias)
        is_new = self._admin.registry.alias(alias) is None
        try:
            record = await self._admin.put_alias(alias, body.targets)
        except GatewayError as error:
            raise _in_words_of_body(error, body) from error
        return _json(AliasEntry.of(alias, record), 201 if is_new else 200)

    async def roll_back_alias(self, request: Request) -> Response:
        alias = request.path_params["alias"]
        return _json(AliasEntry.of(alias, await self._admin.rollback_alias(alias)))

    async def delete_alias(self, request: Request) -> Response:
        alias = request.path_params["alias"]
        await self._admin.registry.delete_alias(alias)
        return _json(AliasRemoval(alias))

    async def _turn(self, request: Request, verb: str) -> Response:
        body = await parsed(request, TierRequest)
        await self._admin.turn(request.path_params["name"], verb, body.tier)
        return await self.get_adapter(request)

    async def _put_answer(self, name: str, result: PutResult) -> Response:
        answer = PutAnswer(result.changed, await self._entry(name))
        return _json(answer, 201 if result.created else 200)

    async def _entry(self, name: str) -> AdapterEntry:
        record = self._record(name)
        reports = (await self._admin.reports(record.current)).of(record.current.version_id)
        return AdapterEntry.of(name, record, self._admin.registry.aliases_of(name), reports)

    def _record(self, name: str) -> AdapterRecord:
        record = self._admin.registry.adapter(name)
        if record is None:
            raise not_there(name, "adapter")
        return record


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def _number(request: Request, name: str, least: float, most: float) -> float | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        number = float(text[:32])
    except ValueError:
        number = float("nan")
    if not least <= number <= most:
        raise bad_field(name, f"must be a number from {least:g} to {most:g}")
    return number


def _in_words_of_body(error: GatewayError, body: PutAlias) -> GatewayError:
    """The verbs say ``targets`` of what the body calls its split, or adapter and version."""
    if error.param != "targets":
        return error
    param = "split"
    if body.adapter is not None:
        param = "version" if error.code == "version_not_found" else "adapter"
    message = error.message.replace("targets: ", f"{param}: ", 1)
    return GatewayError(error.status, message, param=param, code=error.code)
