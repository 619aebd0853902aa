"""The HTTP benchmark: its arithmetic, its client, its parts, and a whole run on a tiny model."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_tiny_tokenizer

from branchline.benchmarks.cases import http_load, http_parts
from branchline.benchmarks.cases.http_load import LoadPlan, Round
from branchline.server.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "http_cost.py"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'


def test_the_share_is_of_the_engines_own_time() -> None:
    one = Round(
        server_cpu_seconds=1, engine_cpu_seconds=20, seconds=12, num_prompt_tokens=9, num_tokens=500
    )
    assert one.share(num_threads=1) == pytest.approx(0.05)
    assert one.share(num_threads=2) == pytest.approx(0.1), "its CPU seconds are two threads'"
    assert one.server_microseconds == 2000
    slow = Round(3, 20, 15, 9, 500)
    figures = http_load.summary([one, slow, slow], num_threads=2)
    assert figures["server_over_engine"] == pytest.approx(0.3)
    assert figures["server_over_clock"] == pytest.approx(0.2)
    assert figures["tokens_per_second"] == pytest.approx(500 / 15)


def test_questions_share_no_beginning() -> None:
    asked = [http_load.question(number, 20) for number in range(12)]
    assert len({text[:6] for text in asked}) == 12
    assert {len(text.split()) for text in asked} == {22}


async def answered(answer: bytes) -> tuple[tuple[int, int] | None, bytes]:
    """What the client makes of this answer, and what it had sent."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        requests.append(await reader.readexactly(length))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        try:
            return await http_load.stream_chat(url, "hi", 3), requests[0]
        except RuntimeError:
            return None, requests[0]


async def test_the_client_reads_a_stream_to_its_usage() -> None:
    counts, sent = await answered(HEAD + USAGE + b"data: [DONE]\n\n")
    assert counts == (7, 3)
    body = json.loads(sent)
    assert body["stream"] is True
    assert body["max_tokens"] == 3
    assert body["messages"][0]["content"] == "hi"


@pytest.mark.parametrize("answer", [HEAD + USAGE, HEAD + b"data: [DONE]\n\n", b"HTTP/1.1 500 No"])
async def test_a_stream_cut_short_is_an_error(answer: bytes) -> None:
    counts, _ = await answered(answer)
    assert counts is None


def test_every_part_is_measured(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(str(make_tiny_tokenizer(tmp_path)))
    parts = http_parts.measure_parts(tokenizer, "hello", num_tokens=40, num_repeats=2)
    assert [part.unit for part in parts] == ["request"] * 3 + ["token"] * 4
    assert all(0 < part.microseconds < 1e6 for part in parts)


def test_the_first_run_is_not_counted() -> None:
    calls: list[int] = []

    def slow_first() -> None:
        calls.append(len(calls))

    assert http_parts.timed(slow_first, 5) < 1e5
    assert len(calls) == 6


def test_a_plan_is_asked_for_on_the_command_line() -> None:
    command = [sys.executable, "-P", str(SCRIPT)]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert {"--tiny", "--streams", "--threads", "--json"} <= set(shown.stdout.split())
    refused = subprocess.run(
        [*command, "--streams", "0"], capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 2
    assert "--streams" in refused.stderr
    assert LoadPlan(num_streams=1, num_rounds=1, num_tokens=2, num_words=1)


@pytest.mark.slow
def test_a_tiny_run_writes_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "http.json"
    command = [sys.executable, "-P", str(SCRIPT), "--tiny", "--streams", "4", "--threads", "1"]
    done = subprocess.run(
        [*command, "--json", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert str(tmp_path) not in path.read_text()
    assert found["plan"] == {"num_streams": 4, "num_rounds": 1, "num_tokens": 32, "num_words": 64}
    (one,) = found["load"]["rounds"]
    assert one["num_tokens"] == 4 * 32
    assert one["server_cpu_seconds"] > 0
    assert one["engine_cpu_seconds"] > 0
    assert found["libraries"]["uvicorn"]
    assert len(found["parts"]) == 7
    assert found["goals"] == [], "a tiny model is not judged"
