"""Workers' parts: their configs, whole lines, one port, metrics of all in one text."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
from collections import Counter as Counts
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from branchline.gateway import command
from branchline.gateway.access_log import whole_lines, write_stdout
from branchline.gateway.admin_check import AdminCheck
from branchline.gateway.config import GatewayConfig, ProxyLimits
from branchline.gateway.fleet.identity import digest_key
from branchline.gateway.fleet.process import ListenError, bind
from branchline.gateway.gate import Gate
from branchline.gateway.metrics import GatewayMetrics
from branchline.gateway.proxy.job import Trail
from branchline.gateway.system_api import SystemApi
from branchline.gateway.workers import siblings as siblings_module
from branchline.gateway.workers.channel import Order, order_frame, receive_order
from branchline.gateway.workers.merged_metrics import merge
from branchline.gateway.workers.port import bind_shared, reserve
from branchline.gateway.workers.siblings import Siblings

HOST = "127.0.0.1"
CONFIG = GatewayConfig(
    redis="redis://h",
    replicas=(),
    fleet_secret="s3cret",
    workers=3,
    state_dir=Path("/state"),
    limits=ProxyLimits(max_streams=10),
)


def refusal(*words: str) -> str:
    done = CliRunner().invoke(command.gateway_command, ["--fleet-secret", "s", *words])
    assert done.exit_code == 2
    return done.output


def test_more_than_one_worker_need_redis() -> None:
    static = ("--replica", "http://a:1")
    assert "Error: --workers: more than 1 need --redis" in refusal(*static, "--workers", "2")


@pytest.mark.parametrize("number", ["0", "65", "two"])
def test_the_number_of_workers_is_bounded(number: str) -> None:
    assert "--workers" in refusal("--redis", "redis://h", "--workers", number)


def test_workers_share_streams_and_keep_their_states_apart() -> None:
    configs = [CONFIG.of_worker(number, 81) for number in range(3)]
    assert [str(config.state_dir) for config in configs] == [
        "/state",
        "/state/worker-1",
        "/state/worker-2",
    ]
    assert {(config.port, config.limits.max_streams) for config in configs} == {(81, 4)}


def test_an_order_arrives_whole() -> None:
    order = Order(number=1, config=CONFIG.of_worker(1, 81), directory=Path("/sockets"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(order_frame(order))
        assert receive_order(theirs) == order
        ours.close()
        with pytest.raises(EOFError):
            receive_order(theirs)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("a\nb\n", ["a\nb\n"]),
        ("aaaa\nbbb\ncc\n", ["aaaa\nbbb\n", "cc\n"]),
        ("a\nlonger than that\nb\n", ["a\n", "longer than that\n", "b\n"]),
        ("longer than that", ["longer than that"]),
    ],
)
def test_lines_are_cut_at_their_ends(text: str, pieces: list[str]) -> None:
    assert [piece.decode() for piece in whole_lines(text.encode(), 10)] == pieces


def test_no_write_is_larger_than_what_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def write(number: int, data: Any) -> int:
        written.append(bytes(data))
        return len(data)

    monkeypatch.setattr("os.write", write)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    text = "".join(f"{n} {'x' * (n % 700)}\n" for n in range(500))
    write_stdout(text)
    assert b"".join(written).decode() == text
    assert all(len(part) <= select.PIPE_BUF and part.endswith(b"\n") for part in written)


def test_lines_of_several_processes_stay_whole_in_a_pipe() -> None:
    code = (
        "import os, sys\nfrom branchline.gateway.access_log import write_stdout\n"
        "os.write(2, b'.')\n"
        "for n in range(20): write_stdout((sys.argv[1] * 299 + '\\n') * 300)"
    )
    (reading, writing), (begun, beginning) = os.pipe(), os.pipe()
    writers = [
        subprocess.Popen([sys.executable, "-P", "-c", code, name], stdout=writing, stderr=beginning)
        for name in "abc"
    ]
    os.close(writing)
    for _ in writers:  # none is read before all of them write
        assert os.read(begun, 1) == b"."
    with open(reading) as output:
        lines = [line.rstrip("\n") for line in output]
    assert [writer.wait(10) for writer in writers] == [0] * 3
    assert Counts(lines) == {name * 299: 6000 for name in "abc"}
    os.close(begun)
    os.close(beginning)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def test_a_reserved_port_is_the_workers_alone() -> None:
    with reserve(HOST, 0) as holder:
        port = holder.getsockname()[1]
        for stranger in (reserve, bind):
            with pytest.raises(ListenError, match=f"can't listen on {HOST}:{port}: .*in use"):
                stranger(HOST, port)
        with bind_shared(HOST, port) as one, bind_shared(HOST, port) as other:
            assert not listens(port)
            one.listen()
            other.listen()
            assert listens(port)
            with pytest.raises(ListenError):
                reserve(HOST, port)
        assert not listens(port)


@pytest.mark.parametrize("option", [None, socket.SO_REUSEPORT])
def test_a_strangers_port_is_refused(option: int | None) -> None:
    with socket.socket() as stranger:
        if option is not None:
            stranger.setsockopt(socket.SOL_SOCKET, option, 1)
        stranger.bind((HOST, 0))
        stranger.listen()
        with pytest.raises(ListenError, match="in use"):
            reserve(HOST, stranger.getsockname()[1])


def test_connections_of_an_earlier_gateway_keep_no_port() -> None:
    with bind(HOST, 0) as listener:
        port = listener.getsockname()[1]
        listener.listen()
        with socket.create_connection((HOST, port)) as client:
            listener.accept()[0].close()  # whoever closes first, lingers
            client.recv(1)
    with reserve(HOST, port) as holder, bind_shared(HOST, port):
        assert holder.getsockname()[1] == port


def text_of(num_requests: int) -> bytes:
    registry = CollectorRegistry()
    requests = Counter("requests", "Of\n\\ it.", ("tenant",), registry=registry)
    requests.labels('a"\\\n').inc(num_requests)
    if num_requests > 1:
        Gauge("only_here", "One.", registry=registry).set(7)
    Histogram("seconds", "Time.", registry=registry, buckets=(1.0, 2.0)).observe(num_requests)
    return generate_latest(registry)


def samples_of(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_each_sample_has_its_worker_and_each_family_one_head() -> None:
    merged = merge({1: text_of(2), 0: text_of(1)}, 3)
    names = [line.split()[2] for line in merged.decode().splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    samples = samples_of(merged)
    assert samples.pop(("branchline_gateway_workers", ())) == 3
    assert samples.pop(("branchline_gateway_workers_up", ())) == 2
    expected = {
        (name, tuple(sorted([*labels, ("worker", str(number))]))): value
        for number, text in enumerate([text_of(1), text_of(2)])
        for (name, labels), value in samples_of(text).items()
    }
    created = {key for key in expected if key[0].endswith("_created")}
    assert samples.keys() == expected.keys()
    assert all(samples[key] == expected[key] for key in expected.keys() - created)


def test_types_and_help_survive() -> None:
    def heads(text: bytes) -> list[bytes]:
        return [line for line in text.splitlines() if line.startswith(b"#")]

    assert [line for line in heads(merge({0: text_of(2)}, 1)) if b"_workers" not in line] == heads(
        text_of(2)
    )


async def test_siblings_tell_each_other(tmp_path: Path) -> None:
    first, second = (Siblings(tmp_path, number, 2) for number in (0, 1))
    large = b"x" * 3_000_000
    (tmp_path / "1.sock").touch()  # what a killed one left
    async with first.answering(lambda: b"first"), second.answering(lambda: large):
        assert await first.collect(b"own") == {0: b"own", 1: large}
        assert await second.collect(b"own") == {0: b"first", 1: b"own"}


async def test_siblings_that_do_not_tell_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(siblings_module, "TELL_SECONDS", 0.1)

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"# HELP the rest is miss")
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    asker = Siblings(tmp_path, 0, 4)  # number 3 is not there at all
    async with (
        await asyncio.start_unix_server(half, tmp_path / "1.sock"),
        await asyncio.start_unix_server(hang, tmp_path / "2.sock"),
    ):
        assert await asker.collect(b"own") == {0: b"own"}


@pytest.mark.parametrize("is_admin", [True, False])
async def test_names_of_all_workers_are_for_admins_only(tmp_path: Path, is_admin: bool) -> None:
    metrics, stub = GatewayMetrics(), cast("Any", None)
    trail = Trail(request_id="r", path="/v1/completions", tenant="acme", tenant_is_known=True)
    metrics.ended(trail)
    admin = AdminCheck((digest_key("key"),), keyless=False)
    first, second = (Siblings(tmp_path, number, 2) for number in (0, 1))
    app = Starlette(routes=SystemApi(Gate(1), stub, metrics, "1", admin, first).routes())
    headers = {"authorization": "Bearer key"} if is_admin else {}
    async with (
        second.answering(metrics.render),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://g") as client,
    ):
        text = (await client.get("/metrics", headers=headers)).text
    assert text.count('tenant="acme",worker="') == (4 if is_admin else 0)
    assert text.count("branchline_gateway_request_seconds_count{") == 2
    assert "branchline_gateway_workers_up 2.0" in text
