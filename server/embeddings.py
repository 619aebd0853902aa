"""``POST /v1/embeddings``: one vector an input, from the base model or an adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from fastapi import FastAPI, Request
from msgspec import structs
from pydantic import Field
from starlette.responses import Response

from ..engine.types import Pooling
from .endpoint import Arrived, handle
from .errors import bad_field
from .generation import ChoiceDelta, ChoiceRequest, Terms, expand_choices
from .openai import PROMPT_SCHEMA, CacheSalt, ModelBody
from .prompt import Prompt
from .prompt_cut import last_tokens
from .schema import answers, body_schema
from .services import Services
from .stream import while_connected
from .vectors import POOLED, as_base64, unit_vector
from .wire import Embedding, EmbeddingList, EmbeddingUsage, PromptTokensDetails, encode

MAX_AT_ONCE = 128
"""Inputs of one request that are in the engine together."""


class EmbeddingRequest(ModelBody):
    """The body of ``POST /v1/embeddings``.

    ``pooling`` takes the hidden state of an input's last token, or the mean over all its tokens.
    """

    prompt_field: ClassVar[str] = "input"
    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = MappingProxyType({"normalize": (True,)})

    input: Annotated[Any, PROMPT_SCHEMA]
    stream: Literal[False] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    pooling: Pooling | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    add_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: CacheSalt | None = None


def add_embeddings(app: FastAPI, services: Services) -> None:
    """The endpoint."""

    @app.post(
        "/v1/embeddings",
        responses=answers(EmbeddingList),
        openapi_extra=body_schema(EmbeddingRequest),
    )
    async def create_embeddings(request: Request) -> Response:
        """Turn each input into a vector of unit length."""

        async def respond(arrived: Arrived[EmbeddingRequest]) -> Response:
            whole = await while_connected(request, _embed(services, arrived))
            return Response(await asyncio.to_thread(_encoded, whole), media_type="application/json")

        return await handle(request, services, EmbeddingRequest, respond)


def _encoded(answer: EmbeddingList) -> bytes:
    """Its JSON, a vector at a time: the encoder gives no other thread a turn before it returns."""
    before, empty, after = encode(structs.replace(answer, data=[])).partition(b'"data":[]')
    vectors = b",".join([encode(entry) for entry in answer.data])
    return b"".join([before, empty[:-1], vectors, b"]", after])


async def _embed(services: Services, arrived: Arrived[EmbeddingRequest]) -> EmbeddingList:
    body, model = arrived.body, arrived.model
    hidden_size = services.supervisor.info.hidden_size
    if (body.dimensions or 0) > hidden_size:
        raise bad_field(
            "dimensions", f"is {body.dimensions}, the model's vectors have {hidden_size}"
        )
    choices = _choices(arrived, await _read_inputs(services, arrived))
    vectors: dict[int, list[float] | str] = {}
    num_cached = 0
    async with aclosing(_pooled(services, arrived, choices)) as deltas:
        async for item in deltas:
            assert item.delta.embedding is not None, "it is all that a pooled request gives"
            vector = unit_vector(item.delta.embedding, body.dimensions)
            in_base64 = body.encoding_format == "base64"
            vectors[item.choice.index] = as_base64(vector) if in_base64 else vector.tolist()
            num_cached += item.delta.num_cached_tokens
    num_tokens = sum(len(choice.generation.prompt_token_ids) for choice in choices)
    return EmbeddingList(
        data=[Embedding(index=index, embedding=vectors[index]) for index in range(len(choices))],
        model=body.model or model.name,
        usage=EmbeddingUsage(num_tokens, num_tokens, PromptTokensDetails(num_cached)),
    )


async def _read_inputs(services: Services, arrived: Arrived[EmbeddingRequest]) -> list[Prompt]:
    """The inputs as tokens, each of which the model has room for; raises ApiError 400."""
    body, sampling = arrived.body, services.sampling
    if body.truncate_prompt_tokens == 0:
        raise bad_field("truncate_prompt_tokens", "must be -1 or at least 1")
    prompts = await services.prompts.completion(
        body.input,
        body.add_special_tokens is not False,
        arrived.model,
        sampling.limits.max_embedding_inputs,
    )
    most = sampling.max_model_len
    prompts = [last_tokens(prompt, body.truncate_prompt_tokens, most) for prompt in prompts]
    for index, prompt in enumerate(prompts):
        if len(prompt.token_ids) > most:
            raise bad_field(
                f"input[{index}]",
                f"has {len(prompt.token_ids)} tokens, this model's maximum context length is "
                f"{most} tokens",
                "context_length_exceeded",
            )
    return prompts


def _choices(arrived: Arrived[EmbeddingRequest], prompts: Sequence[Prompt]) -> list[ChoiceRequest]:
    body, tenant = arrived.body, arrived.tenant
    priority = (body.priority or 0) + tenant.priority
    terms = Terms(tenant=tenant, priority=priority, cache_salt=body.cache_salt)
    pairs = [(prompt.token_ids, POOLED) for prompt in prompts]
    pooling = body.pooling or "last"
    return [
        replace(choice, generation=replace(choice.generation, pooling=pooling))
        for choice in expand_choices(pairs, arrived.model.digest, terms)
    ]


async def _pooled(
    services: Services, arrived: Arrived[EmbeddingRequest], choices: Sequence[ChoiceRequest]
) -> AsyncGenerator[ChoiceDelta]:
    """The deltas of all inputs, some at a time."""
    at_once = min(MAX_AT_ONCE, services.sampling.limits.max_sequences)
    for start in range(0, len(choices), at_once):
        some = choices[start : start + at_once]
        deltas = services.generator.run(some, arrived.model, arrived.arrival)
        async with aclosing(deltas):
            async for item in deltas:
                yield item
