"""The way of one generation request: body, model, choices, answer; each outcome is counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from starlette.responses import Response

from .adapters import ServedModel
from .answer import Writer, collect, stream
from .body import parse_body, read_body
from .errors import bad_field, to_api_error
from .openai import SamplingFields
from .services import Services
from .stream import CLIENT_LEFT_STATUS, ClientLeft, start_stream, while_connected
from .wire import encode

BodyT = TypeVar("BodyT", bound=SamplingFields)
Open = Callable[[Services, BodyT, ServedModel], Awaitable[Writer]]


async def answer(
    request: Request, services: Services, body_type: type[BodyT], open_writer: Open[BodyT]
) -> Response:
    """Answer one request; whatever fails before the first byte is a shaped error."""
    arrival = time.perf_counter()
    model: ServedModel | None = None
    try:
        raw = await read_body(request, services.config.limits.max_body_bytes)
        body = parse_body(body_type, raw)
        model = services.catalog.resolve(body.model)
        if body.stream_options is not None and not body.stream:
            raise bad_field("stream_options", "needs stream to be true")
        writer = await open_writer(services, body, model)
        response = await _respond(request, services, writer, bool(body.stream), arrival)
    except ClientLeft:
        response = Response(status_code=CLIENT_LEFT_STATUS)
    except Exception as error:
        response = to_api_error(error).response()
    if model is not None:
        services.metrics.count_request(model.name, response.status_code)
    return response


async def _respond(
    request: Request, services: Services, writer: Writer, streaming: bool, arrival: float
) -> Response:
    deltas = services.generator.run(writer.answer.choices, writer.answer.model.name, arrival)
    if streaming:
        return await start_stream(request, stream(deltas, writer))
    whole = await while_connected(request, collect(deltas, writer))
    return Response(encode(whole), media_type="application/json")
