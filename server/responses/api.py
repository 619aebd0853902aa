"""``/v1/responses``: create, read, delete, and list what a response was given."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, Query, Request
from msgspec import Struct
from starlette.responses import Response

from ...gateway.fleet.kept_responses import RESPONSE_ID, KeptResponse
from ..door import tenant_of
from ..endpoint import answer
from ..errors import ApiError, bad_field
from ..schema import answers, body_schema, stream_or_whole
from ..services import Services
from .body import ResponseRequest
from .open import open_response
from .store import ResponseStore
from .wire import DeletedResponse, ItemList, ResponseBody

BODIES = (ResponseRequest,)
STRUCTS = (ResponseBody, ItemList, DeletedResponse)

DEFAULT_PAGE, MAX_PAGE = 20, 100

PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Order = Annotated[Literal["asc", "desc"], Query()]
ItemId = Annotated[str | None, Query(max_length=256)]


def add_responses(app: FastAPI, services: Services) -> None:
    """Add the routes."""
    store = services.responses

    @app.post(
        "/v1/responses",
        responses=stream_or_whole(ResponseBody),
        openapi_extra=body_schema(ResponseRequest),
    )
    async def create_response(request: Request) -> Response:
        """Answer a turn of a conversation, whole or as a stream of events."""
        return await answer(request, services, ResponseRequest, open_response)

    @app.get("/v1/responses/{response_id}", responses=answers(ResponseBody))
    async def get_response(request: Request, response_id: str, stream: bool = False) -> Response:
        """A response that is kept."""
        if stream:
            raise bad_field("stream", "must be false: a response that is kept has ended")
        return _json((await _find(request, store, response_id)).response)

    @app.delete("/v1/responses/{response_id}", responses=answers(DeletedResponse))
    async def delete_response(request: Request, response_id: str) -> Response:
        """Forget a response."""
        tenant = tenant_of(request)
        if not (_is_id(response_id) and await store.delete(tenant.name, response_id)):
            raise _not_found(response_id)
        return _json(DeletedResponse(id=response_id))

    @app.post("/v1/responses/{response_id}/cancel", responses=answers(ResponseBody))
    async def cancel_response(request: Request, response_id: str) -> Response:
        """Nothing can be cancelled: no response runs in the background."""
        await _find(request, store, response_id)
        raise ApiError("Cannot cancel a response that was not created with background: true.")

    @app.get("/v1/responses/{response_id}/input_items", responses=answers(ItemList))
    async def list_input_items(
        request: Request,
        response_id: str,
        limit: PageSize = DEFAULT_PAGE,
        order: Order = "desc",
        after: ItemId = None,
    ) -> Response:
        """What the model was given: the items of the responses before this one, and its own."""
        kept = await _find(request, store, response_id)
        return _json(page_of(kept, limit, order, after))


def page_of(kept: KeptResponse, limit: int, order: str, after: str | None) -> ItemList:
    """A page of a response's items behind the one with the id ``after``; raises ApiError 400."""
    items = kept.items if order == "asc" else kept.items[::-1]
    start = 0
    if after is not None:
        ids = [item.get("id") for item in items]
        if after not in ids:
            raise bad_field("after", f"no item of this response has the id {after[:100]!r}")
        start = ids.index(after) + 1
    page = items[start : start + limit]
    return ItemList(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=start + limit < len(items),
    )


async def _find(request: Request, store: ResponseStore, response_id: str) -> KeptResponse:
    tenant = tenant_of(request)
    kept = await store.find(tenant.name, response_id) if _is_id(response_id) else None
    if kept is None:
        raise _not_found(response_id)
    return kept


def _is_id(text: str) -> bool:
    return re.fullmatch(RESPONSE_ID, text) is not None


def _not_found(response_id: str) -> ApiError:
    return ApiError(
        f"Response with id {response_id[:100]!r} not found.",
        status=404,
        param="response_id",
        code="response_not_found",
    )


def _json(body: Struct | dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
