"""The admin API of tenants, keys and usage as routes; the door before them asks for the key."""

from __future__ import annotations

import functools
import logging
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import GatewayError, bad_field
from ..limits.usage import UsageReader
from ..store.documents import StoreDown
from .body import read_body
from .entries import KeyList, KeyRemoval, TenantList, TenantRemoval
from .records import NAME_RULE, PostKey, PutTenant, RotateKey, is_name
from .tenants import Tenants

TENANTS = "/admin/tenants"
TENANT = f"{TENANTS}/{{name}}"
KEYS = f"{TENANT}/keys"
KEY = f"{KEYS}/{{key_id}}"
MAX_PAGE = 1000

_MAX_REVISION = 2**53

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger(__name__)


def tenant_routes(tenants: Tenants, usage: UsageReader) -> list[Route]:
    """The routes; they answer their own errors."""
    api = _Api(tenants, usage)
    table: list[tuple[str, str, Endpoint]] = [
        ("GET", TENANTS, api.list_tenants),
        ("PUT", TENANT, api.put_tenant),
        ("GET", TENANT, api.get_tenant),
        ("DELETE", TENANT, api.delete_tenant),
        ("POST", KEYS, api.create_key),
        ("GET", KEYS, api.list_keys),
        ("DELETE", KEY, api.revoke_key),
        ("POST", f"{KEY}/rotate", api.rotate_key),
        ("GET", "/admin/usage", api.read_usage),
    ]
    return [Route(path, answering(endpoint), methods=[verb]) for verb, path, endpoint in table]


def answering(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose GatewayError and StoreDown are answers."""

    @functools.wraps(endpoint)
    async def call(request: Request) -> Response:
        try:
            return await endpoint(request)
        except GatewayError as error:
            return error.response()
        except StoreDown as error:
            logger.warning("a change of the store failed: %s", error)
            return GatewayError(
                503,
                "The fleet's store can't be changed now. Whether this change was made is not "
                "known: send it again.",
                code="store_down",
                headers={"retry-after": "1"},
            ).response()

    return call


class _Api:
    def __init__(self, tenants: Tenants, usage: UsageReader) -> None:
        self._tenants = tenants
        self._usage = usage

    async def list_tenants(self, request: Request) -> Response:
        """A page of tenants by name, ``limit`` of them after the name ``after``."""
        query = _query(request, "limit", "after")
        limit = _limit(query.get("limit"))
        names = self._tenants.names()
        start = bisect_right(names, query["after"]) if "after" in query else 0
        page = names[start : start + limit]
        entries = [self._tenants.entry(name) for name in page]
        has_more = start + len(page) < len(names)
        return _answer(TenantList(entries, has_more, page[-1] if page else None))

    async def get_tenant(self, request: Request) -> Response:
        entry = self._tenants.entry(_name(request))
        return _answer(entry, headers=_etag(entry.revision))

    async def put_tenant(self, request: Request) -> Response:
        name, expected = _name(request), _expected(request.headers)
        if not is_name(name):
            raise bad_field("name", f"must be {NAME_RULE}")
        body = await read_body(request, PutTenant)
        entry, is_new = await self._tenants.put(name, body, expected)
        return _answer(entry, 201 if is_new else 200, _etag(entry.revision))

    async def delete_tenant(self, request: Request) -> Response:
        name = _name(request)
        num_keys = await self._tenants.delete(name, _expected(request.headers))
        return _answer(TenantRemoval(name, num_keys))

    async def create_key(self, request: Request) -> Response:
        body = await read_body(request, PostKey)
        new = await self._tenants.create_key(_name(request), body.expires_at)
        return _answer(new, 201, {"cache-control": "no-store"})

    async def list_keys(self, request: Request) -> Response:
        name = _name(request)
        return _answer(KeyList(name, self._tenants.keys(name)))

    async def revoke_key(self, request: Request) -> Response:
        name, key_id = _name(request), request.path_params["key_id"]
        await self._tenants.revoke(name, key_id)
        return _answer(KeyRemoval(name, key_id))

    async def rotate_key(self, request: Request) -> Response:
        body = await read_body(request, RotateKey)
        new = await self._tenants.rotate(
            _name(request), request.path_params["key_id"], body.grace_seconds, body.expires_at
        )
        return _answer(new, 201, {"cache-control": "no-store"})

    async def read_usage(self, request: Request) -> Response:
        """Usage of one ``tenant`` or all, on a ``day`` or ``from`` one ``to`` another; UTC."""
        query = _query(request, "tenant", "day", "from", "to")
        if "day" in query and ("from" in query or "to" in query):
            raise bad_field("day", "is given beside from and to")
        today = datetime.now(UTC).date()
        first = _day(query, "day" if "day" in query else "from", today)
        last = _day(query, "day" if "day" in query else "to", max(first, today))
        tenants = [query["tenant"]] if "tenant" in query else None
        if tenants and not is_name(tenants[0]):
            raise bad_field("tenant", f"must be {NAME_RULE}")
        try:
            report = await self._usage.read(tenants, first, last)
        except ValueError as error:
            raise GatewayError(400, str(error), param="from", code="invalid_value") from None
        return _answer(report)


def _answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _etag(revision: int) -> dict[str, str]:
    return {"etag": f'"{revision}"'}


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _expected(headers: Mapping[str, str]) -> int | None:
    """The revision of ``If-Match: "N"``, 0 of ``If-None-Match: *``; raises GatewayError 400."""
    if "if-none-match" in headers:
        if headers["if-none-match"].strip() != "*":
            raise bad_field("if-none-match", "must be *: that there is no such tenant yet")
        return 0
    if "if-match" not in headers:
        return None
    given = re.fullmatch(r'"?([0-9]{1,16})"?', headers["if-match"].strip(), re.ASCII)
    if given is None or not 0 < int(given[1]) <= _MAX_REVISION:
        raise bad_field("if-match", "must be the revision that was read, as the ETag has it")
    return int(given[1])


def _query(request: Request, *names: str) -> dict[str, str]:
    """The query's fields, each once; raises GatewayError 400 for others."""
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        shown = ascii(name[:100])[1:-1]
        if name not in names:
            raise bad_field(shown, f"there is no such field; there are: {', '.join(names)}")
        if name in query:
            raise bad_field(shown, "is given more than once")
        query[name] = value
    return query


def _limit(text: str | None) -> int:
    if text is None:
        return MAX_PAGE
    if not re.fullmatch("[0-9]{1,4}", text, re.ASCII) or not 0 < int(text) <= MAX_PAGE:
        raise bad_field("limit", f"must be a number from 1 to {MAX_PAGE}")
    return int(text)


def _day(query: Mapping[str, str], name: str, otherwise: date) -> date:
    if name not in query:
        return otherwise
    try:
        return datetime.strptime(query[name], "%Y-%m-%d").date()
    except ValueError:
        raise bad_field(name, "must be a day as YYYY-MM-DD") from None
