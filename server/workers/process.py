"""A process beside the server, for what adapters bring: their files, and their templates.

``python -m branchline.server.workers.process NICENESS MAX_BYTES FUNCTION [MODULE ...]``. Jobs come
on standard input, answers go to standard output, each as its length and a pickle: both ends are
ours. FUNCTION is ``module:name``; the modules are imported before the first job. Jobs may take
MAX_BYTES of memory beyond that (0: no limit). It runs beside the server without any of the
server's modules but those of the function.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import queue
import resource
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from ...lora.errors import BranchlineError

LENGTH = struct.Struct("<I")
READY = b"ready"

# Beyond a job's own limit, at which the server ends this process.
GRACE_SECONDS = 2.0

logger = logging.getLogger(__name__)

Job = tuple[float, Any]
"""A limit in seconds and what the function is called with."""

Answer = tuple[object, str | None, bool]
"""What the function gave; or how it failed; and whether this process is to be replaced."""


def frame(payload: bytes) -> bytes:
    """A message as it is sent."""
    return LENGTH.pack(len(payload)) + payload


def main(niceness: int, max_bytes: int, function: str, *modules: str) -> None:
    """Answer one job after the other until standard input ends; then leave at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(levelname)s adapters: %(message)s", stream=sys.stderr)
    answers = _take_standard_output()
    _give_way(niceness)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    module, _, name = function.partition(":")
    call: Callable[[Any], object] = getattr(importlib.import_module(module), name)
    for other in modules:
        importlib.import_module(other)
    room = _Room(max_bytes)
    _answer(answers, READY)
    while True:
        limit, job = jobs.get()
        # One long operation keeps even the thread that reads from running. The server kills this
        # process then; if the server is gone, the alarm does.
        signal.setitimer(signal.ITIMER_REAL, limit + GRACE_SECONDS)
        given, fault = _run(call, job)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer: Answer = (given, fault, room.is_short)
        _answer(answers, pickle.dumps(answer))
        del job, given, answer


class _Room:
    """The memory that jobs may take, ``max_bytes`` beyond what is taken now; 0 is no limit."""

    def __init__(self, max_bytes: int) -> None:
        taken = _num_bytes() if max_bytes else 0
        self._short = taken + max_bytes // 2 if taken else None
        if taken:
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            full = taken + max_bytes
            if hard != resource.RLIM_INFINITY:
                full = min(full, hard)
            resource.setrlimit(resource.RLIMIT_AS, (full, hard))

    @property
    def is_short(self) -> bool:
        """Whether more than half is gone between jobs: a new process is to do the next."""
        return self._short is not None and _num_bytes() > self._short


def _num_bytes() -> int:
    """The size of this process's address space; 0 where that can't be known, nor limited."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _run(call: Callable[[Any], object], job: object) -> tuple[object, str | None]:
    """What the function returns, or the BranchlineError that it raises; or another's text."""
    try:
        return call(job), None
    except BranchlineError as error:
        return error, None
    except Exception as error:
        logger.exception("a job failed")
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        return None, f"{type(error).__name__}: {reason}"


def _read(jobs: queue.SimpleQueue[Job]) -> None:
    """Queue what comes; when the server is gone, so is this process, whatever it does."""
    try:
        with os.fdopen(0, "rb", closefd=False) as file:
            while header := file.read(LENGTH.size):
                payload = file.read(LENGTH.unpack(header)[0]) if len(header) == LENGTH.size else b""
                if not payload:
                    break
                jobs.put(pickle.loads(payload))
    finally:
        os._exit(1)


def _take_standard_output() -> BinaryIO:
    """The pipe to the server; whatever else prints from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _give_way(niceness: int) -> None:
    """To the engine and the server: the processor, and memory when there is none left."""
    os.nice(niceness)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _answer(answers: BinaryIO, payload: bytes) -> None:
    answers.write(frame(payload))
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
