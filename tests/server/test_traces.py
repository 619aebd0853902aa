"""Traces of a server: under the gateway's span, down to the engine's steps."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from branchline.engine.types import GenerationRequest, SamplingParams, TokenOutput
from branchline.gateway.fleet.tracing import Tracer
from branchline.server.choice_trace import ChoiceTracing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUEST = GenerationRequest(
    request_id="r", prompt_token_ids=[1, 2, 3], params=SamplingParams(seed=0), choice_index=1
)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    return Tracer("server", spans)


def named(tracer: Tracer, spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    tracer.close()
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_choice_is_queue_prefill_and_decode(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    steps = iter(range(10, 20))
    tracing = ChoiceTracing(tracer, lambda: next(steps))
    request = tracer.start("request", PARENT)
    with request.active(), tracing.trace(REQUEST) as trace:
        assert trace is not None
        first = TokenOutput(request_id="r", token_ids=[7], queue_seconds=0.5, num_cached_tokens=2)
        trace.take(first)
        trace.take(TokenOutput(request_id="r", token_ids=[8, 9], finish_reason="stop"))
    request.end()
    found = named(tracer, spans)
    queue, prefill, decode = (found[f"engine.{part}"] for part in ("queue", "prefill", "decode"))
    for part in (queue, prefill, decode):
        assert part.parent is not None
        assert part.parent.span_id == found["request"].get_span_context().span_id  # type: ignore[union-attr]
        assert part.parent.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert queue.end_time == queue.start_time + 500_000_000  # type: ignore[operator]
    assert prefill.start_time == queue.end_time
    assert decode.start_time == prefill.end_time
    assert dict(prefill.attributes or {}) == {
        "prompt_tokens": 3,
        "cached_tokens": 2,
        "replayed_tokens": 0,
        "last_step": 10,
    }
    assert dict(decode.attributes or {}) == {
        "first_step": 11,
        "choice": 1,
        "completion_tokens": 3,
        "last_step": 12,
        "finish_reason": "stop",
    }


def test_one_that_fails_in_the_queue(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    request = tracer.start("request")
    with (
        request.active(),
        pytest.raises(ValueError, match="no"),
        ChoiceTracing(tracer, lambda: 1).trace(REQUEST),
    ):
        raise ValueError("no")
    request.end()
    span = named(tracer, spans)["engine.queue"]
    assert span.status.description == "ValueError"


def test_without_a_span_there_is_no_trace(tracer: Tracer) -> None:
    with ChoiceTracing(tracer, lambda: 1).trace(REQUEST) as trace:
        assert trace is None
    tracer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_over_http_they_hang_under_the_request(
    tracer: Tracer,
    spans: InMemorySpanExporter,
    server_of: Any,
    stream: bool,
) -> None:
    async with server_of(tracer) as client:
        headers = {"traceparent": PARENT, "x-request-id": "mine"}
        body = {"model": "base", "prompt": "hi", "max_tokens": 3, "stream": stream}
        answer = await client.post("/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200
        refused = await client.post("/v1/completions", json={"model": "none"}, headers=headers)
        assert refused.status_code == 400
    tracer.close()
    found = spans.get_finished_spans()
    whole, bad = (span for span in found if span.name == "server.request")
    assert whole.parent is not None
    assert whole.parent.span_id == 0xB7AD6B7169203331
    facts = dict(whole.attributes or {})
    assert facts["request_id"] == "mine"
    assert facts["http.response.status_code"] == 200
    assert "hi" not in map(str, facts.values())
    assert dict(bad.attributes or {})["http.response.status_code"] == 400
    decode = next(span for span in found if span.name == "engine.decode")
    assert decode.parent is not None
    assert decode.parent.span_id == whole.get_span_context().span_id  # type: ignore[union-attr]
    assert (decode.end_time or 0) <= (whole.end_time or 0)
