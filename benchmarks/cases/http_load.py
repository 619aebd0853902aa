"""Chats that stream at once, and what the server's two processes spend on them meanwhile.

The client is a socket and little more: on a small machine it takes its time from what is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from urllib.parse import urlsplit

import psutil

_USAGE = re.compile(rb'"prompt_tokens":(\d+),"completion_tokens":(\d+)')
_DONE = b"data: [DONE]"
_WORDS = ("the", "of", "and", "to", "a", "in", "that", "is", "was", "he", "for", "it", "with")

ENGINE_MODULE = "branchline.engine.process"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How many streams at once, in how many rounds; tokens to say, words of the question."""

    num_streams: int
    num_rounds: int
    num_tokens: int
    num_words: int


@dataclass(frozen=True, slots=True)
class Processes:
    """The server, which speaks HTTP and text, and its engine, which computes."""

    server: psutil.Process
    engine: psutil.Process

    @classmethod
    def of_port(cls, port: int) -> Processes:
        """The child of this process that was started to listen there, and its engine."""
        for child in psutil.Process().children():
            if str(port) in child.cmdline():
                engines = [p for p in child.children(recursive=True) if _is_engine(p)]
                return cls(child, engines[0])
        raise RuntimeError(f"no child of this process serves on port {port}")

    def cpu_seconds(self) -> tuple[float, float]:
        """Of the server and of the engine, since they began."""
        server, engine = self.server.cpu_times(), self.engine.cpu_times()
        return server.user + server.system, engine.user + engine.system


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took: CPU seconds of the two, and seconds on the clock."""

    server_cpu_seconds: float
    engine_cpu_seconds: float
    seconds: float
    num_prompt_tokens: int
    num_tokens: int

    def share(self, num_threads: int) -> float:
        """The server's time over the engine's own.

        That is its CPU seconds over its threads: no more than the time that its steps took.
        """
        return self.server_cpu_seconds / (self.engine_cpu_seconds / num_threads)

    @property
    def server_microseconds(self) -> float:
        """The server's time for each token that was streamed."""
        return self.server_cpu_seconds / self.num_tokens * 1e6


def _is_engine(process: psutil.Process) -> bool:
    return ENGINE_MODULE in process.cmdline()


def question(number: int, num_words: int) -> str:
    """Words that no other question begins with."""
    return " ".join([f"No. {number}:", *(_WORDS[i % len(_WORDS)] for i in range(num_words))])


async def run_rounds(url: str, processes: Processes, plan: LoadPlan) -> list[Round]:
    """A short round that is not counted, then those that are."""
    await _all_at_once(url, plan, range(plan.num_streams), num_tokens=2)
    rounds = []
    for number in range(1, plan.num_rounds + 1):
        numbers = range(number * plan.num_streams, (number + 1) * plan.num_streams)
        before, began = processes.cpu_seconds(), perf_counter()
        counts = await _all_at_once(url, plan, numbers, plan.num_tokens)
        after, ended = processes.cpu_seconds(), perf_counter()
        server, engine = (late - early for late, early in zip(after, before, strict=True))
        prompt, completion = (sum(column) for column in zip(*counts, strict=True))
        rounds.append(Round(server, engine, ended - began, prompt, completion))
    return rounds


async def _all_at_once(
    url: str, plan: LoadPlan, numbers: Sequence[int], num_tokens: int
) -> list[tuple[int, int]]:
    asked = (stream_chat(url, question(n, plan.num_words), num_tokens) for n in numbers)
    return list(await asyncio.gather(*asked))


async def stream_chat(url: str, content: str, num_tokens: int) -> tuple[int, int]:
    """One chat as a stream; its prompt tokens and completion tokens. RuntimeError if cut short."""
    address = urlsplit(url)
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    raw = json.dumps(body).encode()
    head = (
        f"POST {address.path}/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        "Connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + raw)
        answer = await reader.read(-1)
    finally:
        writer.close()
    usage = _USAGE.search(answer)
    if usage is None or _DONE not in answer:
        raise RuntimeError(f"no whole stream: {answer[-300:].decode(errors='replace')}")
    return int(usage[1]), int(usage[2])


def summary(rounds: Sequence[Round], num_threads: int) -> dict[str, float]:
    """Medians over the rounds."""
    return {
        "server_over_engine": median(one.share(num_threads) for one in rounds),
        "server_over_clock": median(one.server_cpu_seconds / one.seconds for one in rounds),
        "server_microseconds_per_token": median(one.server_microseconds for one in rounds),
        "tokens_per_second": median(one.num_tokens / one.seconds for one in rounds),
    }
