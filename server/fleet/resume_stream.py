"""The stream of an answer, for a client as for a gateway: opened here, or taken up."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from functools import partial

from fastapi import Request

from ...gateway.fleet.resume import ResumeRecord
from ..answer import Tally, Writer, stream
from ..generation import ChoiceDelta
from ..services import Services
from ..stream import EventStream, start_stream
from .resume_answer import opening_of, resume, unfinished
from .resume_record import wants_state
from .resume_state import StreamState


async def open_stream(
    request: Request,
    services: Services,
    writer: Writer,
    arrival: float,
    record: ResumeRecord | None = None,
) -> EventStream:
    """Events of an answer, from the first one or behind those that ``record`` tells of.

    Raises what comes before the first event, ApiError 409 where the answer is another one here.
    """
    if record is None:
        deltas = services.generator.run(writer.answer.choices, writer.answer.model, arrival)
    else:
        deltas = await _resumed(services, writer, arrival, record)
    state, timeout = None, services.config.limits.client_timeout
    if wants_state(request):
        opening = opening_of(writer.answer, services.fingerprint)
        num_prompt_tokens = Tally(writer.answer).num_prompt_tokens
        state = StreamState(opening, num_prompt_tokens, record.choices if record else ())
        timeout = math.inf  # how long its client may take is the gateway's affair
    events = stream(deltas, writer, record, state)
    return await start_stream(request, events, writer, state, timeout)


async def _resumed(
    services: Services, writer: Writer, arrival: float, record: ResumeRecord
) -> AsyncGenerator[ChoiceDelta]:
    generator, model = services.generator, writer.answer.model
    detokenizers = await resume(
        writer, record, services.fingerprint, partial(generator.detokenizer, model=model)
    )
    choices = unfinished(writer.answer.choices, record)
    return generator.run(choices, model, arrival, detokenizers) if choices else _nothing()


async def _nothing() -> AsyncGenerator[ChoiceDelta]:
    return
    yield
