"""One JSON line a request: who, what model, where and why, how long; never text, never keys."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from .proxy.job import Trail

MAX_LINES = 100_000
WRITE_SECONDS = 0.1
FLUSH_SECONDS = 2.0

_ENCODER = msgspec.json.Encoder()

logger = logging.getLogger(__name__)


def write_stdout(text: str) -> None:
    """Write it all; hangs where stdout is a pipe that nobody reads.

    Lines of several processes in one pipe stay whole: what is written at once is at most what the
    system never tears apart, and ends with a line. Only a line beyond that can be torn.
    """
    for part in whole_lines(text.encode(), select.PIPE_BUF):
        # Past Python's own buffer: its lock, held in a write that hangs, would abort the exit.
        data = memoryview(part)
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]


def whole_lines(data: bytes, max_bytes: int) -> Iterator[bytes]:
    """It in pieces of at most ``max_bytes`` that end with a line; a longer line is one piece."""
    begin = 0
    while len(data) - begin > max_bytes:
        end = data.rfind(b"\n", begin, begin + max_bytes) + 1
        end = end or data.find(b"\n", begin) + 1 or len(data)
        yield data[begin:end]
        begin = end
    if begin < len(data):
        yield data[begin:]


class LineBuffer:
    """Lines on their way to stdout; a reader that does not read never stops the gateway.

    At most ``MAX_LINES`` wait; what comes on top is dropped, and its number told in the log.
    """

    def __init__(self, write: Callable[[str], None] = write_stdout) -> None:
        self._write = write
        self._lines: list[str] = []
        self._num_dropped = 0
        self._writing: threading.Thread | None = None

    def add(self, line: str) -> None:
        """Have a line written soon."""
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)
        else:
            self._num_dropped += 1

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            self._begin()

    def flush(self) -> None:
        """Write what is left, at the end; takes FLUSH_SECONDS at most, whoever reads."""
        deadline = time.monotonic() + FLUSH_SECONDS
        self._join(deadline)
        self._begin()
        self._join(deadline)

    def _begin(self) -> None:
        if self._lines and not (self._writing and self._writing.is_alive()):
            # A daemon: one that hangs in a full pipe keeps nobody from leaving.
            self._writing = threading.Thread(target=self._put, args=(self._take(),), daemon=True)
            self._writing.start()

    def _join(self, deadline: float) -> None:
        if self._writing is not None:
            self._writing.join(max(0.0, deadline - time.monotonic()))

    def _put(self, text: str) -> None:
        try:
            self._write(text)
        except OSError as error:
            logger.error("the access log can't be written: %s", error)

    def _take(self) -> str:
        lines, self._lines = self._lines, []
        if self._num_dropped:
            logger.warning("%d lines of the access log were dropped", self._num_dropped)
            self._num_dropped = 0
        return "".join(lines)


class AccessLog:
    """Writes a line for each request while ``is_on``."""

    def __init__(self, is_on: bool, write: Callable[[str], None]) -> None:
        self._is_on = is_on
        self._write = write

    def ended(self, trail: Trail) -> None:
        """Write the line of a request that is over."""
        if self._is_on:
            self._write(_ENCODER.encode(_line(trail)).decode() + "\n")


def _line(trail: Trail) -> dict[str, object]:
    decision, usage = trail.decision, trail.usage
    line: dict[str, object] = {
        "time": round(time.time(), 3),
        "request_id": trail.request_id,
        "endpoint": trail.path,
        "tenant": trail.tenant,
        "model": trail.model,
        "adapter": trail.label,
        "status": trail.status,
        "outcome": trail.outcome,
        "replica": decision and decision.replica_id,
        "reason": decision and decision.reason,
        "predicted_cached_tokens": decision and decision.num_matched_tokens,
        "retries": trail.num_retries,
        "resumes": trail.num_resumes,
        "seconds": round(time.perf_counter() - trail.arrived, 6),
    }
    if trail.first_byte is not None:
        line["first_byte_seconds"] = round(trail.first_byte - trail.arrived, 6)
    if usage is not None:
        line["input_tokens"] = usage.num_input_tokens
        line["output_tokens"] = usage.num_output_tokens
        line["cached_tokens"] = usage.num_cached_tokens
    return line
