"""Spans and metrics for OpenTelemetry (extra `otel`: `pip install 'wme-async[otel]'`, which brings its API alone).

    async with Client.from_env(telemetry=OpenTelemetry()) as wme: ...

The names follow the stable conventions for HTTP clients; those of our own begin with `wme.`. An SDK and exporters are
the application's choice. Without an SDK nothing is recorded.

Spans: one of kind CLIENT for each attempt of a request, from its start to the head of the response (`GET`, with
`http.request.method`, `server.address`, `server.port`, `url.full` without its query, `http.response.status_code`,
`http.request.resend_count`, `error.type`); one of kind INTERNAL for each download, read and task (`wme.download`,
`wme.read`, `wme.task`). There is none for a record. No header is added to requests, so that the object store never
sees a trace.

Metrics: `http.client.request.duration`, `wme.task.duration`, and for each stream `wme.stream.records`,
`wme.stream.reconnects`, `wme.stream.gaps`, and `wme.stream.lag` of each partition, in seconds; `wme.lease.lost` of
streams that several members share.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from wme_async._stream.reports import StreamStatistics
from wme_async._telemetry import Report, StreamTelemetry
from wme_async._version import __version__
from wme_async.errors import StatusError

try:
    from opentelemetry import metrics, trace
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode
except ImportError as _error:
    raise ImportError("OpenTelemetry needs the extra `otel`: pip install 'wme-async[otel]'") from _error

__all__ = ["OpenTelemetry"]

# Seconds, as the conventions for HTTP advise.
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
_PORTS = {"http": 80, "https": 443}


class OpenTelemetry:
    """Reports to OpenTelemetry: the argument `telemetry` of a `Client`. Several clients may share one.

    Args:
        tracer_provider: Where spans go; by default the provider of the process.
        meter_provider: Where metrics go; by default the provider of the process.
    """

    def __init__(
        self,
        *,
        tracer_provider: "trace.TracerProvider | None" = None,
        meter_provider: "metrics.MeterProvider | None" = None,
    ) -> None:
        self._tracer = trace.get_tracer("wme_async", __version__, tracer_provider)
        meter = metrics.get_meter("wme_async", __version__, meter_provider)
        self._requests = meter.create_histogram(
            "http.client.request.duration",
            unit="s",
            description="Duration of HTTP client requests.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._tasks = meter.create_histogram("wme.task.duration", unit="s", description="Duration of bulk tasks.")
        self._records = meter.create_counter("wme.stream.records", unit="{record}", description="Records of a stream.")
        self._reconnects = meter.create_counter(
            "wme.stream.reconnects", unit="{connection}", description="Connections of a stream after the first of each."
        )
        self._gaps = meter.create_counter(
            "wme.stream.gaps", unit="{gap}", description="Times that events were missing."
        )
        self._leases = meter.create_counter(
            "wme.lease.lost", unit="{lease}", description="Parts of a shared stream that were lost to another member."
        )
        self._lag = meter.create_gauge(
            "wme.stream.lag", unit="s", description="Age of the last event that was read from a partition."
        )

    @contextlib.contextmanager
    def attempt(self, method: str, url: str, resends: int) -> Iterator[Report]:
        """Observe one attempt of a request."""
        parts = urlsplit(url)
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "server.address": parts.hostname or "",
            "server.port": parts.port or _PORTS.get(parts.scheme, 443),
        }
        resent = {"http.request.resend_count": resends} if resends else {}
        outcome: dict[str, Any] = {}

        def report(**facts: Any) -> None:
            outcome["http.response.status_code"] = facts["status"]

        began = time.monotonic()
        try:
            with self._traced(method, SpanKind.CLIENT, {**attributes, **resent, "url.full": url}, outcome):
                yield report
        finally:
            self._requests.record(time.monotonic() - began, {**attributes, **outcome})

    @contextlib.contextmanager
    def operation(self, name: str, facts: dict[str, Any]) -> Iterator[Report]:
        """Observe a download, a read or a task."""
        began = time.monotonic()
        failure: dict[str, Any] = {}
        try:
            with self._traced(f"wme.{name}", SpanKind.INTERNAL, _attributes(facts), failure) as span:
                yield lambda **reported: span.set_attributes(_attributes(reported))
        finally:
            if name == "task":
                self._tasks.record(time.monotonic() - began, failure)

    @contextlib.contextmanager
    def _traced(self, name: str, kind: SpanKind, attributes: dict[str, Any], outcome: dict[str, Any]) -> Iterator[Span]:
        """Trace a block, and add how it failed to the attributes of its outcome."""
        span = self._tracer.start_span(name, kind=kind, attributes=attributes)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                outcome |= _failure(span, error)
                raise
            finally:
                span.set_attributes(outcome)

    def stream(self, name: str) -> StreamTelemetry:
        """Return the function that takes the statistics of a stream."""
        attributes = {"wme.stream.name": name}
        before = {"events": 0, "reconnects": 0, "gaps": 0}
        counters = {"events": self._records, "reconnects": self._reconnects, "gaps": self._gaps}

        def take(statistics: StreamStatistics) -> None:
            for key, counter in counters.items():
                total = getattr(statistics, key)
                counter.add(total - before[key], attributes)
                before[key] = total
            for partition in statistics.partitions:
                if partition.age is not None:
                    self._lag.set(partition.age, {**attributes, "wme.stream.partition": partition.partition})

        return take

    def lease_lost(self, stream: str, part: int) -> None:
        """Count a part of a shared stream that another member took."""
        self._leases.add(1, {"wme.stream.name": stream, "wme.stream.part": part})


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    return {"url.full" if name == "url" else f"wme.{name}": fact for name, fact in facts.items() if fact is not None}


def _failure(span: Span, error: BaseException) -> dict[str, Any]:
    """Set the status of a span that ends with an exception, and return the attributes that describe it.

    A cancellation is no failure.
    """
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return {"wme.cancelled": True}
    if isinstance(error, StatusError):
        span.set_status(Status(StatusCode.ERROR))
        return {"http.response.status_code": error.status, "error.type": str(error.status)}
    span.set_status(Status(StatusCode.ERROR, str(error)))
    return {"error.type": type(error).__name__}
