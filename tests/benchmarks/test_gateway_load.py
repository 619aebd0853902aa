"""The gateway benchmark's own parts: the replicas that answer at once, its sums, a tiny run."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import httpx
import msgspec
import psutil
import pytest
from click.testing import CliRunner

from branchline.benchmarks import gateway
from branchline.benchmarks.gateway_load import upstream, wrk
from branchline.benchmarks.gateway_load.phases import Plan
from branchline.benchmarks.gateway_load.process_tree import ProcessTree
from branchline.gateway.fleet import headers as fleet
from branchline.gateway.fleet.records import ReplicaReport
from branchline.gateway.fleet.resume import COMMENT, StreamComment

PLAN = Plan(
    rates=(100, 200),
    seconds=1,
    prompt_bytes=64,
    num_streams=50,
    stream_seconds=3,
    num_prompts=90,
)
BODY = {"model": "mock", "messages": []}


@pytest.fixture
async def replica() -> AsyncIterator[upstream.Replica]:
    made = upstream.Replica("r", 3)
    server = await asyncio.get_running_loop().create_server(
        lambda: upstream.Connection(made), "127.0.0.1", 0
    )
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


async def ask(replica: upstream.Replica, body: dict[str, Any], **headers: str) -> httpx.Response:
    content = msgspec.json.encode(body)
    async with httpx.AsyncClient(base_url=replica.url) as client:
        return await client.post("/v1/chat/completions", content=content, headers=headers)


async def test_a_mock_answers_whole_and_in_a_stream(replica: upstream.Replica) -> None:
    whole = (await ask(replica, BODY)).json()
    assert whole["choices"][0]["message"]["content"] == "word word word "
    stream = (await ask(replica, BODY | {"stream": True})).text
    assert stream.count("data: {") == 4
    assert stream.endswith("data: [DONE]\n\n")
    assert ": branchline" not in stream


async def test_a_mock_tells_the_state_of_its_stream(replica: upstream.Replica) -> None:
    answer = await ask(replica, BODY | {"stream": True}, **{fleet.STREAM_STATE: "1"})
    blocks = answer.text.encode().split(b"\n\n")
    comments = [
        msgspec.json.decode(block.removeprefix(COMMENT), type=StreamComment)
        for block in blocks
        if block.startswith(COMMENT)
    ]
    assert comments[0].opening is not None
    assert [comment.choices[0].num_characters for comment in comments[1:]] == [5, 10, 15]
    assert comments[-1].choices[0].finish_reason == "length"


async def test_a_mock_says_how_many_streams_it_holds(replica: upstream.Replica) -> None:
    held = asyncio.create_task(ask(replica, BODY | {"stream": True, "user": "hold"}))
    async with httpx.AsyncClient(base_url=replica.url) as client:
        while replica.num_running == 0:
            await asyncio.sleep(0.01)
        state = (await client.get("/fleet/state")).content
        assert msgspec.json.decode(state, type=ReplicaReport).num_running == 1
        assert (await client.get("/nothing")).status_code == 404
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    while replica.num_running:
        await asyncio.sleep(0.01)


async def test_a_mock_reads_requests_in_pieces_and_in_a_row(replica: upstream.Replica) -> None:
    reader, writer = await asyncio.open_connection(*replica.url.removeprefix("http://").split(":"))
    request = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    for piece in (request[:20], request[20:-1], request[-1:] + request):
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0.01)
    answers = await reader.readexactly(2 * len(replica.whole))
    assert answers == 2 * replica.whole
    writer.close()


def row(rate: float, share: float, added: float) -> dict[str, Any]:
    way = {"rate": rate, "machine_share": share, "gateway_cpu_ms": 1.0, "num_failed": 0}
    return {
        "direct": way,
        "bare": way,
        "gateway": way,
        "added_p50_ms": added,
        "added_p99_ms": 4 * added,
    }


STREAMS = {"num_held": 50, "growth_mb": 0.5, "num_failed": 0}
PROMPTS = {"num_prompts": 90, "growth_over_prompts": 60, "growth_mb": 0.1, "num_failed": 0}


def test_latencies_count_at_the_highest_rate_that_leaves_the_machine_room() -> None:
    rows = [row(100, 0.2, 0.1), row(200, 0.5, 0.9), row(300, 0.7, 30.0)]
    goals = gateway.goals_of(rows, [STREAMS, PROMPTS], PLAN)
    assert [goal.value for goal in goals[:3]] == [1.0, 0.9, 3.6]
    assert "at 200/s, 50% of the machine" in goals[0].what
    assert all(goal.is_met for goal in goals)


def test_a_request_that_failed_is_a_goal_missed() -> None:
    burst = {"num_failed": 1}
    goals = gateway.goals_of([row(100, 0.2, 0.1)], [burst, STREAMS, PROMPTS], PLAN)
    assert [goal.what for goal in goals if not goal.is_met] == ["requests that failed"]


def test_a_process_is_measured_with_what_it_started() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\n"
    child = f"{burn}print('done', flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"done\n"
        tree, alone = ProcessTree(process.pid), psutil.Process(process.pid)
        assert tree.cpu_seconds() >= alone.cpu_times().user + 0.15
        assert tree.rss() > 1.2 * alone.memory_info().rss
    finally:
        process.communicate(b"\n", timeout=10)


@pytest.mark.parametrize("text", ["", "100,", "0", "a", "1.5"])
def test_rates_that_are_none_are_named(text: str) -> None:
    with pytest.raises(click.ClickException, match="--rates: whole numbers"):
        gateway.parse_rates(text)


def test_without_wrk_it_says_so_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = CliRunner().invoke(gateway.main, [])
    assert result.exit_code == 1
    assert result.output == "Error: this benchmark needs wrk: apt-get install wrk\n"


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
async def test_wrk_paces_its_prompts_and_says_what_it_measured(replica: upstream.Replica) -> None:
    load = wrk.Load(
        url=replica.url,
        keys=["a", "b"],
        seconds=1,
        num_connections=4,
        prompt_bytes=200,
        kind="stream",
        pause=40,
    )
    measured = await asyncio.to_thread(wrk.run, load)
    assert measured.num_failed == 0
    assert 20 <= measured.num_requests <= 130
    assert 0 < measured.p50_ms <= measured.p99_ms <= measured.max_ms


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_tiny_run_writes_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "gateway.json"
    flags = ["--seconds", "1", "--rates", "80", "--streams", "10", "--stream-seconds", "4"]
    result = CliRunner().invoke(gateway.main, [*flags, "--prompts", "50", "--json", str(path)])
    assert result.exit_code == 0, result.output
    figures = json.loads(path.read_text())
    assert figures["plan"]["num_workers"] == 2
    assert "the gateway: 2 workers" in result.output
    assert figures["streams"]["num_held"] == 10
    assert figures["distinct_prompts"]["num_prompts"] >= 50
    [row] = figures["paced"]
    assert row["wanted_rate"] == 80
    assert row["bare"]["bare_cpu_ms"] > 0
    assert {"bare_added_p50_ms", "bare_added_p99_ms"} <= row.keys()
    assert [
        goal["value"] for goal in figures["goals"] if goal["what"] == "requests that failed"
    ] == [0]
