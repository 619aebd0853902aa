"""The load itself: streamed requests over real HTTP, each timed token by token."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import httpx
import msgspec

from .workload import PlannedRequest, Workload, request_body


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request as its client saw it; times are seconds, ``started`` on the run's clock.

    ``gaps`` are the times between two chunks with output; a chunk may hold several tokens.
    ``num_output_tokens`` is the server's ``usage``, or the number of chunks without one.
    """

    model: str
    started: float
    seconds: float
    first_token: float | None = None
    gaps: list[float] = field(default_factory=list)
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False
    error: str | None = None


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_output(self) -> bool:
        """Whether a token came; not with a chat's opening role, nor with a bare finish reason.

        An empty text counts otherwise: the token's bytes may not make a character yet.
        """
        delta = self.delta or _Delta(content=self.text)
        if delta.content or delta.reasoning_content:
            return True
        return delta.content == "" and delta.role is None and self.finish_reason is None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class LoadError(Exception):
    """A request that did not end as it should; the message is what the report counts."""


async def run_load(
    client: httpx.AsyncClient,
    workload: Workload,
    requests: list[PlannedRequest],
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Send every request as the workload says; the outcomes, in the order of the requests."""
    start = time.perf_counter()
    slots = asyncio.Semaphore(len(requests) or 1 if workload.rate else workload.concurrency)

    async def one(request: PlannedRequest) -> Outcome:
        await asyncio.sleep(start + request.arrival - time.perf_counter())
        async with slots:
            outcome = await send(client, workload, request, start)
        on_done(outcome)
        return outcome

    return await asyncio.gather(*(one(request) for request in requests))


async def send(
    client: httpx.AsyncClient, workload: Workload, request: PlannedRequest, run_start: float
) -> Outcome:
    """One request, streamed to its end; what goes wrong becomes the outcome's ``error``."""
    start = time.perf_counter()
    tally = _Tally()
    error: str | None = None
    try:
        await _stream(client, workload, request, tally)
    except LoadError as wrong:
        error = str(wrong)
    except (httpx.HTTPError, msgspec.MsgspecError) as wrong:
        error = f"{type(wrong).__name__}: {wrong}".rstrip(": ")
    usage = tally.usage or _Usage(completion_tokens=len(tally.times))
    return Outcome(
        model=request.model,
        started=start - run_start,
        seconds=time.perf_counter() - start,
        first_token=tally.times[0] - start if tally.times else None,
        gaps=[after - before for before, after in zip(tally.times, tally.times[1:], strict=False)],
        num_input_tokens=usage.prompt_tokens,
        num_output_tokens=usage.completion_tokens,
        has_usage=tally.usage is not None,
        error=error,
    )


@dataclass(slots=True)
class _Tally:
    """What has come of one stream so far; ``times`` are those of the chunks with output."""

    times: list[float] = field(default_factory=list)
    usage: _Usage | None = None
    finished: bool = False


async def _stream(
    client: httpx.AsyncClient, workload: Workload, request: PlannedRequest, tally: _Tally
) -> None:
    path = "chat/completions" if workload.endpoint == "chat" else "completions"
    body = msgspec.json.encode(request_body(workload, request))
    async with client.stream("POST", path, content=body) as response:
        if response.status_code != httpx.codes.OK:
            await response.aread()
            raise LoadError(f"HTTP {response.status_code}: {response.text[:200]}")
        async for data in _events(response):
            if data == b"[DONE]":
                break
            now = time.perf_counter()
            _take(msgspec.json.decode(data, type=_Chunk), now, tally)
        else:
            raise LoadError("the stream ended without [DONE]")
    # Without output but with a reason, the model had nothing to say: no fault of the server.
    if not (tally.times or tally.finished):
        raise LoadError("the stream held no output")


def _take(chunk: _Chunk, now: float, tally: _Tally) -> None:
    if bytes(chunk.error) not in (b"", b"null"):
        raise LoadError(f"error in the stream: {bytes(chunk.error).decode()[:200]}")
    if chunk.usage is not None:
        tally.usage = chunk.usage
    if any(choice.has_output for choice in chunk.choices):
        tally.times.append(now)
    tally.finished |= any(choice.finish_reason is not None for choice in chunk.choices)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """The ``data`` of each server-sent event; comments and other fields are passed over.

    Works on the raw bytes: httpx's text lines cost a load client several times as much.
    """
    pending = b""
    async for part in response.aiter_raw():
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
