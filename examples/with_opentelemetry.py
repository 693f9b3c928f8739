"""Trace a download and measure its requests with OpenTelemetry, printed instead of exported.

    pip install 'wme-async[otel]' opentelemetry-sdk
    python examples/with_opentelemetry.py simplewiki_namespace_0 data/

In an application, give the providers the exporters of your collector in place of those of this script.
"""

import asyncio
import sys

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from wme_async import Client
from wme_async.integrations.otel import OpenTelemetry


async def main(archive: str, folder: str) -> None:
    """Print each span below those of its parents, and the names of the metrics."""
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider(metric_readers=[reader])
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)

    async with Client.from_env(telemetry=OpenTelemetry()) as wme:
        with trace.get_tracer("example").start_as_current_span("nightly copy"):
            await wme.snapshots.download(archive, folder)

    names = {span.context.span_id: span.name for span in spans.get_finished_spans()}
    for span in sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0):
        parent = f" of {names[span.parent.span_id]}" if span.parent is not None else ""
        print(f"{span.name}{parent}: {((span.end_time or 0) - (span.start_time or 0)) / 1e6:.0f} ms")
    data = reader.get_metrics_data()
    if data is not None:
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            print(f"{metric.name} in {metric.unit}, of {len(metric.data.data_points)} kinds of requests")
    meters.shutdown()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
