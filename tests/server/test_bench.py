"""`branchline bench` against a real HTTP server with known delays and known faults."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from click.testing import CliRunner
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from branchline.server.bench.command import Target, bench_command, command_line, load, with_version
from branchline.server.bench.report import summarize
from branchline.server.bench.workload import Workload

FIRST_SECONDS = 0.2
GAP_SECONDS = 0.05


@dataclass
class Mock:
    """An OpenAI-compatible server that writes one word a gap; models are named for faults."""

    bodies: list[dict[str, object]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    num_running: int = 0
    max_running: int = 0
    url: str = ""

    async def models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": "base"}, {"id": "a"}]})

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization", ""))
        if body["model"] == "absent":
            return JSONResponse({"error": {"message": "no model absent"}}, status_code=404)
        is_chat = "messages" in body
        return StreamingResponse(self.chunks(body, is_chat), media_type="text/event-stream")

    async def chunks(self, body: dict[str, object], is_chat: bool) -> AsyncIterator[str]:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        try:
            if is_chat:
                yield event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            if body["model"] == "speechless":
                yield event({"choices": [{"text": "", "finish_reason": "stop"}]})
            num_chunks = (
                0 if body["model"] in ("speechless", "empty") else int(str(body["max_tokens"]))
            )
            for index in range(num_chunks):
                await asyncio.sleep(GAP_SECONDS if index else FIRST_SECONDS)
                yield event({"choices": [choice(is_chat)]})
                if body["model"] == "broken" and index == 1:
                    yield event({"error": {"message": "the engine died"}})
                    return
                if body["model"] == "cut" and index == 1:
                    return
            if body["model"] != "silent":
                usage = {"prompt_tokens": 11, "completion_tokens": 2 * int(str(body["max_tokens"]))}
                yield event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        finally:
            self.num_running -= 1


def event(data: dict[str, object]) -> str:
    return f": a comment\n\ndata: {json.dumps(data)}\n\n"


def choice(is_chat: bool) -> dict[str, object]:
    return {"delta": {"content": "word "}} if is_chat else {"text": "word "}


@pytest.fixture
def mock() -> Iterator[Mock]:
    served = Mock()
    routes = [
        Route("/v1/models", served.models),
        Route("/v1/completions", served.generate, methods=["POST"]),
        Route("/v1/chat/completions", served.generate, methods=["POST"]),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    served.url = f"http://127.0.0.1:{port}"
    yield served
    server.should_exit = True
    thread.join(20)


async def run(mock: Mock, **given: object) -> object:
    values: dict[str, object] = {"models": ("base",), "num_prompts": 6, "output_len": 4}
    workload = Workload(**(values | given))  # type: ignore[arg-type]
    return summarize(await load(Target(base_url=f"{mock.url}/v1"), workload, show_progress=False))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_latencies_are_those_of_the_server(mock: Mock, endpoint: str) -> None:
    summary = await run(mock, endpoint=endpoint, concurrency=3)
    assert FIRST_SECONDS <= summary.time_to_first_token.p50 < FIRST_SECONDS + 0.3
    assert GAP_SECONDS * 0.9 <= summary.inter_token.p50 < GAP_SECONDS * 3
    assert summary.end_to_end.p50 >= FIRST_SECONDS + 3 * GAP_SECONDS
    assert summary.num_failed == 0


async def test_tokens_are_counted_from_usage(mock: Mock) -> None:
    summary = await run(mock)
    assert (summary.num_input_tokens, summary.num_output_tokens) == (6 * 11, 6 * 8)
    assert summary.output_tokens_per_second == pytest.approx(6 * 8 / summary.seconds)
    assert summary.num_without_usage == 0


async def test_chunks_are_counted_without_usage(mock: Mock) -> None:
    summary = await run(mock, models=("silent",))
    assert (summary.num_output_tokens, summary.num_without_usage) == (6 * 4, 6)


async def test_concurrency_is_kept_and_reached(mock: Mock) -> None:
    await run(mock, num_prompts=10, concurrency=4)
    assert mock.max_running == 4


async def test_a_rate_spreads_arrivals_and_waits_for_nobody(mock: Mock) -> None:
    summary = await run(mock, num_prompts=20, rate=40.0, concurrency=1, output_len=6)
    assert mock.max_running > 4
    assert 0.25 < summary.seconds < 3


async def test_warmup_comes_first_and_is_not_measured(mock: Mock) -> None:
    summary = await run(mock, models=("base", "a"), num_warmup=4)
    assert summary.num_requests == 6
    assert sorted(str(body["model"]) for body in mock.bodies[:4]) == ["a", "a", "base", "base"]
    assert len(mock.bodies) == 10


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("absent", 'HTTP 404: {"error":{"message":"no model absent"}}'),
        ("broken", 'error in the stream: {"message": "the engine died"}'),
        ("cut", "the stream ended without [DONE]"),
        ("empty", "the stream held no output"),
    ],
)
async def test_faults_are_counted_under_their_reason(mock: Mock, model: str, error: str) -> None:
    summary = await run(mock, models=(model, "base"), num_warmup=0)
    assert (summary.num_failed, summary.errors) == (3, {error: 3})


async def test_a_model_with_nothing_to_say_is_no_fault(mock: Mock) -> None:
    summary = await run(mock, models=("speechless",), num_warmup=0)
    assert summary.num_failed == 0
    assert summary.time_to_first_token is None


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(bench_command, [*arguments, "--quiet"])
    return result.exit_code, result.output


def test_the_command_prints_a_table_and_writes_json(mock: Mock, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    options = ("--base-url", mock.url, "--num-prompts", "4", "--output-len", "3", "--ignore-eos")
    status, output = invoke(*options, "--api-key", "secret", "--json", str(path))
    assert status == 0, output
    assert "output tokens/s" in output
    assert "time to first token" in output
    document = json.loads(path.read_text())
    assert document["summary"]["num_output_tokens"] == 4 * 6
    assert document["workload"]["models"] == ["base"]
    assert document["machine"]["num_cpus"] >= 1
    assert mock.keys == {"Bearer secret"}
    assert all(body["ignore_eos"] is True for body in mock.bodies)
    assert "secret" not in path.read_text()


def test_a_failed_request_gives_status_1(mock: Mock) -> None:
    status, output = invoke(
        "--base-url", mock.url, "--num-prompts", "2", "--model", "cut", "--num-warmup", "0"
    )
    assert status == 1
    assert "failed 2 x  the stream ended without [DONE]" in output


def test_a_failing_warmup_ends_the_run_with_its_reason(mock: Mock) -> None:
    status, output = invoke("--base-url", mock.url, "--model", "absent")
    assert status == 1
    assert "warm-up failed: HTTP 404" in output


def test_nobody_there_is_one_line() -> None:
    status, output = invoke("--base-url", "http://127.0.0.1:9")
    assert status == 1
    assert output.startswith("Error: http://127.0.0.1:9/v1/models:")
    assert len(output.strip().splitlines()) == 1


def test_a_server_without_models_is_one_line(mock: Mock) -> None:
    status, output = invoke("--base-url", f"{mock.url}/elsewhere")
    assert status == 1
    assert output.startswith(f"Error: {mock.url}/elsewhere/v1/models")
    assert len(output.strip().splitlines()) == 1


def test_a_results_file_that_cannot_be_is_refused_before_the_load(
    mock: Mock, tmp_path: Path
) -> None:
    status, output = invoke("--base-url", mock.url, "--json", str(tmp_path))
    assert status == 2
    assert "directory" in output
    assert not mock.bodies


def test_several_prefixes_need_a_length() -> None:
    status, output = invoke("--num-prefixes", "2", "--model", "base")
    assert status == 2
    assert "--num-prefixes needs --prefix-len" in output


def test_rate_and_concurrency_exclude_each_other() -> None:
    status, output = invoke("--rate", "2", "--concurrency", "2", "--model", "base")
    assert status == 2
    assert "--rate and --concurrency exclude each other" in output


def test_addresses_may_be_given_with_or_without_the_version() -> None:
    assert with_version("http://h:1") == with_version("http://h:1/v1/") == "http://h:1/v1"


def test_the_recorded_command_hides_the_key() -> None:
    shown = command_line(["bench", "--api-key", "secret", "--seed", "1"])
    assert shown == "branchline bench --api-key '***' --seed 1"
    assert "secret" not in command_line(["bench", "--api-key=secret"])


def test_the_command_needs_only_the_base_dependencies() -> None:
    heavy = ("torch", "transformers", "fastapi", "pydantic", "starlette", "zmq", "numpy")
    block = f"import sys\nfor name in {heavy!r}: sys.modules[name] = None\n"
    code = block + "from branchline.server.bench.command import bench_command"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
