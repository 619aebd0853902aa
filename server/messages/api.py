"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's API over the same models."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from ..endpoint import Arrived, ShapeError, answer, handle
from ..errors import shaped
from ..schema import Answers, answers, body_schema, stream_or_whole
from ..services import Services
from ..wire import encode
from .body import CountTokensRequest, MessagesRequest
from .read import chats_faults, read_chat
from .wire import CountedTokens, MessagesAnswer, MessagesError
from .writer import open_messages

BODIES = (MessagesRequest, CountTokensRequest)
STRUCTS = (MessagesAnswer, CountedTokens, MessagesError)

_REFUSED = answers(MessagesError, 400)[400]
_ERRORS: Answers = {"4XX": _REFUSED | {"description": "Refused, and why"}, 503: _REFUSED}


def add_messages(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.post(
        "/v1/messages",
        responses=stream_or_whole(MessagesAnswer) | _ERRORS,
        openapi_extra=body_schema(MessagesRequest),
    )
    async def create_message(request: Request) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        shape = _shape(request)
        return await answer(request, services, MessagesRequest, open_messages, shape)

    @app.post(
        "/v1/messages/count_tokens",
        responses=answers(CountedTokens) | _ERRORS,
        openapi_extra=body_schema(CountTokensRequest),
    )
    async def count_message_tokens(request: Request) -> Response:
        """How many tokens a conversation's prompt has."""

        async def respond(arrived: Arrived[CountTokensRequest]) -> Response:
            chat = read_chat(arrived.body)
            with chats_faults():
                prompt = await services.prompts.chat(chat, arrived.model)
            counted = CountedTokens(len(prompt.token_ids))
            return Response(encode(counted), media_type="application/json")

        return await handle(request, services, CountTokensRequest, respond, _shape(request))


def _shape(request: Request) -> ShapeError:
    return lambda error: shaped(error, request.scope)
