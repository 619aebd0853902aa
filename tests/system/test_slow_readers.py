"""A client that does not read its stream: work on it stops, others go on, and so does it later."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gateway_process import Fleet, fleet
from server_process import ServerProcess, serve, wait_for

from .conftest import BASE, SERVE_FLAGS, Models

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]

NUM_CHOICES, MAX_TOKENS = 4, 2000
LONG: dict[str, Any] = {
    "model": BASE,
    "messages": [{"role": "user", "content": "abc"}],
    "max_tokens": MAX_TOKENS,
    "logprobs": True,
    "top_logprobs": 20,
    "temperature": 0.9,
    "seed": 7,
    "ignore_eos": True,
    "stream": True,
}
MAX_GROWTH_BYTES = 100 << 20
RECEIVE_BYTES = 1 << 16
REPLICA = "replica-1"


@dataclass
class Answer:
    """One choice as its client has put it together."""

    text: str = ""
    tokens: list[str] = field(default_factory=list)
    finish_reason: str | None = None


class RawReader:
    """A client that sends a request and reads nothing until it is told to."""

    def __init__(self, url: str, num_choices: int = NUM_CHOICES) -> None:
        address, body = urlsplit(url), json.dumps({**LONG, "n": num_choices}).encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self._socket.settimeout(60)
        self._socket.connect((address.hostname, address.port))
        head = f"host: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self._socket.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\n" + f"{head}\r\n".encode() + body
        )

    def read_on(self) -> list[Answer]:
        """Read to the end; the choices."""
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        assert response.status == 200
        answers = [Answer() for _ in range(NUM_CHOICES)]
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line.removeprefix(b"data: "))["choices"]:
                answer = answers[choice["index"]]
                answer.text += choice["delta"].get("content") or ""
                scores = choice.get("logprobs") or {"content": []}
                answer.tokens += [score["token"] for score in scores["content"]]
                answer.finish_reason = choice["finish_reason"] or answer.finish_reason
        self.close()
        return answers

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def house(models: Models) -> Iterator[Fleet]:
    flags = (*SERVE_FLAGS, "--kv-cache-gb", "0.2", "--shutdown-timeout", "1")
    with fleet(
        models.model, replicas=1, with_redis=False, serve_flags=flags, lora=models.lora
    ) as house:
        yield house


@pytest.fixture(scope="module")
def server(house: Fleet) -> ServerProcess:
    return house.replicas[REPLICA]


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess) -> list[Answer]:
    answers = RawReader(server.base_url).read_on()
    assert [len(answer.tokens) for answer in answers] == [MAX_TOKENS] * NUM_CHOICES
    assert [answer.finish_reason for answer in answers] == ["length"] * NUM_CHOICES
    assert len({answer.text for answer in answers}) == NUM_CHOICES
    return answers


def test_who_takes_nothing_for_too_long_is_cut_off(models: Models) -> None:
    flags = (*SERVE_FLAGS, "--kv-cache-gb", "0.2", "--client-timeout", "2")
    with serve(models.model, *flags) as server:
        reader = RawReader(server.base_url)
        ended = {"finished_reason": "abort", "model_name": BASE}
        wait_for(lambda: server.metric("vllm:request_success_total", **ended) == NUM_CHOICES, 60)
        assert num_held(server) == server.metric("vllm:num_requests_running") == 0
        with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
            assert all(answer.finish_reason for answer in reader.read_on())
        reader.close()
        assert "Traceback" not in server.output()


def num_held(server: ServerProcess) -> float:
    return server.metric("branchline:requests_held")


def wait_until_held(server: ServerProcess, num_choices: int = NUM_CHOICES) -> None:
    wait_for(lambda: num_held(server) == num_choices, 100, server.output)


def generated(server: ServerProcess) -> float:
    return server.metric("vllm:generation_tokens_total")


def complete(url: str, max_tokens: int) -> None:
    body = {"model": "tenant-8", "prompt": "xyz", "max_tokens": max_tokens, "ignore_eos": True}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == max_tokens


def test_nothing_is_computed_for_a_client_that_does_not_read(
    house: Fleet, server: ServerProcess, undisturbed: list[Answer]
) -> None:
    processes = [psutil.Process(server.process.pid), psutil.Process(server.engine_pid)]
    before = sum(process.memory_info().rss for process in processes)
    num_before = generated(server)
    reader = RawReader(server.base_url)
    wait_until_held(server)
    num_computed = generated(server) - num_before
    assert num_computed < 0.8 * NUM_CHOICES * MAX_TOKENS, "the rest is what kernels buffer"
    for metric in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
        assert server.metric(metric) == 0
    assert server.metric("branchline:kv_blocks", tier="device", state="in_use") == 0
    for _ in range(10):
        complete(server.base_url, 100)
    assert generated(server) == num_before + num_computed + 1000, "of the others alone"
    assert num_held(server) == NUM_CHOICES
    assert server.is_ready()
    assert house.up() == {REPLICA}
    assert sum(process.memory_info().rss for process in processes) < before + MAX_GROWTH_BYTES
    assert reader.read_on() == undisturbed
    wait_for(lambda: num_held(server) == 0, 10)


def test_a_gateway_passes_it_on(house: Fleet, server: ServerProcess) -> None:
    """Twice as many choices, since there are twice as many buffers on the way."""
    reader = RawReader(house.url, 2 * NUM_CHOICES)
    wait_until_held(server, 2 * NUM_CHOICES)
    complete(house.url, 100)
    assert num_held(server) == 2 * NUM_CHOICES
    assert house.up() == {REPLICA}
    reader.close()
    wait_for(lambda: num_held(server) == 0, 10, house.output)


def test_a_client_that_leaves_without_having_read(server: ServerProcess) -> None:
    reader = RawReader(server.base_url)
    wait_until_held(server)
    reader.close()
    wait_for(lambda: num_held(server) == 0, 10, server.output)


def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(
    server: ServerProcess,
) -> None:
    reader = RawReader(server.base_url)
    wait_until_held(server)
    server.terminate()
    assert server.wait(20) == 0
    assert "the time is up" in server.output()
    reader.close()
