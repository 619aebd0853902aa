"""A client that times each answer token by token, and reads what the server had cached."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import click
import httpx
import msgspec

TIMEOUT_SECONDS = 600.0


class RequestError(click.ClickException):
    """A request that did not end as it should: it ends the benchmark, whose figures are void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer; ``started`` and ``arrivals`` are seconds on one steady clock.

    ``arrivals`` has a moment and a number of tokens for each event with output.
    """

    started: float
    arrivals: list[tuple[float, int]]
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    num_prompt_tokens: int
    num_cached_tokens: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from sending the request to its first token."""
        return self.arrivals[0][0] - self.started

    @property
    def ended(self) -> float:
        """When the last token came."""
        return self.arrivals[-1][0]


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class _Details(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    prompt_token_ids: list[int] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


@dataclass(slots=True)
class _Reading:
    """What has come of one answer so far."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    usage: _Usage | None = None

    def take(self, chunk: _Chunk, now: float) -> None:
        """Add one event."""
        if bytes(chunk.error) not in (b"", b"null"):
            raise RequestError(f"error in the stream: {bytes(chunk.error).decode()[:200]}")
        self.usage = chunk.usage or self.usage
        self.prompt_token_ids += chunk.prompt_token_ids
        for choice in chunk.choices:
            self.prompt_token_ids += choice.prompt_token_ids
            self.text.append((choice.delta.content if choice.delta else choice.text) or "")
            if choice.token_ids:
                self.token_ids += choice.token_ids
                self.arrivals.append((now, len(choice.token_ids)))


class Client:
    """One user of an OpenAI-compatible server; ``url`` ends in ``/v1``.

    ``transport`` takes the network's place in tests.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=TIMEOUT_SECONDS,
            # The benchmark alone sets the load.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            transport=transport,
        )

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Client]:
        """Close the connections at the end."""
        async with self._http:
            yield self

    async def complete(
        self, model: str, prompt: Sequence[int], max_tokens: int, salt: str | None = None
    ) -> Answer:
        """Exactly ``max_tokens`` greedy tokens after the token ids of ``prompt``.

        Nothing is found in the cache that came under another ``salt``.
        """
        body = {"model": model, "prompt": list(prompt), "ignore_eos": True, "cache_salt": salt}
        return await self._stream("completions", body, max_tokens)

    async def chat(
        self, model: str, messages: list[dict[str, str]], max_tokens: int, salt: str | None = None
    ) -> Answer:
        """A greedy answer to a chat, which may end before ``max_tokens``; ``salt`` as above."""
        body = {"model": model, "messages": messages, "cache_salt": salt}
        return await self._stream("chat/completions", body, max_tokens)

    async def _stream(self, path: str, body: Mapping[str, object], max_tokens: int) -> Answer:
        body = {
            **body,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        reading, started = _Reading(), time.perf_counter()
        try:
            async with self._http.stream("POST", path, json=body) as response:
                await _read(response, reading)
        except (httpx.HTTPError, msgspec.MsgspecError) as error:
            raise RequestError(f"{type(error).__name__}: {error}") from error
        if reading.usage is None or not reading.arrivals:
            raise RequestError("the stream held no tokens, or no usage")
        details = reading.usage.prompt_tokens_details
        return Answer(
            started=started,
            arrivals=reading.arrivals,
            prompt_token_ids=reading.prompt_token_ids,
            token_ids=reading.token_ids,
            text="".join(reading.text),
            num_prompt_tokens=reading.usage.prompt_tokens,
            num_cached_tokens=details.cached_tokens if details else 0,
        )


async def _read(response: httpx.Response, reading: _Reading) -> None:
    if response.status_code != httpx.codes.OK:
        await response.aread()
        raise RequestError(f"HTTP {response.status_code}: {response.text[:200]}")
    async for line in response.aiter_lines():
        now, data = time.perf_counter(), line.removeprefix("data: ")
        if data == "[DONE]":
            return
        if data.startswith("{"):
            reading.take(msgspec.json.decode(data, type=_Chunk), now)
    raise RequestError("the stream ended without [DONE]")
