"""``/tokenize`` and ``/detokenize``, in vLLM's shapes: what a prompt is to the model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from fastapi import FastAPI, Request
from msgspec import Struct
from pydantic import Field
from starlette.responses import Response

from .body import check_value
from .body_lists import Items, TokenIds
from .endpoint import Arrived, handle
from .errors import bad_field
from .openai import ChatMessage, ChatRequest, ModelBody, Tool
from .schema import answers, body_schema
from .services import Services
from .text.tokenizer import Tokenizer
from .token_lists import check_token_id
from .wire import encode

SLICE_TOKENS = 4096
"""Looked up at once; others' requests go on in between."""

_CHAT_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template_kwargs",
)
_ONLY_CHAT = frozenset(_CHAT_FIELDS) - {"messages", "add_special_tokens"}


class _TokenBody(ModelBody):
    """Without a ``model`` it is the base that is asked."""

    needs_model: ClassVar[bool] = False
    accepted: ClassVar[frozenset[str]] = frozenset({"user"})
    neutral: ClassVar[dict[str, tuple[object, ...]]] = {}

    stream: None = None


class TokenizeRequest(_TokenBody):
    """The body of ``POST /tokenize``: a ``prompt``, or ``messages`` and what goes with a chat."""

    prompt: str | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1)] | None = None
    tools: Items[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(_TokenBody):
    """The body of ``POST /detokenize``."""

    tokens: TokenIds


class Tokenized(Struct, frozen=True):
    """The answer of ``/tokenize``; ``token_strs`` as they are in the vocabulary."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct, frozen=True):
    """The answer of ``/detokenize``."""

    prompt: str


BODIES = (TokenizeRequest, DetokenizeRequest)
STRUCTS = (Tokenized, Detokenized)


def add_tokenize(app: FastAPI, services: Services) -> None:
    """Add the routes."""

    @app.post("/tokenize", responses=answers(Tokenized), openapi_extra=body_schema(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or of a chat as its template writes it."""

        async def respond(arrived: Arrived[TokenizeRequest]) -> Response:
            return _json(await _tokenized(services, arrived))

        return await handle(request, services, TokenizeRequest, respond)

    @app.post(
        "/detokenize", responses=answers(Detokenized), openapi_extra=body_schema(DetokenizeRequest)
    )
    async def detokenize(request: Request) -> Response:
        """The text of tokens."""

        async def respond(arrived: Arrived[DetokenizeRequest]) -> Response:
            return _json(await _detokenized(services, arrived))

        return await handle(request, services, DetokenizeRequest, respond)


async def _tokenized(services: Services, arrived: Arrived[TokenizeRequest]) -> Tokenized:
    body, tokenizer = arrived.body, arrived.model.tokenizer or services.tokenizer
    token_ids = await _token_ids(services, arrived)
    strings = await _strings(tokenizer, token_ids) if body.return_token_strs else None
    return Tokenized(len(token_ids), services.sampling.max_model_len, token_ids, strings)


async def _token_ids(services: Services, arrived: Arrived[TokenizeRequest]) -> list[int]:
    body, model = arrived.body, arrived.model
    if (body.prompt is None) == (body.messages is None):
        raise bad_field("prompt", "must be given, or messages, and not both")
    if body.prompt is None:
        chat = {name: getattr(body, name) for name in _CHAT_FIELDS}
        return (await services.prompts.chat(check_value(ChatRequest, chat), model)).token_ids
    for name in sorted(_ONLY_CHAT & body.model_fields_set):
        if getattr(body, name) is not None:
            raise bad_field(name, "goes with messages")
    special = body.add_special_tokens is not False
    if not body.prompt:
        return (model.tokenizer or services.tokenizer).encode("", special)
    [prompt] = await services.prompts.completion(body.prompt, special, model)
    return prompt.token_ids


async def _strings(tokenizer: Tokenizer, token_ids: Sequence[int]) -> list[str]:
    strings: list[str] = []
    for start in range(0, len(token_ids), SLICE_TOKENS):
        ids = token_ids[start : start + SLICE_TOKENS]
        strings += [tokenizer.backend.id_to_token(token_id) or "" for token_id in ids]
        await asyncio.sleep(0)
    return strings


async def _detokenized(services: Services, arrived: Arrived[DetokenizeRequest]) -> Detokenized:
    tokens, model = arrived.body.tokens, arrived.model
    most = services.config.limits.max_detokenized_tokens
    if len(tokens) > most:
        raise bad_field("tokens", f"holds {len(tokens)} tokens, the most is {most}")
    vocab_size = services.sampling.of(model).vocab_size
    for token_id in (min(tokens, default=0), max(tokens, default=0)):
        check_token_id("tokens", token_id, vocab_size)
    tokenizer = model.tokenizer or services.tokenizer
    if len(tokens) <= SLICE_TOKENS:
        return Detokenized(tokenizer.decode(tokens))
    return Detokenized(await asyncio.to_thread(tokenizer.decode, tokens))


def _json(body: Struct) -> Response:
    return Response(encode(body), media_type="application/json")
