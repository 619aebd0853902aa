"""Processes beside the server's for what may hang, eat memory or crash: killed and replaced.

JobError                 why a job has no answer
├── JobFaultError        the function raised what it should not
├── JobTimeoutError      it took longer than it may; its process has been killed
├── JobEndedError        its process ended; ``status`` as ``subprocess`` gives it
├── NoProcessError       no process can be started
├── PoolClosedError      the server is stopping
└── PoolFullError        too many jobs wait
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...lora.errors import BranchlineError
from .process import LENGTH, READY, Answer, frame

START_SECONDS = 120.0

# One thread: the engine's are worth more. No device: its memory is the engine's.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

logger = logging.getLogger(__name__)


class JobError(BranchlineError):
    """Why a job has no answer."""


class JobFaultError(JobError):
    """The function raised what it should not; says what, in one line."""


class JobTimeoutError(JobError):
    """The job took longer than it may."""


class JobEndedError(JobError):
    """The job's process ended."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the process ended with status {status}")
        self.status = status


class NoProcessError(JobError):
    """No process can be started; says why."""


class PoolClosedError(JobError):
    """The server is stopping."""


class PoolFullError(JobError):
    """``num_waiting`` jobs wait already."""

    def __init__(self, num_waiting: int) -> None:
        super().__init__(f"{num_waiting} jobs wait")
        self.num_waiting = num_waiting


@dataclass(frozen=True, slots=True)
class Work:
    """What a process is for: it calls ``function``, given as ``module:name``.

    ``modules`` are imported before the first job. Jobs may take ``max_bytes`` beyond what all
    imports took (0: no limit), and run with that ``niceness``.
    """

    function: str
    modules: Sequence[str] = ()
    niceness: int = 0
    max_bytes: int = 0


class WorkerPool:
    """``num_workers`` processes that do one job each at a time, first come first served."""

    def __init__(self, work: Work, num_workers: int, max_waiting: int) -> None:
        self._workers = [_Worker(work) for _ in range(num_workers)]
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._max_waiting = max_waiting
        self._num_jobs = 0
        self._started = False

    def start(self) -> None:
        """Begin to start the processes, if that has not been done."""
        if not self._started:
            self._started = True
            for worker in self._workers:
                worker.begin()
                self._take_back(worker)

    async def run(self, job: Any, limit: float) -> object:
        """What the function returns, or the BranchlineError that it raises, for one job.

        ``limit`` seconds begin when a process takes it up. Raises JobError. Cancelling ends the
        job.
        """
        self.start()
        num_waiting = self._num_jobs - len(self._workers)
        if num_waiting >= self._max_waiting:
            raise PoolFullError(num_waiting)
        self._num_jobs += 1
        try:
            worker = await self._idle.get()
            try:
                return await worker.run(job, limit)
            finally:
                self._take_back(worker)
        finally:
            self._num_jobs -= 1

    async def close(self) -> None:
        """End the processes now; jobs that run or wait fail."""
        await asyncio.gather(*(worker.close() for worker in self._workers))

    def _take_back(self, worker: _Worker) -> None:
        """Have it do jobs again, once it has started: until then another may be ready."""
        worker.when_started(lambda: self._idle.put_nowait(worker))


class _Worker:
    """One process at a time: started ahead, killed with the job that it is stuck on, replaced."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._process: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._closed = False

    def begin(self) -> None:
        """Start the process in the background, if there is none."""
        if self._process is None and not self._closed:
            self._process = asyncio.create_task(_start(self._work))
            self._process.add_done_callback(_note_failure)

    def when_started(self, callback: Callable[[], object]) -> None:
        """Call it once no process is being started, however that went."""
        if self._process is None or self._process.done():
            callback()
        else:
            self._process.add_done_callback(lambda _: callback())

    async def run(self, job: Any, limit: float) -> object:
        """Do one job; afterwards the process is ready for the next, or being replaced."""
        process = await self._ready()
        try:
            answer, fault, is_leaving = await self._ask(process, job, limit)
        except BaseException:
            await self._replace()
            raise
        if is_leaving:
            await self._replace()
        if fault is not None:
            raise JobFaultError(fault)
        return answer

    async def close(self) -> None:
        """End the process for good."""
        self._closed = True
        await self._end()

    async def _ready(self) -> asyncio.subprocess.Process:
        """The process, once it has started; one that ended while idle is replaced before."""
        if self._process is not None and _has_ended(self._process):
            await self._end()
        self.begin()
        if self._process is None:
            raise PoolClosedError
        try:
            # Shielded: a job that leaves while it starts is no reason to start again.
            return await asyncio.shield(self._process)
        except (OSError, EOFError) as error:
            await self._end()
            if self._closed:
                raise PoolClosedError from None
            raise NoProcessError(str(error) or "it does not answer") from error

    async def _ask(self, process: asyncio.subprocess.Process, job: Any, limit: float) -> Answer:
        assert process.stdin is not None, "it is a pipe"
        try:
            async with asyncio.timeout(limit):
                process.stdin.write(frame(pickle.dumps((limit, job))))
                await process.stdin.drain()
                answer: Answer = pickle.loads(await _receive(process))
                return answer
        except TimeoutError:
            raise JobTimeoutError(f"it took more than {limit:g} s") from None
        except (OSError, EOFError) as error:
            if self._closed:
                raise PoolClosedError from None
            status = await process.wait()
            logger.error("a process for %s ended with status %s", self._work.function, status)
            raise JobEndedError(status) from error

    async def _replace(self) -> None:
        await self._end()
        self.begin()

    async def _end(self) -> None:
        task, self._process = self._process, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await _kill(task.result())


async def _start(work: Work) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "branchline.server.workers.process"),
        *(str(work.niceness), str(work.max_bytes), work.function, *work.modules),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            ready = await _receive(process)
        assert ready == READY, "the first message"
    except BaseException:
        await _kill(process)
        raise
    return process


async def _receive(process: asyncio.subprocess.Process) -> bytes:
    """The process's next message; raises EOFError when it is gone."""
    assert process.stdout is not None, "it is a pipe"
    header = await process.stdout.readexactly(LENGTH.size)
    return await process.stdout.readexactly(LENGTH.unpack(header)[0])


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def _has_ended(starting: asyncio.Task[asyncio.subprocess.Process]) -> bool:
    if not starting.done():
        return False
    if starting.cancelled() or starting.exception() is not None:
        return True
    process = starting.result()
    return process.returncode is not None or process.stdout is None or process.stdout.at_eof()


def _note_failure(task: asyncio.Task[asyncio.subprocess.Process]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a process beside the server can't start", exc_info=error)
