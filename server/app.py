"""The HTTP application: routes over ``Services``."""

from __future__ import annotations

from fastapi import FastAPI, Request
from msgspec import Struct
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from .. import __version__
from ..gateway.fleet.cors import cors_settings
from . import tokenize_api
from .adapters.api import add_adapter_api
from .adapters.bodies import BODIES, STRUCTS
from .adapters.vllm_lora import add_vllm_lora
from .admin import add_admin
from .admission import Admission
from .chat import open_chat
from .completions import open_completion
from .door import Door
from .embeddings import EmbeddingRequest, add_embeddings
from .endpoint import answer
from .errors import install_error_handlers
from .fleet.api import add_fleet
from .messages import api as messages_api
from .metrics import CONTENT_TYPE
from .model_cards import ModelCards
from .openai import ChatRequest, CompletionRequest
from .paging import After, Limit
from .pins import PinRequest
from .responses import api as responses_api
from .schema import answers, body_schema, install_openapi, plain_answers, stream_or_whole
from .services import Services
from .wire import ChatCompletion, Completion, EmbeddingList, ModelCard, ModelList, encode


def create_app(services: Services) -> FastAPI:
    """The application around started services."""
    app = FastAPI(
        title="Branchline",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    admission = Admission(services.config.access, services.config.host)
    replica = services.replica
    ledger = None if replica is None else replica.ledger
    app.add_middleware(
        Door, gate=services.gate, admission=admission, ledger=ledger, tracer=services.tracer
    )
    if services.config.cors_origins:  # outside of the door: preflights bring no key
        app.add_middleware(CORSMiddleware, **cors_settings(services.config.cors_origins))
    install_error_handlers(app)
    _add_generation(app, services)
    add_embeddings(app, services)
    messages_api.add_messages(app, services)
    responses_api.add_responses(app, services)
    tokenize_api.add_tokenize(app, services)
    _add_models(app, services)
    _add_operations(app, services)
    add_admin(app, services)
    add_adapter_api(app, services)
    add_vllm_lora(app, services)
    if replica is not None:
        add_fleet(app, replica)
    bodies: list[type[BaseModel]] = [
        ChatRequest,
        CompletionRequest,
        EmbeddingRequest,
        PinRequest,
        *BODIES,
    ]
    structs: list[type[Struct]] = [
        ChatCompletion,
        Completion,
        EmbeddingList,
        ModelCard,
        ModelList,
        *STRUCTS,
    ]
    for api in (responses_api, messages_api, tokenize_api):
        bodies += api.BODIES
        structs += api.STRUCTS
    install_openapi(app, bodies, structs)
    return app


def _add_generation(app: FastAPI, services: Services) -> None:
    @app.post(
        "/v1/chat/completions",
        responses=stream_or_whole(ChatCompletion),
        openapi_extra=body_schema(ChatRequest),
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer a chat, whole or as a stream of events."""
        return await answer(request, services, ChatRequest, open_chat)

    @app.post(
        "/v1/completions",
        responses=stream_or_whole(Completion),
        openapi_extra=body_schema(CompletionRequest),
    )
    async def create_completion(request: Request) -> Response:
        """Continue one or more prompts, whole or as a stream of events."""
        return await answer(request, services, CompletionRequest, open_completion)


def _add_models(app: FastAPI, services: Services) -> None:
    cards = ModelCards(services)

    @app.get("/v1/models", responses=answers(ModelList))
    async def list_models(limit: Limit = None, after: After = None) -> Response:
        """Every name that may be put in ``model``, or a page of ``limit`` after ``after``."""
        return _json(cards.page(limit, after))

    @app.get("/v1/models/{model:path}", responses=answers(ModelCard))
    async def get_model(model: str) -> Response:
        """Describe one name."""
        return _json(cards.get(model))


def _add_operations(app: FastAPI, services: Services) -> None:
    @app.get("/health", responses=plain_answers(200, 503))
    async def health() -> Response:
        """Whether this process and its engine are alive."""
        alive = services.supervisor.alive
        reason = "ok" if alive else services.supervisor.engine.exit_reason
        return JSONResponse({"status": reason}, status_code=200 if alive else 503)

    @app.get("/ready", responses=plain_answers(200, 503))
    async def ready() -> Response:
        """Whether requests sent now would get anywhere."""
        if services.gate.closed:
            return JSONResponse({"status": "shutting down"}, status_code=503)
        state = services.monitor.readiness()
        return JSONResponse({"status": state.reason}, status_code=200 if state.ready else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses=plain_answers(200, media_type="text/plain"),
    )
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(services.metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/version", responses=plain_answers(200))
    async def version() -> Response:
        """The version of this server."""
        return JSONResponse({"version": __version__})


def _json(body: ModelCard | ModelList) -> Response:
    return Response(encode(body), media_type="application/json")
