"""A replica without a model: it counts words, resumes them, and fails in every way on command."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from aiohttp import web
from mock_shapes import NUM_PROMPT_TOKENS, event_at, usage_at, whole_at

from branchline.gateway.endpoints import ENDPOINTS
from branchline.gateway.fleet import headers as fleet
from branchline.gateway.fleet.messages_errors import is_messages_path, messages_error
from branchline.gateway.fleet.records import AdapterPlace, AdapterPlaces, ReplicaReport
from branchline.gateway.fleet.resume import (
    COMMENT,
    KEEP_ALIVE,
    ChoiceProgress,
    Failure,
    ResumedChoice,
    ResumeRecord,
    StreamComment,
    StreamOpening,
)

FINGERPRINT = "f" * 32
DONE = b"data: [DONE]\n\n"

Kind = Literal["reset", "hang", "status", "cut", "cut_whole", "silence", "failure", "end", "leave"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; ``after`` tokens, -1: before the answer's head."""

    kind: Kind
    after: int = -1
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    code: str = "mock"


def word(number: int) -> str:
    """The text of one token."""
    return f"w{number} "


def whole_text(num_tokens: int) -> str:
    """An undisturbed answer."""
    return "".join(map(word, range(num_tokens)))


class MockReplica:
    """``faults`` are for the next requests, one each; ``bodies`` is what came."""

    def __init__(self, replica_id: str, secret: str, model: str = "base") -> None:
        self.replica_id = replica_id
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.records: list[ResumeRecord] = []
        self.known: set[str] = set()
        self.kept: dict[str, str] = {}
        self.kept_text = ""
        self.has_no_redis = False
        self.num_unknown = 0
        self.cuts_kept_after: int | None = None
        self.kept_peers: list[object] = []
        self.num_left = 0
        self.num_probes = 0
        self.token_seconds = 0.0
        self.padding = ""
        self.num_waiting = 0
        self.fingerprint = FINGERPRINT
        self.places: list[AdapterPlace] = []
        self.url = ""
        self._secret, self._model = secret, model
        self._beat = 0
        self._runner: web.AppRunner | None = None
        self._port = 0

    def report(self) -> ReplicaReport:
        """As it would tell it."""
        self._beat += 1
        return ReplicaReport(
            replica_id=self.replica_id,
            url=self.url,
            epoch=f"epoch-{self.replica_id}",
            beat=self._beat,
            state="ready",
            fingerprint=self.fingerprint,
            models=[self._model],
            max_model_len=4096,
            num_waiting=self.num_waiting,
            max_num_seqs=64,
            max_queued_requests=10,
            prefill_tokens_per_second=1000.0,
        )

    async def start(self) -> None:
        """Listen, at the same port as before if it was stopped."""
        app = web.Application(client_max_size=1 << 26)
        for path in ENDPOINTS:
            app.router.add_post(path, self._generate)
        app.router.add_route("*", "/v1/responses/{rest:.*}", self._kept_response)
        app.router.add_get("/fleet/state", self._state)
        app.router.add_get("/fleet/adapters", self._adapters)
        app.router.add_get("/fleet/requests/{id}", self._request)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Refuse connections and break those there are."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _state(self, request: web.Request) -> web.Response:
        return _json(self.report())

    async def _adapters(self, request: web.Request) -> web.Response:
        return _json(AdapterPlaces(f"epoch-{self.replica_id}", 0, self.places))

    async def _request(self, request: web.Request) -> web.Response:
        self.num_probes += 1
        return _json({"known": request.match_info["id"] in self.known, "sent": False})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get(fleet.FLEET_SECRET) != self._secret:
            return _error(401, "unauthorized")
        raw = await request.read()
        length = int(request.headers.get(fleet.RESUME, "0"))
        record = msgspec.json.decode(raw[:length], type=ResumeRecord) if length else None
        if record is not None:
            self.records.append(record)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.bodies.append(raw[length:])
        fault = self.faults.popleft() if self.faults else self.always
        request_id = request.headers[fleet.REQUEST_ID]
        self.known.add(request_id)
        try:
            return await self._answer(request, msgspec.json.decode(raw[length:]), record, fault)
        except asyncio.CancelledError:
            self.num_left += 1
            raise
        finally:
            self.known.discard(request_id)

    async def _answer(
        self,
        request: web.Request,
        body: dict[str, Any],
        record: ResumeRecord | None,
        fault: Fault | None,
    ) -> web.StreamResponse:
        if fault is not None and fault.after < 0:
            early = await self._fail_early(request, fault)
            if early is not None:
                return early
        if record is not None and not record.opening.fingerprint.startswith(self.fingerprint):
            return _error(409, "resume_mismatch")
        if body.get("stream"):
            return await self._stream(request, body, record, fault)
        if (before := body.get("previous_response_id")) and before not in self.kept:
            if self.has_no_redis:
                headers = {"retry-after": "1"}
                return _error(503, "response_store_unavailable", headers)
            return _error(400, "previous_response_not_found")
        num_tokens = _num_tokens(body)
        await asyncio.sleep(self.token_seconds * num_tokens)
        return _json(whole_at(request.path, whole_text(num_tokens), num_tokens))

    async def _kept_response(self, request: web.Request) -> web.StreamResponse:
        """``kept`` are names of those that are here, with their tenants."""
        if request.headers.get(fleet.FLEET_SECRET) != self._secret:
            return _error(401, "unauthorized")
        response_id = request.match_info["rest"].partition("/")[0]
        if self.kept.get(response_id) != request.headers[fleet.TENANT]:
            self.num_unknown += 1
            if self.has_no_redis:
                return _error(503, "response_store_unavailable", {"retry-after": "1"})
            return _error(404, "response_not_found")
        assert request.transport is not None
        self.kept_peers.append(request.transport.get_extra_info("peername"))
        if self.cuts_kept_after is not None:
            cut = web.StreamResponse(headers={"content-length": str(self.cuts_kept_after + 1)})
            await cut.prepare(request)
            await cut.write(b"x" * self.cuts_kept_after)
            await asyncio.sleep(0.05)
            request.transport.close()
            return cut
        told = {"id": response_id, "method": request.method, "path": request.path_qs}
        return _json({**told, "text": self.kept_text} if self.kept_text else told)

    async def _fail_early(self, request: web.Request, fault: Fault) -> web.Response | None:
        if fault.kind == "reset":
            assert request.transport is not None
            request.transport.abort()
        elif fault.kind == "status":
            headers = dict(fault.headers)
            if not is_messages_path(request.path):
                return _error(fault.status, fault.code, headers)
            error = messages_error(fault.status, fault.code, request.headers[fleet.REQUEST_ID])
            headers[fleet.ERROR_CODE] = fault.code
            return web.json_response(error, status=fault.status, headers=headers)
        elif fault.kind == "leave":
            self.known.clear()
            await asyncio.Event().wait()
        elif fault.kind == "hang":
            await asyncio.Event().wait()
        return None

    async def _stream(
        self,
        request: web.Request,
        body: dict[str, Any],
        record: ResumeRecord | None,
        fault: Fault | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        with_state = request.headers.get(fleet.STREAM_STATE) == "1"
        async for block in self._blocks(request.path, body, record):
            comment, event, number = block
            if fault is not None and number == fault.after:
                await self._fail_late(request, response, fault, comment + event)
                return response
            await response.write(comment + event if with_state else event)
            await asyncio.sleep(self.token_seconds)
        await response.write(DONE)
        return response

    async def _blocks(
        self, path: str, body: dict[str, Any], record: ResumeRecord | None
    ) -> AsyncIterator[tuple[bytes, bytes, int]]:
        """Comment, event, and how many tokens were there before."""
        num_tokens = _num_tokens(body)
        choice = record.choices[0] if record and record.choices else ResumedChoice(0)
        begin, finished = len(choice.token_ids), choice.finish_reason is not None
        opening = StreamOpening("mock", 1, f"{self.fingerprint}.x", ["p"], [7])
        if record is None:
            delta = {"index": 0, "delta": {"role": "assistant", "content": ""}}
            first = StreamComment(1, opening, num_prompt_tokens=NUM_PROMPT_TOKENS)
            yield _comment(first), event_at(path, 0, {"id": "mock", "choices": [delta]}), begin
        for number in range(begin, num_tokens if not finished else 0):
            finish = "length" if number == num_tokens - 1 else None
            content = word(number) + self.padding
            delta = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
            progress = ChoiceProgress(0, [number], len(whole_text(number + 1)), finish)
            comment = StreamComment(1, None, [progress], 3)
            event = event_at(path, number + 1, {"id": "mock", "choices": [delta]})
            yield _comment(comment), event, number + 1
        options = body.get("stream_options") or {}
        if options.get("include_usage") and not (record and record.usage_sent):
            usage = usage_at(path, num_tokens)
            event = event_at(path, num_tokens + 1, {"id": "mock", "choices": [], "usage": usage})
            yield _comment(StreamComment(1, usage_sent=True)), event, num_tokens

    async def _fail_late(
        self, request: web.Request, response: web.StreamResponse, fault: Fault, block: bytes
    ) -> None:
        if fault.kind == "failure":
            comment = StreamComment(1, failure=Failure(fault.status, fault.code))
            error = event_at(request.path, 0, {"error": {"message": "mock", "code": fault.code}})
            await response.write(_comment(comment) + error + DONE)
        elif fault.kind == "silence":
            await asyncio.Event().wait()
        elif fault.kind in ("cut", "cut_whole"):
            assert request.transport is not None
            await response.write(block if fault.kind == "cut_whole" else block[:-9])
            await asyncio.sleep(0.02)
            request.transport.abort()


def _num_tokens(body: dict[str, Any]) -> int:
    return int(body.get("max_output_tokens") or body.get("max_tokens", 5))


def _comment(comment: StreamComment) -> bytes:
    return KEEP_ALIVE + COMMENT + msgspec.json.encode(comment) + b"\n\n"


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def _error(status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
    detail = {"message": code, "type": "mock", "param": None, "code": code}
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": detail}),
        headers=headers,
        content_type="application/json",
    )


@asynccontextmanager
async def mock_replicas(number: int, secret: str) -> AsyncIterator[list[MockReplica]]:
    """So many, that run in this event loop."""
    replicas = [MockReplica(f"r{index}", secret) for index in range(number)]
    try:
        for replica in replicas:
            await replica.start()
        yield replicas
    finally:
        for replica in replicas:
            await replica.stop()
