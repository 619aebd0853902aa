"""vLLM's two endpoints for adapters: its paths, bodies and answers, under the admin key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar
from weakref import WeakValueDictionary

from fastapi import FastAPI, Query, Request
from starlette.responses import PlainTextResponse, Response

from ...lora.errors import AdapterError
from ..admin_answers import answered, json_answer
from ..body import parse_json, read_body
from ..errors import ApiError, bad_field
from ..openai import Part
from ..schema import answers, body_schema
from ..services import Services
from .api import MAX_WAIT_SECONDS
from .bodies import LoadLora, LoraAnswer, UnloadLora
from .sources import parse_source

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"

Wait = Annotated[float | None, Query(ge=0, le=MAX_WAIT_SECONDS)]

BodyT = TypeVar("BodyT", bound=Part)


def add_vllm_lora(app: FastAPI, services: Services) -> None:
    """Add the routes; the door asks for the admin key, as below ``/admin``."""
    # Of two loads under one name the second is to find the first.
    locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @app.post(
        LOAD,
        response_class=PlainTextResponse,
        responses=answers(LoraAnswer),
        openapi_extra=body_schema(LoadLora),
    )
    async def load_lora_adapter(request: Request) -> Response:
        """Add an adapter as vLLM does; with ``load_inplace`` it may replace one."""
        body = await _parsed(services, request, LoadLora)
        name = _given("lora_name", body.lora_name)
        async with locks.setdefault(name, asyncio.Lock()):
            changed = await _load(services, name, body)
        message = f"Success: LoRA adapter '{name}' added successfully."
        return _answer(request, LoraAnswer(message=message, lora_name=name, changed=changed))

    @app.post(
        UNLOAD,
        response_class=PlainTextResponse,
        responses=answers(LoraAnswer, 200, 202),
        openapi_extra=body_schema(UnloadLora),
    )
    async def unload_lora_adapter(request: Request, wait: Wait = None) -> Response:
        """Remove an adapter as vLLM does; with ``wait`` 202 if requests hold it after that."""
        body = await _parsed(services, request, UnloadLora)
        name = _given("lora_name", body.lora_name)
        with _in_words_of_vllm():
            result = await answered(services.adapters.delete(name, wait or 0))
        message = f"Success: LoRA adapter '{name}' removed successfully."
        answer = LoraAnswer(message=message, lora_name=name, done=result.done)
        return _answer(request, answer, 200 if result.done or wait is None else 202)


async def _load(services: Services, name: str, body: LoadLora) -> bool:
    """Whether anything changed; raises ApiError 400 for a name that is loaded already."""
    path = _given("lora_path", body.lora_path)
    if not body.load_inplace and name in services.catalog.adapter_names:
        raise bad_field(
            "lora_name",
            f"The lora adapter {name!r} has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True.",
            code="adapter_exists",
        )
    with _in_words_of_vllm():
        source = await asyncio.to_thread(parse_source, path, services.source_policy)
        return (await answered(services.adapters.put(name, source))).changed


async def _parsed(services: Services, request: Request, model: type[BodyT]) -> BodyT:
    return parse_json(model, await read_body(request, services.config.limits))


def _given(field: str, text: str | None) -> str:
    if not text:
        raise bad_field(field, "is required", code="missing_required_parameter")
    return text


@contextmanager
def _in_words_of_vllm() -> Iterator[None]:
    """The fields as vLLM's bodies name them."""
    try:
        yield
    except AdapterError as error:
        if error.field != "source":
            raise
        raise AdapterError("lora_path", error.message) from error
    except ApiError as error:
        if error.param == "name":
            error.param = "lora_name"
        raise


def _answer(request: Request, answer: LoraAnswer, status: int = 200) -> Response:
    """vLLM's plain text; JSON for who takes nothing else."""
    ranges = request.headers.get("accept", "").split(",")
    if all(media.partition(";")[0].strip() == "application/json" for media in ranges):
        return json_answer(answer, status)
    return PlainTextResponse(answer.message, status)
