"""Chat templates of adapters: code from outside, on data from outside, kept out of this process.

Python can't stop an operation that is one step to it, such as a power of a power. A process can be
killed in its midst, and can be given only so much memory.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ..errors import ApiError, unavailable
from ..workers.pool import (
    JobEndedError,
    JobError,
    JobTimeoutError,
    NoProcessError,
    PoolClosedError,
    PoolFullError,
    Work,
    WorkerPool,
)
from .template_worker import TemplateJob, render
from .tokenizer import BrokenTemplateError, ChatTemplateError

__all__ = ["InlineTemplates", "TemplateJob", "TemplateProcesses", "Templates"]

FUNCTION = "branchline.server.text.template_worker:render"

# Of time by the clock, and of memory beyond what Python and its libraries take.
MAX_SECONDS = 2.0
MAX_BYTES = 1 << 30

# Renderings take a millisecond. Those of one adapter wait for each other only.
MAX_WAITING = 1024
NUM_PROCESSES = 2


class InlineTemplates:
    """Renders in this process, unbounded: for programs that load adapters which they trust."""

    async def render(self, key: str, job: TemplateJob) -> str:
        """The chat's text; raises ChatTemplateError."""
        return render(job)

    def render_from_thread(self, key: str, job: TemplateJob) -> str:
        """The same, from any thread."""
        return render(job)


class TemplateProcesses:
    """Renders in processes that are killed at their limits; they start with the first template.

    To be made in the event loop. The renderings of one ``key`` take turns, so that a template
    that always hangs holds one process up and not both.
    """

    def __init__(self, function: str = FUNCTION) -> None:
        self._pool = WorkerPool(Work(function, max_bytes=MAX_BYTES), NUM_PROCESSES, MAX_WAITING)
        self._loop = asyncio.get_running_loop()
        self._turns: dict[str, _Turn] = {}

    async def render(self, key: str, job: TemplateJob) -> str:
        """The chat's text; raises ChatTemplateError, and ApiError 503 where too many wait."""
        turn = self._turns.setdefault(key, _Turn())
        if turn.num_holders > MAX_WAITING:
            raise _busy()
        turn.num_holders += 1
        try:
            async with turn.lock:
                return await self._render(job)
        finally:
            turn.num_holders -= 1
            if not turn.num_holders:
                del self._turns[key]

    def render_from_thread(self, key: str, job: TemplateJob) -> str:
        """The same, from any thread but the event loop's."""
        return asyncio.run_coroutine_threadsafe(self.render(key, job), self._loop).result()

    async def close(self) -> None:
        """End the processes now; what is being rendered fails."""
        await self._pool.close()

    async def _render(self, job: TemplateJob) -> str:
        try:
            answer = await self._pool.run(job, MAX_SECONDS)
        except JobError as error:
            raise _refusal(error) from error
        if isinstance(answer, ChatTemplateError):
            raise answer
        assert isinstance(answer, str), "the function returns these"
        return answer


Templates = InlineTemplates | TemplateProcesses


@dataclass(slots=True)
class _Turn:
    """Those of one key: one is in, the others wait."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_holders: int = 0


def _refusal(error: JobError) -> ChatTemplateError | ApiError:
    match error:
        case PoolFullError():
            return _busy()
        case JobTimeoutError():
            return BrokenTemplateError(f"the chat template took longer than {MAX_SECONDS:g} s")
        case JobEndedError():
            return BrokenTemplateError(
                f"the chat template's process ended with status {error.status} as it was rendered"
            )
        case NoProcessError():
            return unavailable(
                f"No process for chat templates can be started: {error}.", "no_template_process"
            )
        case PoolClosedError():
            return unavailable("The server is shutting down.", "draining")
    return ChatTemplateError(f"the chat template failed: {error}")


def _busy() -> ApiError:
    return unavailable(
        "Too many chats already wait for the chat templates of adapters; try again later.",
        "chat_templates_queue_full",
    )
