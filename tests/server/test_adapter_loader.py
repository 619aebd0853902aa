"""The formatting processes: what they answer, and that nothing an adapter does to one matters."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from asgi_client import until
from formatting_doubles import facts
from server_process import wait_for

from branchline.engine.adapter_format import FormatJob
from branchline.lora.errors import AdapterError
from branchline.server.adapters.loader import AdapterLoader
from branchline.server.errors import ApiError

SUPPORT = Path(__file__).parents[1] / "support"
FUNCTION = "formatting_doubles:do"
LIMIT = 30.0

MakeJob = Callable[[str], FormatJob]


def make_loader(num_workers: int = 1, max_waiting: int = 8) -> AdapterLoader:
    return AdapterLoader(num_workers, max_waiting, function=FUNCTION, modules=("json",))


@pytest.fixture(autouse=True)
def _doubles_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))


@pytest.fixture
async def loader() -> AsyncIterator[AdapterLoader]:
    made = make_loader()
    made.start()
    yield made
    await made.close()


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    """Makes a job of what is to happen."""
    return lambda kind: FormatJob("model", "float32", kind, str(tmp_path))


def pid_of(directory: Path) -> int:
    """The process that took up the last job; waits until it has."""
    file = directory / "pid"
    wait_for(lambda: file.exists() and bool(file.read_text()), LIMIT)
    return int(file.read_text())


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_job(loader: AdapterLoader, job: MakeJob, tmp_path: Path) -> None:
    assert await loader.format(job("one"), LIMIT) == facts("one")
    first = pid_of(tmp_path)
    assert await loader.format(job("two"), LIMIT) == facts("two")
    assert pid_of(tmp_path) == first != os.getpid()


async def test_it_gives_way(loader: AdapterLoader, job: MakeJob) -> None:
    done = await loader.format(job("environment"), LIMIT)
    threads, niceness = done.digest.split()
    assert threads == "1"
    assert int(niceness) >= 10


async def test_it_starts_by_itself(job: MakeJob) -> None:
    loader = make_loader()
    assert await loader.format(job("one"), LIMIT) == facts("one")
    await loader.close()


async def test_what_is_printed_is_no_answer(loader: AdapterLoader, job: MakeJob) -> None:
    assert await loader.format(job("prints"), LIMIT) == facts("prints")
    assert await loader.format(job("one"), LIMIT) == facts("one")


async def test_a_refusal(loader: AdapterLoader, job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as refused:
        await loader.format(job("refused"), LIMIT)
    assert (refused.value.field, refused.value.message) == ("r", "must be 1 to 512")
    first = pid_of(tmp_path)
    await loader.format(job("one"), LIMIT)
    assert pid_of(tmp_path) == first


@pytest.mark.parametrize(
    ("kind", "limit", "message"),
    [
        ("dies", LIMIT, "adapter: ended the process that formats it, with status 3"),
        ("killed", LIMIT, "adapter: ended the process that formats it, with status -9"),
        ("waits", 0.1, "adapter: took more than 0.1 s to check and format"),
        ("backtracks", 0.1, "adapter: took more than 0.1 s to check and format"),
    ],
)
async def test_a_job_that_takes_the_process_with_it(
    kind: str, limit: float, message: str, job: MakeJob, tmp_path: Path
) -> None:
    loader = make_loader()
    with pytest.raises(AdapterError) as failed:
        await loader.format(job(kind), limit)
    assert str(failed.value) == message
    first = pid_of(tmp_path)
    assert is_gone(first)
    assert await loader.format(job("one"), LIMIT) == facts("one")
    assert pid_of(tmp_path) != first
    await loader.close()


async def test_a_fault_of_ours_is_that_jobs_only(loader: AdapterLoader, job: MakeJob) -> None:
    with pytest.raises(AdapterError, match="adapter: can't be formatted: KeyError"):
        await loader.format(job("fault"), LIMIT)
    assert await loader.format(job("one"), LIMIT) == facts("one")


async def test_a_process_that_ended_while_idle_is_replaced(
    loader: AdapterLoader, job: MakeJob, tmp_path: Path
) -> None:
    await loader.format(job("one"), LIMIT)
    first = pid_of(tmp_path)
    os.kill(first, signal.SIGKILL)
    await until(lambda: is_gone(first), LIMIT)
    await until(lambda: not psutil.pid_exists(first), LIMIT)
    for _ in range(10):  # turns of the event loop, for the end of its pipe to be seen
        await asyncio.sleep(0)
    assert await loader.format(job("two"), LIMIT) == facts("two")


async def test_a_cancelled_job_ends(loader: AdapterLoader, job: MakeJob, tmp_path: Path) -> None:
    task = asyncio.create_task(loader.format(job("waits"), LIMIT))
    first = await asyncio.to_thread(pid_of, tmp_path)
    waiting = asyncio.create_task(loader.format(job("never"), LIMIT))
    after = asyncio.create_task(loader.format(job("one"), LIMIT))
    await asyncio.sleep(0)
    waiting.cancel()
    task.cancel()
    assert await after == facts("one")
    assert task.cancelled()
    assert waiting.cancelled()
    assert is_gone(first)


async def test_only_so_many_jobs_wait(job: MakeJob, tmp_path: Path) -> None:
    loader = make_loader(max_waiting=2)
    tasks = [asyncio.create_task(loader.format(job("waits"), LIMIT)) for _ in range(3)]
    await asyncio.to_thread(pid_of, tmp_path)
    with pytest.raises(ApiError, match="2 adapters already wait") as refused:
        await loader.format(job("one"), LIMIT)
    assert refused.value.status == 503
    await loader.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {str(result) for result in results} == {
        "adapter: was not loaded: the server is stopping"
    }


async def test_several_workers_work_at_once(job: MakeJob, tmp_path: Path) -> None:
    loader = make_loader(num_workers=2)
    task = asyncio.create_task(loader.format(job("waits"), LIMIT))
    await asyncio.to_thread(pid_of, tmp_path)
    assert await loader.format(job("one"), LIMIT) == facts("one")
    assert not task.done()
    await loader.close()
    with pytest.raises(AdapterError, match="is stopping"):
        await task


@pytest.mark.parametrize("kind", ["waits", "backtracks"])
async def test_close_is_quick(kind: str, job: MakeJob, tmp_path: Path) -> None:
    loader = make_loader()
    task = asyncio.create_task(loader.format(job(kind), LIMIT))
    pid = await asyncio.to_thread(pid_of, tmp_path)
    start = time.monotonic()
    await loader.close()
    assert time.monotonic() - start < 1
    assert is_gone(pid)
    with pytest.raises(AdapterError, match="is stopping"):
        await task
    with pytest.raises(AdapterError, match="is stopping"):
        await loader.format(job("one"), LIMIT)


async def test_close_while_it_starts(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    loader = make_loader()
    loader.start()
    await loader.close()
    ours = set(psutil.Process().children()) - before
    assert not [child for child in ours if "branchline.server.workers.process" in child.cmdline()]


async def test_a_process_that_can_not_start_is_tried_again(
    job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    loader = AdapterLoader(function="no_such_module:f", modules=())
    loader.start()
    for _ in range(2):
        with pytest.raises(AdapterError, match="adapter: the formatting process can't start"):
            await loader.format(job("one"), LIMIT)
    await loader.close()


async def test_what_it_calls_unless_told(tmp_path: Path) -> None:
    loader = AdapterLoader()
    loader.start()
    job = FormatJob("model", "float32", str(tmp_path), str(tmp_path / "formatted"))
    with pytest.raises(AdapterError) as refused:
        await loader.format(job, LIMIT)
    assert refused.value.field == "adapter_config.json"
    await loader.close()
    assert not list(tmp_path.iterdir())


PARENT = """
import asyncio, sys
from branchline.engine.adapter_format import FormatJob
from branchline.server.adapters.loader import AdapterLoader
async def main(kind, target):
    loader = AdapterLoader(function="formatting_doubles:do", modules=())
    await loader.format(FormatJob("m", "float32", kind, target), 0.5 if kind[0] == "b" else 600)
    await asyncio.Event().wait()
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["idle", "waits", "backtracks"])
def test_it_ends_with_a_server_that_is_killed(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", PARENT, kind, str(tmp_path)]
    parent = subprocess.Popen(command)
    try:
        pid = pid_of(tmp_path)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: is_gone(pid), 10)


def test_the_worker_needs_nothing_of_the_server() -> None:
    code = (
        "import sys, branchline.server.workers.process\n"
        "print(*sorted(m for m in sys.modules if m.startswith('branchline.')))\n"
        "print(*[m for m in ('torch', 'fastapi', 'httpx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    ours, foreign = done.stdout.split("\n")[:2]
    assert set(ours.split()) <= {
        "branchline.lora",
        "branchline.lora.errors",
        "branchline.server",
        "branchline.server.workers",
        "branchline.server.workers.process",
    }
    assert foreign == ""
