"""A gateway of several processes: one port, one count, and nobody left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import metric_of, start_command, wait_for
from worker_house import (
    HeldStream,
    WorkerHouse,
    ask,
    metrics_of,
    num_up,
    worker_house,
    workers_of,
)

from .conftest import BASE, SERVE_FLAGS, Models

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NUM_REQUESTS = 40
REQUESTS = "branchline_gateway_requests_total"


def wait_for_end(processes: list[psutil.Process]) -> bool:
    """Whether they have all ended, within a few seconds."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerHouse]:
    with worker_house(tmp_path_factory.mktemp("sockets")) as house:
        yield house


def test_whoever_is_asked_counts_what_all_have_served(house: WorkerHouse, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with house.serving("--state-dir", str(state)) as gateway:
        assert [ask(gateway) for _ in range(NUM_REQUESTS)] == [200] * NUM_REQUESTS
        for _ in range(12):  # by chance one worker or the other
            text = metrics_of(gateway)
            shares = [metric_of(text, REQUESTS, worker=str(n), status="200") for n in (0, 1)]
            assert sum(shares) == metric_of(text, REQUESTS) == NUM_REQUESTS
            assert all(shares)
            assert metric_of(text, "branchline_gateway_workers_up") == 2
        for _ in range(6):
            text = metrics_of(gateway, as_admin=False)
            assert metric_of(text, "branchline_gateway_request_seconds_count") == NUM_REQUESTS
            assert "tenant=" not in text
            assert "model=" not in text
        gateway.terminate()
        assert gateway.wait() == 0
        lines = gateway.output().splitlines()
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert [line["status"] for line in logged] == [200] * NUM_REQUESTS
    assert [line for line in lines if "serving on" in line] == lines[:1]
    assert lines[-1] == "branchline: shut down"
    assert {path.name for path in state.glob("**/store.json")} == {"store.json"}
    assert (state / "worker-1" / "store.json").exists()


def test_a_worker_that_is_killed_comes_back(house: WorkerHouse) -> None:
    with house.serving() as gateway:
        killed = workers_of(gateway)[0]
        killed.kill()
        assert wait_for_end([killed])
        assert num_up(gateway) == 1
        assert [ask(gateway) for _ in range(10)] == [200] * 10
        assert "ended with status -9; starts again in 1 s" in gateway.output()
        wait_for(lambda: num_up(gateway) == 2, 20, gateway.output)
        assert len(workers_of(gateway)) == 2
        wait_for(lambda: {ask(gateway) for _ in range(10)} == {200}, 10, gateway.output)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_end_by_themselves_whomever_the_signal_reaches(
    house: WorkerHouse, number: signal.Signals
) -> None:
    with house.serving() as gateway:
        streams = [HeldStream(gateway) for _ in range(6)]
        everybody = [*workers_of(gateway), psutil.Process(gateway.process.pid)]
        for process in everybody:  # as a terminal does, or a service manager
            process.send_signal(number)
        for worker in workers_of(gateway):
            worker.send_signal(number)
        assert all(stream.is_whole() for stream in streams)
        assert gateway.wait() == 0
        assert wait_for_end(everybody)
    assert not house.leftovers()


def test_a_second_signal_ends_all_at_once(house: WorkerHouse) -> None:
    with house.serving() as gateway:
        stream = HeldStream(gateway)
        workers = workers_of(gateway)
        gateway.terminate()
        wait_for(lambda: "shutting down; 1 requests" in gateway.output(), 5, gateway.output)
        gateway.terminate()
        assert gateway.wait(2) == -signal.SIGTERM
        assert wait_for_end(workers)
        assert not stream.is_whole()
    assert not house.leftovers()


def test_streams_beyond_the_time_are_ended(house: WorkerHouse) -> None:
    with house.serving("--shutdown-timeout", "0.5") as gateway:
        stream = HeldStream(gateway)
        gateway.terminate()
        assert gateway.wait(3) == 0
        assert not stream.is_whole()


def test_nobody_outlives_a_killed_parent(house: WorkerHouse) -> None:
    with house.serving() as gateway:
        workers = workers_of(gateway)
        port = int(gateway.base_url.rpartition(":")[2])
        os.kill(workers[0].pid, signal.SIGSTOP)  # this one hears of it later
        gateway.process.kill()
        assert wait_for_end(workers[1:])
        os.kill(workers[0].pid, signal.SIGCONT)
        assert wait_for_end(workers)
        assert not house.leftovers()
        with house.serving("--port", str(port)) as again:
            assert again.base_url == gateway.base_url
            assert ask(again) == 200


def test_a_port_that_is_taken_is_refused(house: WorkerHouse) -> None:
    with house.serving() as gateway, socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        theirs = stranger.getsockname()[1]
        for port in (theirs, gateway.base_url.rpartition(":")[2]):
            with house.gateway("--port", str(port)) as late:
                assert late.wait() == 1
                assert f"error: can't listen on 127.0.0.1:{port}: " in late.output()


def test_what_keeps_a_worker_from_starting_is_said_once(house: WorkerHouse) -> None:
    with house.gateway("--tenants", "/nowhere/tenants.yaml") as gateway:
        assert gateway.wait() == 1
        errors = [line for line in gateway.output().splitlines() if "error" in line]
        assert len(errors) == 1
        assert errors[0].startswith("branchline: error: ")
        assert "/nowhere/tenants.yaml" in errors[0]
    assert not house.leftovers()


def test_a_signal_during_the_start_is_obeyed(house: WorkerHouse) -> None:
    with house.gateway() as gateway:
        process = psutil.Process(gateway.process.pid)
        wait_for(lambda: len(process.children()) == 2, 20, gateway.output)
        workers = workers_of(gateway)
        gateway.terminate()
        assert gateway.wait() == 0
        assert wait_for_end(workers)
        assert "serving on" not in gateway.output()


def test_workers_have_no_secrets_in_their_command_lines_and_no_torch(house: WorkerHouse) -> None:
    with house.serving() as gateway:
        words = [word for worker in workers_of(gateway) for word in worker.cmdline()]
        assert words.count("branchline.gateway.workers.process") == 2
        assert not {"a-secret-of-this-fleet", "the-admin-key"} & set(words)
        for process in [*workers_of(gateway), psutil.Process(gateway.process.pid)]:
            assert not [one.path for one in process.memory_maps() if "torch" in one.path]


def test_up_has_workers_where_its_gateway_is_told_so(models: Models) -> None:
    words = [
        "up",
        str(models.model),
        "--replicas",
        "1",
        "--port",
        "0",
        "--gateway-flag=--workers=2",
    ]
    flags = [flag for flag in SERVE_FLAGS if flag not in ("--num-threads", "1")]
    with start_command(*words, *flags) as up:
        wait_for(lambda: "\nup: 1 replica" in up.output(), 90, up.output)
        found = re.search(r"behind (http\S+)", up.output())
        assert found is not None
        up.base_url = found[1]
        family = psutil.Process(up.process.pid).children(recursive=True)
        assert sum("branchline.gateway.workers.process" in one.cmdline() for one in family) == 2
        body = {"model": BASE, "prompt": "one", "max_tokens": 2}
        for _ in range(8):
            answer = httpx.post(f"{up.api_url}/completions", json=body, timeout=30)
            assert answer.status_code == 200, answer.text
        assert metric_of(metrics_of(up), REQUESTS, status="200") == 8
        up.terminate()
        assert up.wait() == 0
        assert wait_for_end(family)
