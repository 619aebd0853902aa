"""Adapters are checked, digested and formatted in processes beside the server's."""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.adapter_format import AdapterFacts, CheckJob, FormatJob
from ...lora.errors import AdapterError, BranchlineError
from ..errors import unavailable
from ..workers.pool import (
    JobEndedError,
    JobError,
    JobFaultError,
    JobTimeoutError,
    NoProcessError,
    PoolFullError,
    Work,
    WorkerPool,
)

FUNCTION = "branchline.engine.adapter_format:run_job"
# What the function needs, and takes seconds to import.
MODULES = (
    *("torch", "branchline.lora.loader", "branchline.lora.formatted"),
    "branchline.lora.fp8_pages",
)

# The engine and the server come first.
NICENESS = 10


class AdapterLoader:
    """``num_workers`` processes that format one adapter each at a time.

    ``function`` is what they call, as ``module:name``; ``modules`` are imported before that.
    """

    def __init__(
        self,
        num_workers: int = 1,
        max_waiting: int = 64,
        function: str = FUNCTION,
        modules: Sequence[str] = MODULES,
    ) -> None:
        self._pool = WorkerPool(Work(function, modules, NICENESS), num_workers, max_waiting)

    def start(self) -> None:
        """Begin to start the processes, so that the first job finds one ready."""
        self._pool.start()

    async def format(self, job: FormatJob | CheckJob, timeout: float) -> AdapterFacts:
        """Do one job; ``timeout`` seconds begin when a process takes it up.

        Raises AdapterError for an adapter that is refused, takes too long or ends the process, and
        ApiError 503 where ``max_waiting`` jobs wait. Cancelling ends the job.
        """
        try:
            answer = await self._pool.run(job, timeout)
        except JobError as error:
            raise _refusal(error, timeout) from error
        if isinstance(answer, AdapterError):
            raise answer
        assert isinstance(answer, AdapterFacts), "the function returns these"
        return answer

    async def close(self) -> None:
        """End the processes now; jobs that run or wait fail."""
        await self._pool.close()


def _refusal(error: JobError, limit: float) -> BranchlineError:
    match error:
        case PoolFullError():
            return unavailable(
                f"{error.num_waiting} adapters already wait to be loaded; try again later.",
                "adapter_loads_queue_full",
            )
        case JobFaultError():
            message = f"can't be formatted: {error}"
        case JobTimeoutError():
            message = f"took more than {limit:g} s to check and format"
        case JobEndedError():
            message = f"ended the process that formats it, with status {error.status}"
        case NoProcessError():
            message = f"the formatting process can't start: {error}"
        case _:
            message = "was not loaded: the server is stopping"
    return AdapterError("adapter", message)
