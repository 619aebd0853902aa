"""Clients that stream without end through a gateway, and count what came lost, doubled or wrong."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai

REQUEST_SECONDS = 90.0


@dataclass(frozen=True)
class Case:
    """One request whose whole answer is known: ``body`` holds all that the API takes."""

    name: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Streamed:
    """What a client made of a stream, by choice: text, tokens with logprobs, why it ended."""

    texts: Mapping[int, str]
    tokens: Mapping[int, tuple[str, ...]]
    logprobs: Mapping[int, tuple[float, ...]]
    finish: Mapping[int, str]
    num_tokens: int | None


@dataclass
class Verdicts:
    """What came of a load; ``wrong`` holds (case, expected, got) of the first few."""

    num_done: int = 0
    num_right: int = 0
    wrong: list[tuple[str, Streamed, Streamed]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    longest_gap: float = 0.0
    done_at: list[float] = field(default_factory=list)

    def explain(self) -> str:
        """For an assertion."""
        shown = "\n".join(f"{name}\n  {want}\n  {got}" for name, want, got in self.wrong[:3])
        return f"{self.num_right} of {self.num_done} right; errors {self.errors[:5]}; {shown}"

    def assert_all_right(self, at_least: int) -> None:
        """None lost, none doubled, none wrong; and there were some."""
        assert not self.errors, self.explain()
        assert not self.wrong, self.explain()
        assert self.num_right >= at_least, self.explain()


async def stream_once(client: openai.AsyncOpenAI, case: Case) -> tuple[Streamed, float]:
    """One answer and the longest time between two of its chunks, in seconds."""
    texts: dict[int, str] = {}
    tokens: dict[int, tuple[str, ...]] = {}
    logprobs: dict[int, tuple[float, ...]] = {}
    finish: dict[int, str] = {}
    num_tokens: int | None = None
    gap, last = 0.0, time.monotonic()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async for chunk in await client.chat.completions.create(**case.body, **options):
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            index = choice.index
            texts[index] = texts.get(index, "") + (choice.delta.content or "")
            if choice.logprobs is not None and choice.logprobs.content:
                entries = choice.logprobs.content
                tokens[index] = tokens.get(index, ()) + tuple(entry.token for entry in entries)
                logprobs[index] = logprobs.get(index, ()) + tuple(e.logprob for e in entries)
            if choice.finish_reason is not None:
                assert index not in finish, "a choice ended twice"
                finish[index] = choice.finish_reason
    return Streamed(texts, tokens, logprobs, finish, num_tokens), gap


def same(want: Streamed, got: Streamed) -> bool:
    """Equal but for the last digits of logprobs, which a prefill sums in another order."""
    plain = ("texts", "tokens", "finish", "num_tokens")
    if any(getattr(want, name) != getattr(got, name) for name in plain):
        return False
    return all(
        abs(a - b) < 1e-3
        for index, values in want.logprobs.items()
        for a, b in zip(values, got.logprobs[index], strict=True)
    )


class StreamLoad:
    """Streams ``cases`` in turn from ``num_clients`` at once, on a thread, until ``stop``."""

    def __init__(self, urls: Sequence[str], cases: Sequence[Case], num_clients: int) -> None:
        self.verdicts = Verdicts()
        self._urls, self._cases, self._num_clients = urls, cases, num_clients
        self._references: dict[str, Streamed] = {}
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def learn(self, url: str) -> None:
        """Ask for each case once, undisturbed."""

        async def ask() -> None:
            async with _client(url) as client:
                for case in self._cases:
                    self._references[case.name], _ = await stream_once(client, case)

        asyncio.run(ask())

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float = REQUEST_SECONDS) -> Verdicts:
        """Let the running streams end, and give what came of all."""
        self._stopping = True
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "streams hang: " + self.verdicts.explain()
        return self.verdicts

    def wait_for_more(self, num: int, seconds: float = 60.0) -> None:
        """Wait until so many more answers are there."""
        goal, deadline = self.verdicts.num_done + num, time.monotonic() + seconds
        while self.verdicts.num_done < goal:
            assert time.monotonic() < deadline, self.verdicts.explain()
            time.sleep(0.02)

    async def _run(self) -> None:
        await asyncio.gather(*(self._one(number) for number in range(self._num_clients)))

    async def _one(self, number: int) -> None:
        async with _client(self._urls[number % len(self._urls)]) as client:
            turn = number
            while not self._stopping:
                await self._ask(client, self._cases[turn % len(self._cases)])
                turn += 1

    async def _ask(self, client: openai.AsyncOpenAI, case: Case) -> None:
        verdicts, want = self.verdicts, self._references[case.name]
        try:
            got, gap = await stream_once(client, case)
        except Exception as error:
            verdicts.errors.append((case.name, f"{type(error).__name__}: {error}"))
            await asyncio.sleep(0.1)
            return
        finally:
            verdicts.num_done += 1
        verdicts.done_at.append(time.monotonic())
        verdicts.longest_gap = max(verdicts.longest_gap, gap)
        if same(want, got):
            verdicts.num_right += 1
        else:
            verdicts.wrong.append((case.name, want, got))


def _client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=REQUEST_SECONDS
    )


@contextmanager
def streaming(
    urls: Sequence[str], cases: Sequence[Case], num_clients: int = 3
) -> Iterator[StreamLoad]:
    """A load that runs inside the block; the references are learnt before it starts."""
    load = StreamLoad(urls, cases, num_clients)
    load.learn(urls[0])
    load.start()
    try:
        yield load
    finally:
        load._stopping = True
        load._thread.join(REQUEST_SECONDS)
