"""One trace from the client's request to the engine's steps, over real processes."""

from __future__ import annotations

import httpx
import pytest
from chaos_cases import BASE, SERVE_FLAGS
from gateway_process import OPEN, fleet
from server_process import wait_for
from tiny_models import make_tiny_model
from trace_collector import Collector, trace_collector

pytestmark = [pytest.mark.slow]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PROMPT = "a secret that is in no trace"


def test_a_trace_from_the_door_to_the_steps(tmp_path_factory: pytest.TempPathFactory) -> None:
    model = make_tiny_model(tmp_path_factory.mktemp("traced") / "model", "llama")
    with trace_collector() as collector:
        traced = ("--otlp-endpoint", collector.url)
        serve, gateway = (*SERVE_FLAGS, *traced), (*OPEN, *traced)
        with fleet(model, replicas=1, serve_flags=serve, gateway_flags=gateway) as house:
            answer = httpx.post(
                f"{house.url}/v1/completions",
                json={"model": BASE, "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True},
                headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
        wait_for(lambda: len(of_trace(collector)) >= 5, 20.0)
    check(collector)


def of_trace(collector: Collector) -> dict[str, str]:
    """Names of the spans of our request, and those of their parents."""
    ours = {span.span: span for span in collector.spans if span.trace == TRACE}
    return {
        span.name: ours[span.parent].name if span.parent in ours else "" for span in ours.values()
    }


def check(collector: Collector) -> None:
    parents = of_trace(collector)
    assert parents["gateway.request"] == ""
    assert parents["gateway.attempt"] == "gateway.request"
    assert parents["server.request"] == "gateway.attempt"
    for part in ("queue", "prefill", "decode"):
        assert parents[f"engine.{part}"] == "server.request"
    ours = [span for span in collector.spans if span.trace == TRACE]
    assert {span.service for span in ours} == {"branchline-gateway", "branchline-server"}
    decode = next(span for span in ours if span.name == "engine.decode")
    assert decode.attributes["completion_tokens"] == "5"
    assert int(decode.attributes["last_step"]) >= int(decode.attributes["first_step"]) + 3
    assert not any(PROMPT in str(span) for span in ours)
