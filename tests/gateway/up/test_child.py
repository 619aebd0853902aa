"""Processes of ``branchline up``: told apart, started again, stopped in order."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from branchline.gateway.up import child as child_module
from branchline.gateway.up import runner
from branchline.gateway.up.child import Child, run_to_end
from branchline.gateway.up.plan import ChildSpec, UpConfig
from branchline.gateway.up.redis_binary import UpError

STAYS = "import time; print('is ready', flush=True); time.sleep(60)"
DIES = "import sys; print('no'); sys.exit(3)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('is ready', flush=True); time.sleep(60)"
)


def spec(name: str, code: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", code), "is ready", {"SOME": "thing"})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "MIN_PAUSE", 0.01)
    monkeypatch.setattr(child_module, "MAX_PAUSE", 0.02)


@pytest.mark.usefixtures("short_pauses")
async def test_one_that_dies_is_started_again() -> None:
    lines: list[tuple[str, str]] = []
    child = Child(spec("a", DIES), lambda *line: lines.append(line))
    task = asyncio.create_task(child.run())
    await until(lambda: child.num_starts >= 3)
    await child.stop()
    await asyncio.wait_for(task, 5)
    assert ("a", "no") in lines
    assert any("ended with status 3" in text for _, text in lines)
    assert not child.ready.is_set()


async def test_ready_is_a_line_of_its_own() -> None:
    child = Child(spec("a", STAYS), lambda *line: None)
    task = asyncio.create_task(child.run())
    await asyncio.wait_for(child.ready.wait(), 20)
    assert child.ready_text == "is ready"
    await child.stop()
    await asyncio.wait_for(task, 5)
    assert child.num_starts == 1


async def test_one_that_does_not_go_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "STOP_SECONDS", 0.2)
    child = Child(spec("a", STUBBORN), lambda *line: None)
    task = asyncio.create_task(child.run())
    await asyncio.wait_for(child.ready.wait(), 20)
    await asyncio.wait_for(child.stop(), 10)
    await asyncio.wait_for(task, 5)


async def test_a_line_without_end_is_read_past() -> None:
    code = "print('x' * 300000); print('is ready', flush=True)"
    lines: list[str] = []
    assert await run_to_end(spec("a", code), lambda name, line: lines.append(line)) == 0
    assert "is ready" in lines


def small_house(monkeypatch: pytest.MonkeyPatch, gateway: str, replica: str) -> None:
    """Children that only print stand for the real ones."""
    monkeypatch.setattr(runner, "find_redis_server", lambda: Path("redis"))
    monkeypatch.setattr(runner, "redis_child", lambda config, binary: spec("redis", STAYS))
    monkeypatch.setattr(runner, "replica_children", lambda config: [spec("replica-1", replica)])
    monkeypatch.setattr(runner, "gateway_child", lambda config: spec("gateway", gateway))


JOINED_LATE = """
import http.server, itertools
count = itertools.count()

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        seen = next(count)
        print("sees", seen, flush=True)
        self.send_response(200 if seen else 503)
        self.end_headers()
        self.wfile.write(b'{"num_replicas_up": %d}' % seen)

server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
print(f"is ready: serving on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""
"""A gateway that sees no replica when it is asked for the first time."""


async def test_up_and_down_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small_house(monkeypatch, JOINED_LATE, STAYS)
    put = spec("adapter a", "print('taken')")
    monkeypatch.setattr(runner, "adapter_command", lambda config, url, name, path: put)
    lines: list[str] = []
    stop = asyncio.Event()
    up = UpConfig(model="m", directory=tmp_path, adapters=(("a", "b"),), num_replicas=1)
    running = asyncio.create_task(runner.bring_up(up, lines.append, stop))
    await until(lambda: any(line.startswith("up: ") for line in lines))
    news = [line for line in lines if line.startswith(("gateway | sees", "adapter", "up"))]
    assert news[:-1] == ["gateway | sees 0", "gateway | sees 1", "adapter a | taken"]
    assert re.fullmatch(r"up: 1 replicas behind http://127.0.0.1:\d+", news[-1])
    assert not any(line.startswith("redis |") for line in lines)
    stop.set()
    assert await asyncio.wait_for(running, 10) == 0


@pytest.mark.usefixtures("short_pauses")
async def test_one_that_never_comes_up_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_house(monkeypatch, STAYS, DIES)
    up = UpConfig(model="m", directory=tmp_path, num_replicas=1)
    with pytest.raises(UpError, match="replica-1 did not come up"):
        await asyncio.wait_for(runner.bring_up(up, lambda line: None, asyncio.Event()), 20)


async def test_a_stop_in_the_midst_of_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_house(monkeypatch, "import time; time.sleep(60)", STAYS)
    stop = asyncio.Event()
    up = UpConfig(model="m", directory=tmp_path, num_replicas=1)
    running = asyncio.create_task(runner.bring_up(up, lambda line: None, stop))
    await asyncio.sleep(0.3)
    stop.set()
    assert await asyncio.wait_for(running, 10) == 0
