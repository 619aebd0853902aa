"""What a gateway shows of its requests: spans, lines, gauges."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from gateway_house import gateway_house
from mock_replica import Fault
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from branchline.gateway import access_log
from branchline.gateway.access_log import LineBuffer
from branchline.gateway.fleet.tracing import Tracer
from branchline.gateway.metrics import MAX_LABELS, GatewayMetrics
from branchline.gateway.proxy.job import Trail
from branchline.gateway.types import Usage

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


async def test_a_trace_has_every_try() -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer("test", exporter)
    async with gateway_house(tracer=tracer) as house:
        for replica in house.replicas:
            replica.faults = house.replicas[0].faults
        house.replicas[0].faults.append(Fault("status", status=500))
        status, _ = await house.answer({}, headers={"traceparent": PARENT})
        assert status == 200
        sent = [head["traceparent"] for replica in house.replicas for head in replica.headers]
    tracer.close()
    spans = exporter.get_finished_spans()
    names = sorted(span.name for span in spans)
    assert (
        names
        == ["gateway.admit", *["gateway.attempt"] * 2, "gateway.request"] + ["gateway.route"] * 2
    )
    attempts = [span for span in spans if span.name == "gateway.attempt"]
    assert {dict(span.attributes or {})["outcome"] for span in attempts} == {"failed", "ok"}
    assert all(header.startswith(f"00-{'a' * 32}-") for header in sent)
    assert sorted(header[36:52] for header in sent) == sorted(
        f"{span.context.span_id:016x}" for span in attempts
    )


async def test_without_a_tracer_the_clients_parent_passes() -> None:
    async with gateway_house() as house:
        await house.answer({}, headers={"traceparent": PARENT})
        (head,) = [head for replica in house.replicas for head in replica.headers]
    assert head["traceparent"] == PARENT


async def test_lines_on_top_are_dropped() -> None:
    access_log_lines: list[str] = []
    buffer = LineBuffer(access_log_lines.append)
    for number in range(access_log.MAX_LINES + 5):
        buffer.add(f"{number}\n")
    buffer.flush()
    assert access_log_lines[0].count("\n") == access_log.MAX_LINES
    buffer.add("next\n")
    task = asyncio.create_task(buffer.run())
    async with asyncio.timeout(5):
        while len(access_log_lines) < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    assert access_log_lines[1] == "next\n"


def test_a_pipe_that_nobody_reads_does_not_keep_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_log, "FLUSH_SECONDS", 0.1)
    is_read = threading.Event()
    written: list[str] = []

    def write(text: str) -> None:
        is_read.wait(10)
        written.append(text)

    buffer = LineBuffer(write)
    buffer.add("one\n")
    started = time.monotonic()
    for _ in range(2):
        buffer.flush()
        buffer.add("two\n")
    assert time.monotonic() - started < 5
    assert not written
    is_read.set()
    buffer.flush()
    assert written == ["one\n", "two\ntwo\n"]


def test_labels_are_bounded() -> None:
    metrics = GatewayMetrics()
    for number in range(MAX_LABELS + 100):
        trail = Trail(request_id="x", path="/v1/completions", status=200)
        trail.tenant, trail.tenant_is_known = f"t{number}", True
        trail.label, trail.usage = f"m{number}", Usage(num_input_tokens=1, num_output_tokens=1)
        metrics.ended(trail)
    text = metrics.render().decode()
    assert text.count("branchline_gateway_requests_total{") == MAX_LABELS + 1
    assert 'tenant="other"} 100.0' in text
