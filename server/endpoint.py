"""The way of one generation request: body, model, choices, answer; each outcome is counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from .access import Tenant
from .answer import Writer, collect, stream
from .body import parse_body, read_body
from .catalog import ServedModel
from .door import keep_lease, tenant_of
from .errors import ApiError, bad_field, to_api_error
from .openai import ChatRequest, SamplingFields
from .request_key import request_key
from .services import Services
from .stream import CLIENT_LEFT_STATUS, ClientLeft, start_stream, while_connected
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
    try:
        raw = await read_body(request, services.config.limits)
        body = parse_body(body_type, raw)
        key = request_key(request, body, raw, tenant) if catalog.is_alias(body.model) else None
        model = catalog.resolve(body.model, key)
        keep_lease(request, catalog.lease(model))
        if body.stream_options is not None and not body.stream:
            raise bad_field("stream_options", "needs stream to be true")
        writer = await open_writer(services, body, model, tenant)
        try:
            response = await _respond(request, services, writer, bool(body.stream), arrival)
        except ApiError as error:
            raise _in_words_of(body_type, error) from error
    except ClientLeft:
        response = Response(status_code=CLIENT_LEFT_STATUS)
    except Exception as error:
        response = to_api_error(error).response()
    name = None if model is None else model.name
    services.metrics.count_request(name, tenant, response.status_code)
    return response


def _in_words_of(body_type: type[SamplingFields], error: ApiError) -> ApiError:
    """The engine says ``prompt`` of every request; for a chat that is ``messages``."""
    if error.param == "prompt" and issubclass(body_type, ChatRequest):
        return bad_field("messages", error.message.removeprefix("prompt: "))
    return error


async def _respond(
    request: Request, services: Services, writer: Writer, streaming: bool, arrival: float
) -> Response:
    deltas = services.generator.run(writer.answer.choices, writer.answer.model, arrival)
    if streaming:
        return await start_stream(request, stream(deltas, writer))
    whole = await while_connected(request, collect(deltas, writer))
    return Response(encode(whole), media_type="application/json")
