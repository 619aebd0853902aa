"""OpenTelemetry traces, from a gateway's door to a replica's steps; off unless asked for.

Spans carry names, counts and times, never text, keys or token ids. The context travels in the
header ``traceparent`` (W3C Trace Context). OpenTelemetry is an extra: ``pip install
branchline[tracing]``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer as OtelTracer

Attribute = str | int | float | bool


class TracingError(ValueError):
    """Traces are asked for and can't be had; says why."""


class Span:
    """One piece of work; ended once, by ``end``."""

    def __init__(self, tracer: OtelTracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def traceparent(self) -> str:
        """The header that makes another process' spans children of this one."""
        context = self._span.get_span_context()
        flags = int(context.trace_flags)
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"

    def child(
        self,
        name: str,
        attributes: Mapping[str, Attribute] | None = None,
        started: float | None = None,
    ) -> Span:
        """A part of this work; ``started`` is a ``time.time`` of the past."""
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(self._span)
        return _start(self._tracer, name, context, attributes, started)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, and in tasks begun inside, this is ``Tracer.current``; it does not end here."""
        from opentelemetry.trace import use_span

        with use_span(self._span, record_exception=False, set_status_on_exception=False):
            yield

    def set(self, name: str, value: Attribute) -> None:
        """Note a fact that was not known at the start."""
        self._span.set_attribute(name, value)

    def event(self, name: str, attributes: Mapping[str, Attribute] | None = None) -> None:
        """Note a moment."""
        self._span.add_event(name, dict(attributes or {}))

    def end(self, error: str | None = None, at: float | None = None) -> None:
        """Close it, as failed where there is an ``error``; ``at`` is a ``time.time``."""
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_nanoseconds(at))


class Tracer:
    """Starts spans of one service and sends them to a collector in the background."""

    def __init__(self, service: str, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": service})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("branchline")

    @classmethod
    def open(cls, service: str, endpoint: str) -> Tracer:
        """Send to an OTLP/HTTP collector, ``http://host:4318``; raises TracingError."""
        if not endpoint.startswith(("http://", "https://")):
            raise TracingError("--otlp-endpoint: must be http://host:port of an OTLP collector")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as error:
            message = "--otlp-endpoint: needs OpenTelemetry: pip install 'branchline[tracing]'"
            raise TracingError(message) from error
        return cls(service, OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))

    def start(
        self,
        name: str,
        traceparent: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
    ) -> Span:
        """A new span, under the caller's where it sent a good ``traceparent``."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        context = None
        if traceparent:
            context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        return _start(self._tracer, name, context, attributes, None)

    def current(self) -> Span | None:
        """The span that is ``active`` here."""
        from opentelemetry.trace import get_current_span

        span = get_current_span()
        return Span(self._tracer, span) if span.is_recording() else None

    def close(self) -> None:
        """Send what is left; waits for the collector, so not on an event loop."""
        self._provider.shutdown()


def _start(
    tracer: OtelTracer,
    name: str,
    context: Context | None,
    attributes: Mapping[str, Attribute] | None,
    started: float | None,
) -> Span:
    span = tracer.start_span(
        name, context=context, attributes=dict(attributes or {}), start_time=_nanoseconds(started)
    )
    return Span(tracer, span)


def _nanoseconds(seconds: float | None) -> int:
    return int((time.time() if seconds is None else seconds) * 1e9)
