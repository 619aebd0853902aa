"""The ends of a server: SIGTERM, a killed engine, a restarted one; never a hang."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import openai
import psutil
import pytest
from server_process import ServerProcess, serve, wait_for

from .conftest import SERVE_FLAGS, Models

pytestmark = pytest.mark.timeout(120)

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def connect(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.api_url, api_key="none", max_retries=0, timeout=60)


class Background:
    """A request in a thread of its own, and what became of it."""

    def __init__(self, server: ServerProcess, **fields: Any) -> None:
        self.error: Exception | None = None
        self.chunks: list[Any] = []
        self._fields = {"model": "base", "prompt": "abc", **fields}
        self._client = connect(server)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            answer: Any = self._client.completions.create(**self._fields)
            for chunk in answer if self._fields.get("stream") else [answer]:
                self.chunks.append(chunk)
        except Exception as error:
            self.error = error

    def join(self, seconds: float = 30) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the request hangs"
        self._client.close()


def test_a_killed_engine_ends_requests_and_the_server(models: Models) -> None:
    with serve(models.model, *SERVE_FLAGS) as server:
        streaming = Background(server, stream=True, **ENDLESS)
        waiting = Background(server, **ENDLESS)
        wait_for(lambda: server.metric("vllm:num_requests_running") == 2, 10)
        wait_for(lambda: len(streaming.chunks) > 2, 10)
        os.kill(server.engine_pid, signal.SIGKILL)
        streaming.join()
        waiting.join()
        assert isinstance(streaming.error, openai.APIError)
        assert "engine" in str(streaming.error)
        assert isinstance(waiting.error, openai.InternalServerError)
        assert waiting.error.status_code == 503
        assert waiting.error.code == "engine_dead"
        assert server.wait() == 1
        assert "the engine is gone" in server.output()
        assert "Traceback" not in server.output()


def test_restart_then_drain(models: Models) -> None:
    with serve(models.model, *SERVE_FLAGS, "--restart-engine") as server:
        waiting = Background(server, **ENDLESS)
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1, 10)
        killed = server.engine_pid
        os.kill(killed, signal.SIGKILL)
        waiting.join()
        assert isinstance(waiting.error, openai.InternalServerError)
        wait_for(lambda: server.status("/health") == 503, 5)
        wait_for(server.is_ready, 60, server.output)
        assert server.engine_pid != killed
        assert server.status("/health") == 200
        with connect(server) as client:
            answer = client.completions.create(model="base", prompt="abc", max_tokens=2)
            assert answer.choices[0].finish_reason in ("length", "stop")
        drain(server)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(models: Models, number: signal.Signals) -> None:
    with serve(models.model, *SERVE_FLAGS) as server:
        engine = psutil.Process(server.engine_pid)
        streaming = Background(server, stream=True, **ENDLESS)
        wait_for(lambda: len(streaming.chunks) > 2, 10)
        server.process.send_signal(number)
        wait_for(lambda: server.status("/ready") == 503, 5)
        server.process.send_signal(number)
        assert server.wait() == -number
        streaming.join()
        assert isinstance(streaming.error, Exception)
        engine.wait(10)
        assert "Traceback" not in server.output()


def drain(server: ServerProcess) -> None:
    """SIGTERM: the running stream finishes, new requests hear why not, the exit is clean."""
    running = Background(
        server,
        stream=True,
        max_tokens=1500,
        extra_body={"ignore_eos": True, "logit_bias": {"65": 100}},
    )
    wait_for(lambda: len(running.chunks) > 2, 10)
    server.terminate()
    wait_for(lambda: server.status("/ready") == 503, 5)
    assert server.status("/health") == 200
    with connect(server) as client, pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="base", prompt="abc")
    assert caught.value.status_code == 503
    assert caught.value.code == "draining"
    running.join()
    assert running.error is None
    assert running.chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].text for chunk in running.chunks) == "A" * 1500
    assert server.wait() == 0
    assert "Traceback" not in server.output()
