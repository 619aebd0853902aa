"""The HTTP application: routes over ``Services``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from .. import __version__
from .adapters.api import add_adapter_api
from .adapters.bodies import BODIES, STRUCTS
from .adapters.vllm_lora import add_vllm_lora
from .admin import add_admin
from .admission import Admission
from .chat import open_chat
from .completions import open_completion
from .door import Door
from .endpoint import answer
from .errors import install_error_handlers
from .fleet.api import add_fleet
from .metrics import CONTENT_TYPE
from .model_cards import ModelCards
from .openai import ChatRequest, CompletionRequest
from .paging import After, Limit
from .pins import PinRequest
from .schema import answers, body_schema, install_openapi
from .services import Services
from .wire import ModelCard, ModelList, encode

_STREAM_OR_JSON: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}


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
    install_error_handlers(app)
    _add_generation(app, services)
    _add_models(app, services)
    _add_operations(app, services)
    add_admin(app, services)
    add_adapter_api(app, services)
    add_vllm_lora(app, services)
    if replica is not None:
        add_fleet(app, replica)
    bodies = (ChatRequest, CompletionRequest, PinRequest, *BODIES)
    install_openapi(app, bodies, (ModelCard, ModelList, *STRUCTS))
    return app


def _add_generation(app: FastAPI, services: Services) -> None:
    @app.post(
        "/v1/chat/completions", responses=_STREAM_OR_JSON, openapi_extra=body_schema(ChatRequest)
    )
    async def create_chat_completion(request: Request) -> Response:
        """Answer a chat, whole or as a stream of events."""
        return await answer(request, services, ChatRequest, open_chat)

    @app.post(
        "/v1/completions",
        responses=_STREAM_OR_JSON,
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
    @app.get("/health")
    async def health() -> Response:
        """Whether this process and its engine are alive."""
        alive = services.supervisor.alive
        reason = "ok" if alive else services.supervisor.engine.exit_reason
        return JSONResponse({"status": reason}, status_code=200 if alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether requests sent now would get anywhere."""
        if services.gate.closed:
            return JSONResponse({"status": "shutting down"}, status_code=503)
        state = services.monitor.readiness()
        return JSONResponse({"status": state.reason}, status_code=200 if state.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(services.metrics.render(), media_type=CONTENT_TYPE)

    @app.get("/version")
    async def version() -> Response:
        """The version of this server."""
        return JSONResponse({"version": __version__})


def _json(body: ModelCard | ModelList) -> Response:
    return Response(encode(body), media_type="application/json")
