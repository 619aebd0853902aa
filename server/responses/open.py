"""From a request for a response to its writer: the conversation found, its chat opened."""

from __future__ import annotations

from ..access import Tenant
from ..catalog import ServedModel
from ..chat import ChatAnswer, open_chat_answer
from ..errors import ApiError
from ..services import Services
from .body import ResponseRequest
from .turn import Turn, in_our_words, num_droppable, num_far_over
from .writer import ResponseWriter

ID_KIND = "resp_"
TOO_LONG = "context_length_exceeded"
MAX_TOKEN_BYTES = 64
"""Items of more bytes a token of the context are far too long: no prompt is made to tell."""


async def open_response(
    services: Services, body: ResponseRequest, model: ServedModel, tenant: Tenant
) -> ResponseWriter:
    """Check a request and lay out its answer; raises ApiError for what is refused."""
    turn = await Turn.read(body, services.responses, tenant)
    num_dropped = 0
    if body.truncation == "auto":
        room = services.sampling.max_model_len * MAX_TOKEN_BYTES
        num_dropped = num_far_over(turn.all_items, room)
    try:
        chat = await _open(services, turn, model, tenant, num_dropped)
    except ApiError as error:
        if error.code != TOO_LONG or body.truncation != "auto":
            raise
        chat = await _open_shortened(services, turn, model, tenant, num_dropped + 1, error)
    return ResponseWriter(chat, turn, services.responses, tenant)


async def _open(
    services: Services, turn: Turn, model: ServedModel, tenant: Tenant, num_dropped: int
) -> ChatAnswer:
    chat = turn.chat(num_dropped)
    try:
        return await open_chat_answer(services, chat, model, tenant, kind=ID_KIND)
    except ApiError as error:
        raise in_our_words(error) from error


async def _open_shortened(
    services: Services,
    turn: Turn,
    model: ServedModel,
    tenant: Tenant,
    fewest: int,
    too_long: ApiError,
) -> ChatAnswer:
    """``truncation: auto``: without the ``fewest`` oldest items, or no more than has to be.

    Raises ``too_long`` where even the newest alone is.
    """
    fitting: ChatAnswer | None = None
    low, high = fewest, num_droppable(turn.all_items)
    while low <= high:
        middle = (low + high) // 2
        try:
            fitting = await _open(services, turn, model, tenant, middle)
        except ApiError as error:
            if error.code != TOO_LONG:
                raise
            low = middle + 1
        else:
            high = middle - 1
    if fitting is None:
        raise too_long
    return fitting
