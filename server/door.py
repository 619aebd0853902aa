"""What every HTTP request passes first: request id, keys, the gate of a draining server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..gateway.fleet.headers import MESSAGES_REQUEST_ID, REQUEST_ID
from ..gateway.fleet.http_server import request_id_of
from ..gateway.fleet.messages_errors import is_messages_path
from ..gateway.fleet.tracing import Tracer
from .access import Tenant
from .adapters.leases import Lease
from .admission import Admission, is_admin_path, is_fleet_path, is_tenant_path, model_of
from .errors import REQUEST_ID_STATE, ApiError, shaped
from .fleet.ledger import LedgerEntry, RequestLedger
from .gate import Gate
from .request_trace import traced

TENANT_STATE = "tenant"
LEASE_STATE = "leases"
FLEET_STATE = "fleet"
MODEL_STATE = "fleet_model"

# What a server that shuts down no longer begins, and lets end.
_WORK = ("POST", "PUT")


class Door:
    """ASGI middleware around the application; ``ledger`` notes the fleet's requests."""

    def __init__(
        self,
        app: ASGIApp,
        gate: Gate,
        admission: Admission,
        ledger: RequestLedger | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._app = app
        self._gate = gate
        self._admission = admission
        self._ledger = ledger or RequestLedger()
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what may not come in, pass on the rest."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        leases = scope.setdefault("state", {})[LEASE_STATE] = list[Lease]()
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get(REQUEST_ID, ""))
        scope["state"][REQUEST_ID_STATE] = request_id
        send = _with_request_id(send, request_id, _id_headers(scope["path"]))
        try:
            guarded = self._admit(scope, headers)
            with ExitStack() as inside:
                if scope["state"].get(FLEET_STATE):
                    send = _noted(send, inside.enter_context(self._ledger.enter(request_id)))
                if guarded and scope["method"] in _WORK:
                    inside.enter_context(self._gate.enter())
                    if self._tracer is not None:
                        send = inside.enter_context(traced(self._tracer, headers, scope, send))
                await self._app(scope, receive, send)
        except ApiError as error:
            await shaped(error, scope)(scope, receive, send)
        finally:
            for lease in leases:
                lease.release()

    def _admit(self, scope: Scope, headers: Headers) -> bool:
        """Whether this is a guarded path; notes in the request's state who sends it.

        Without the fleet's secret there is nothing under ``/fleet/``.
        """
        path = scope["path"]
        if not path.isprintable():
            # A route also fits a path with a newline behind it, which is nobody's path here.
            raise ApiError("There is nothing at this path.", status=404, code="not_found")
        if is_admin_path(path):
            self._admission.check_admin(headers)
        elif is_fleet_path(path):
            self._admission.check_fleet(headers, scope["method"], path)
        elif is_tenant_path(path):
            state = scope["state"]
            state[TENANT_STATE] = self._admission.tenant(headers)
            state[FLEET_STATE] = self._admission.is_fleet(headers)
            state[MODEL_STATE] = model_of(headers) if state[FLEET_STATE] else None
        else:
            return False
        return True


def tenant_of(request: Request) -> Tenant:
    """The tenant that the door noted for a request whose path ``is_tenant_path``."""
    tenant = getattr(request.state, TENANT_STATE)
    assert isinstance(tenant, Tenant)
    return tenant


def model_for(request: Request) -> str | None:
    """The catalog's name that a gateway has answer, in place of the body's ``model``."""
    name = getattr(request.state, MODEL_STATE)
    assert name is None or isinstance(name, str)
    return name


def keep_lease(request: Request, lease: Lease) -> None:
    """Have the door release a lease when the response is over, streams to their last byte."""
    getattr(request.state, LEASE_STATE).append(lease)


def _id_headers(path: str) -> Sequence[str]:
    """The names under which clients of a path look for a request's id."""
    return (REQUEST_ID, MESSAGES_REQUEST_ID) if is_messages_path(path) else (REQUEST_ID,)


def _with_request_id(send: Send, request_id: str, names: Sequence[str]) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            for name in names:
                MutableHeaders(scope=message)[name] = request_id
        await send(message)

    return send_with_id


def _noted(send: Send, entry: LedgerEntry) -> Send:
    async def send_and_note(message: Message) -> None:
        await send(message)
        entry.is_sent = True

    return send_and_note
