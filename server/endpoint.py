"""The way of one generation request: body, model, choices, answer; each outcome is counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from ..gateway.fleet.headers import RESUME
from .access import Tenant
from .answer import Writer, collect
from .body import parse_body
from .catalog import Catalog, ServedModel
from .door import keep_lease, model_for, tenant_of
from .errors import ApiError, bad_field, to_api_error
from .fleet.resume_record import read_request
from .fleet.resume_stream import open_stream
from .openai import ChatRequest, SamplingFields
from .request_key import request_key
from .services import Services
from .stream import CLIENT_LEFT_STATUS, ClientLeft, while_connected
from .wire import encode

BodyT = TypeVar("BodyT", bound=SamplingFields)
Open = Callable[[Services, BodyT, ServedModel, Tenant], Awaitable[Writer]]


async def answer(
    request: Request, services: Services, body_type: type[BodyT], open_writer: Open[BodyT]
) -> Response:
    """Answer one request; whatever fails before the first byte is a shaped error."""
    arrival = time.perf_counter()
    tenant, catalog = tenant_of(request), services.catalog
    model: ServedModel | None = None
    response: Response
    try:
        record, raw = await read_request(request, services.config.limits)
        body = parse_body(body_type, raw)
        name = model_for(request) or body.model
        key = request_key(request, body, raw, tenant) if catalog.is_alias(name) else None
        model = catalog.resolve(name, key) if name == body.model else _sent_here(catalog, name, key)
        keep_lease(request, catalog.lease(model))
        if body.stream_options is not None and not body.stream:
            raise bad_field("stream_options", "needs stream to be true")
        if record is not None and not body.stream:
            raise bad_field(RESUME, "needs stream to be true")
        writer = await open_writer(services, body, model, tenant)
        try:
            if body.stream:
                response = await open_stream(request, services, writer, arrival, record)
            else:
                response = await _whole(request, services, writer, arrival)
        except ApiError as error:
            raise _in_words_of(body_type, error) from error
    except ClientLeft:
        response = Response(status_code=CLIENT_LEFT_STATUS)
    except Exception as error:
        response = to_api_error(error).response()
    used = None if model is None else model.name
    services.metrics.count_request(used, tenant, response.status_code)
    return response


def _sent_here(catalog: Catalog, name: str | None, key: str | None) -> ServedModel:
    """What a gateway chose; it is told when that is not here, so that it can try elsewhere."""
    try:
        return catalog.resolve(name, key)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            error.code = "adapter_not_here"
        raise


def _in_words_of(body_type: type[SamplingFields], error: ApiError) -> ApiError:
    """The engine says ``prompt`` of every request; for a chat that is ``messages``."""
    if error.param == "prompt" and issubclass(body_type, ChatRequest):
        return bad_field("messages", error.message.removeprefix("prompt: "))
    return error


async def _whole(request: Request, services: Services, writer: Writer, arrival: float) -> Response:
    deltas = services.generator.run(writer.answer.choices, writer.answer.model, arrival)
    whole = await while_connected(request, collect(deltas, writer))
    return Response(encode(whole), media_type="application/json")
