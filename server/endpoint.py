"""The way of one request to a model: body, model, answer; each outcome is counted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Generic, TypeVar

from fastapi import Request
from starlette.responses import Response

from ..gateway.fleet.headers import RESUME
from ..gateway.fleet.resume import ResumeRecord
from .access import Tenant
from .answer import Writer, collect
from .answer_run import deltas_of
from .body import parse_body
from .catalog import Catalog, ServedModel
from .door import keep_lease, model_for, tenant_of
from .errors import ApiError, bad_field, to_api_error
from .fleet.resume_record import read_request
from .fleet.resume_stream import open_stream
from .openai import ModelBody
from .request_key import request_key
from .services import Services
from .stream import CLIENT_LEFT_STATUS, ClientLeft, while_connected

BodyT = TypeVar("BodyT", bound=ModelBody)
Open = Callable[[Services, BodyT, ServedModel, Tenant], Awaitable[Writer]]
ShapeError = Callable[[ApiError], Response]


@dataclass(frozen=True, slots=True)
class Arrived(Generic[BodyT]):
    """A request whose body is checked and whose model is held.

    ``arrival`` is by ``perf_counter``; ``record`` is of the stream that it goes on with, if any.
    """

    body: BodyT
    model: ServedModel
    tenant: Tenant
    arrival: float
    record: ResumeRecord | None


async def answer(
    request: Request,
    services: Services,
    body_type: type[BodyT],
    open_writer: Open[BodyT],
    shape_error: ShapeError = ApiError.response,
) -> Response:
    """Answer with generated text, whole or as a stream, in the shapes of a writer."""

    async def respond(arrived: Arrived[BodyT]) -> Response:
        writer = await open_writer(services, arrived.body, arrived.model, arrived.tenant)
        if arrived.body.stream:
            return await open_stream(request, services, writer, arrived.arrival, arrived.record)
        return await _whole(request, services, writer, arrived.arrival)

    return await handle(request, services, body_type, respond, shape_error)


async def handle(
    request: Request,
    services: Services,
    body_type: type[BodyT],
    respond: Callable[[Arrived[BodyT]], Awaitable[Response]],
    shape_error: ShapeError = ApiError.response,
) -> Response:
    """Answer one request; whatever fails before the first byte is an error in its shape."""
    arrival = time.perf_counter()
    tenant = tenant_of(request)
    model: ServedModel | None = None
    response: Response
    try:
        record, raw = await read_request(request, services.config.limits)
        body = parse_body(body_type, raw)
        model = _resolve(request, services.catalog, body, raw, tenant)
        keep_lease(request, services.catalog.lease(model))
        _check_stream(body, record)
        try:
            response = await respond(Arrived(body, model, tenant, arrival, record))
        except ApiError as error:
            raise _in_words_of(body_type, error) from error
    except ClientLeft:
        response = Response(status_code=CLIENT_LEFT_STATUS)
    except Exception as error:
        response = shape_error(to_api_error(error))
    used = None if model is None else model.name
    services.metrics.count_request(used, tenant, response.status_code)
    return response


def _resolve(
    request: Request, catalog: Catalog, body: ModelBody, raw: bytes, tenant: Tenant
) -> ServedModel:
    sent = model_for(request)
    name = sent or body.model or (None if body.needs_model else catalog.base.name)
    key = request_key(request, body, raw, tenant) if catalog.is_alias(name) else None
    if sent is None or sent == body.model:
        return catalog.resolve(name, key)
    return _sent_here(catalog, name, key)


def _sent_here(catalog: Catalog, name: str | None, key: str | None) -> ServedModel:
    """What a gateway chose; it is told when that is not here, so that it can try elsewhere."""
    try:
        return catalog.resolve(name, key)
    except ApiError as error:
        if error.status == HTTPStatus.NOT_FOUND:
            error.code = "adapter_not_here"
        raise


def _check_stream(body: ModelBody, record: ResumeRecord | None) -> None:
    if body.stream:
        return
    if getattr(body, "stream_options", None) is not None:
        raise bad_field("stream_options", "needs stream to be true")
    if record is not None:
        raise bad_field(RESUME, "needs stream to be true")


def _in_words_of(body_type: type[ModelBody], error: ApiError) -> ApiError:
    """The engine says ``prompt`` of every request; a body may have another word for it."""
    field, word = error.param or "", body_type.prompt_field
    if word != "prompt" and (field == "prompt" or field.startswith("prompt[")):
        error.param = field.replace("prompt", word, 1)
        error.message = error.message.replace(f"{field}: ", f"{error.param}: ", 1)
    return error


async def _whole(request: Request, services: Services, writer: Writer, arrival: float) -> Response:
    deltas = deltas_of(services, writer.answer, arrival)
    whole = await while_connected(request, collect(deltas, writer))
    return Response(whole, media_type="application/json")
