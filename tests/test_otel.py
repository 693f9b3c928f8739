"""Spans and metrics for OpenTelemetry (extra `otel`)."""

import pytest
from stream_world import PATIENT

from wme_async import Client, NotFound, Retry

pytest.importorskip("opentelemetry", reason="needs the extra `otel`")
otel = pytest.importorskip("wme_async.integrations.otel", reason="needs the extra `otel`", exc_type=ImportError)


async def test_without_an_sdk_all_works_and_nothing_is_recorded(sim):
    async with Client(**sim.client_options(), telemetry=otel.OpenTelemetry()) as wme:
        assert await wme.projects.list()


class World:
    """A client whose spans and metrics are kept in memory."""

    def __init__(self):
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider(metric_readers=[self.reader])
        self.telemetry = otel.OpenTelemetry(tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def points(self, name):
        """Return the points of a metric: attributes and value, or count of a histogram."""
        data = self.reader.get_metrics_data()
        return [
            (dict(point.attributes or {}), getattr(point, "value", None) or getattr(point, "count", 0))
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self):
        self.meters.shutdown()
        self.tracers.shutdown()


@pytest.fixture
def world():
    pytest.importorskip("opentelemetry.sdk", reason="needs the SDK of OpenTelemetry")
    opened = World()
    yield opened
    opened.close()


@pytest.fixture
async def wme(sim, world):
    async with Client(**sim.client_options(), retry=Retry(base=0, cap=0), telemetry=world.telemetry) as client:
        yield client


async def test_each_attempt_is_a_client_span_by_the_conventions(sim, wme, world):
    from opentelemetry.trace import SpanKind, StatusCode

    sim.faults.inject("status", role="api", path="/v2/projects", status=503)
    await wme.projects.list()
    _, failed, done = world.spans("POST")  # the first one is the login
    port = int(sim.api_url.rpartition(":")[2])
    common = {
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"{sim.api_url}/v2/projects",
    }
    assert dict(failed.attributes) == common | {"http.response.status_code": 503, "error.type": "503"}
    assert dict(done.attributes) == common | {"http.response.status_code": 200, "http.request.resend_count": 1}
    assert failed.kind is done.kind is SpanKind.CLIENT
    assert (failed.status.status_code, done.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    durations = world.points("http.client.request.duration")
    assert (
        {key: value for key, value in common.items() if key != "url.full"} | {"http.response.status_code": 200},
        1,
    ) in (durations)
    assert all("url.full" not in attributes for attributes, _ in durations)


async def test_a_request_without_a_response_has_the_type_of_its_error(sim, world):
    from wme_async import ConnectFailed

    async with Client(
        "a", "b", hosts={"auth": "http://127.0.0.1:9"}, retry=Retry(attempts=1), telemetry=world.telemetry
    ) as wme:
        with pytest.raises(ConnectFailed):
            await wme.projects.list()
    (span,) = world.spans("POST")
    assert span.attributes["error.type"] == "ConnectFailed"
    assert "http.response.status_code" not in span.attributes


async def test_requests_are_children_of_their_download_and_it_of_the_callers_span(sim, wme, world, tmp_path):
    with world.tracers.get_tracer("test").start_as_current_span("mine") as mine:
        done = await wme.snapshots.download("simplewiki_namespace_0", tmp_path)
    (download,) = world.spans("wme.download")
    assert download.parent.span_id == mine.get_span_context().span_id
    assert download.attributes["wme.bytes"] == done.size
    requests = [*world.spans("GET"), *world.spans("HEAD")]
    assert requests
    assert {span.parent.span_id for span in requests} == {download.context.span_id}
    assert not any(request.header("traceparent") for request in sim.requests)


async def test_a_read_that_is_left_early_is_no_error(sim, wme, world):
    from opentelemetry.trace import StatusCode

    async with wme.snapshots.read("simplewiki_namespace_0") as articles:
        await anext(articles)
    (read,) = world.spans("wme.read")
    assert read.status.status_code is StatusCode.UNSET


async def test_a_task_has_a_span_and_a_duration(sim, wme, world, tmp_path):
    from wme_async.tasks import arun_task

    plan = await wme.snapshots.plan("enwiki_namespace_0", to=str(tmp_path), format="ndjson")
    await arun_task(plan.tasks[0], wme)
    (task,) = world.spans("wme.task")
    assert task.attributes["wme.chunk"] == plan.tasks[0].chunk
    assert world.points("wme.task.duration") == [({}, 1)]


async def test_a_stream_counts_its_records_and_tells_the_lag_of_its_partitions(sim, wme, world):
    for count in (5, 8):  # the second stream begins with the oldest events again
        async with wme.realtime.articles(parts=[0], retry=PATIENT) as stream:
            sim.firehose.publish_many(count - 5 or 5, partition=0)
            for _ in range(count):
                await anext(stream)
    name = {"wme.stream.name": "default/articles"}
    assert world.points("wme.stream.records") == [(name, 13)]
    assert [attributes for attributes, _ in world.points("wme.stream.lag")] == [name | {"wme.stream.partition": 0}]
    assert world.points("wme.stream.gaps") == [(name, 0)]


def test_a_lost_lease_is_counted(world):
    world.telemetry.lease_lost("default/articles", 4)
    assert world.points("wme.lease.lost") == [({"wme.stream.name": "default/articles", "wme.stream.part": 4}, 1)]


async def test_not_found_is_the_error_of_its_span(sim, wme, world):
    with pytest.raises(NotFound):
        await wme.projects.get("nowiki")
    (span,) = (span for span in world.spans("POST") + world.spans("GET") if "nowiki" in span.attributes["url.full"])
    assert span.attributes["error.type"] == "404"
