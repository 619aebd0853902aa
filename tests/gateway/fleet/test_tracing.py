"""Spans and how they hang together across processes."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from branchline.gateway.fleet.tracing import Tracer, TracingError


def test_a_trace_goes_on_in_another_process() -> None:
    near, far = InMemorySpanExporter(), InMemorySpanExporter()
    gateway, replica = Tracer("gateway", near), Tracer("replica", far)
    request = gateway.start("request", attributes={"tenant": "acme"})
    attempt = request.child("attempt")
    work = replica.start("work", attempt.traceparent)
    step = work.child("decode", {"tokens": 3}, started=10.0)
    step.end(at=12.5)
    work.end("engine died")
    attempt.end()
    request.end()
    gateway.close()
    replica.close()
    spans = {span.name: span for span in (*near.get_finished_spans(), *far.get_finished_spans())}
    assert len({span.context.trace_id for span in spans.values() if span.context}) == 1
    assert spans["request"].parent is None
    for child, parent in (("attempt", "request"), ("work", "attempt"), ("decode", "work")):
        above, of = spans[child].parent, spans[parent].context
        assert above is not None
        assert of is not None
        assert above.span_id == of.span_id
    assert (spans["decode"].start_time, spans["decode"].end_time) == (10**10, 12_500_000_000)
    assert not spans["work"].status.is_ok
    assert spans["work"].status.description == "engine died"
    assert spans["request"].attributes == {"tenant": "acme"}


@pytest.mark.parametrize("header", [None, "", "junk", "00-0-0-00", "00-" + "0" * 32 + "-1-01"])
def test_a_bad_parent_starts_a_trace_of_its_own(header: str | None) -> None:
    exporter = InMemorySpanExporter()
    tracer = Tracer("gateway", exporter)
    tracer.start("request", header).end()
    tracer.close()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_a_bad_endpoint_names_the_flag() -> None:
    with pytest.raises(TracingError, match="--otlp-endpoint"):
        Tracer.open("gateway", "collector:4318")


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TracingError, match=r"branchline\[tracing\]"):
        Tracer.open("gateway", "http://127.0.0.1:4318")
