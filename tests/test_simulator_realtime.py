"""The stream of the simulator: what it refuses, where it starts, what it writes, how it breaks."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from wme_async.simulator import (
    Accepted,
    ArticleGenerator,
    Clock,
    Fault,
    Faults,
    Firehose,
    Refused,
    Simulator,
    check_stream_request,
    dumps,
)
from wme_async.simulator.errors import HTTPError
from wme_async.simulator.protocol.schema import ARTICLE, Node, compile_fields, compile_filters, leaves
from wme_async.simulator.protocol.stream_request import bind_stream_request
from wme_async.simulator.world.encoding import timestamp

NOW = 1_780_000_000.0
ALL_PARTS = list(range(10))
FROM_START = {str(partition): 0 for partition in range(50)}


def check(**model: Any) -> Accepted | Refused:
    return check_stream_request(model, now=NOW)


def refusal(**model: Any) -> str:
    answer = check(**model)
    assert isinstance(answer, Refused)
    assert answer.status == 422
    return answer.text


def accepted(**model: Any) -> Accepted:
    answer = check(**model)
    assert isinstance(answer, Accepted), answer
    return answer


class TestChecks:
    @pytest.mark.parametrize(
        ("field", "text"),
        [
            ("nope", "field with name 'nope' not found"),
            ("nope.*", "field with name 'nope.*' not found"),
            ("version", "use wildcard 'version.*' to select all fields from the object"),
            ("categories", "use wildcard 'categories.*' to select all fields from the object"),
            ("*", "field with name '*' not found"),
            ("event.partition", "field with name 'event.partition' not found"),
            ("version.size", "field with name 'version.size' not found"),
            ("is_part_of.code", "field with name 'is_part_of.code' not found"),
            (
                "version.scores.revertrisk.probability.true",
                "field with name 'version.scores.revertrisk.probability.true' not found",
            ),
            ("", "Key: 'Model.Fields[0]' Error:Field validation for 'Fields[0]' failed on the 'min' tag"),
        ],
    )
    def test_fields_that_are_refused(self, field: str, text: str) -> None:
        assert refusal(fields=[field]) == text

    @pytest.mark.parametrize(
        "field",
        [
            "name",
            "name.*",
            "version.*",
            "version.sizes.*",
            "version.tags",
            "version.tags.*",
            "categories.name",
            "image.contentUrl",
            "image.thumbnail.*",
            "version_identifier",
            "event.is_internal_message",
            "version.scores.referencerisk.survival_ratio.*",
            "version.scores.revertrisk.probability.truthy",
        ],
    )
    def test_fields_that_are_accepted(self, field: str) -> None:
        assert accepted(fields=[field]).fields == (field,)

    @pytest.mark.parametrize(
        ("name", "value", "text"),
        [
            ("nope", 1, "there is no such field 'nope' to filter"),
            ("version", 1, "can't filter on a 'version' object"),
            ("categories", "x", "can't filter on a 'categories' object"),
            ("identifier", "1", "the filter 'identifier' should not be of type 'string'"),
            ("name", 1, "the filter 'name' should not be of type 'float64'"),
            ("name", True, "the filter 'name' should not be of type 'bool'"),
            ("name", ["x"], "the filter 'name' should not be of type 'slice'"),
            ("name", {"x": 1}, "the filter 'name' should not be of type 'map'"),
            ("date_created", "2025-01-01T00:00:00Z", "the filter 'date_created' should not be of type 'string'"),
            ("version.tags", "x", "the filter 'version.tags' should not be of type 'string'"),
        ],
    )
    def test_filters_that_are_refused(self, name: str, value: object, text: str) -> None:
        assert refusal(filters=[{"field": name, "value": value}]) == text

    def test_a_null_filter_value_crashes_the_server(self) -> None:
        assert check(filters=[{"field": "name", "value": None}]) == Refused(500, "")

    def test_of_two_filters_on_one_field_the_last_wins(self) -> None:
        filters = [{"field": "name", "value": "a"}, {"field": "name", "value": "b"}]
        assert accepted(filters=filters).filters == {"name": "b"}

    @pytest.mark.parametrize(
        ("model", "text"),
        [
            ({"since": timestamp(NOW + 5, 0)}, f"since time {timestamp(NOW + 5, 0)} cannot be in the future"),
            (
                {"since_per_partition": {"7": timestamp(NOW + 5)}},
                f"since_per_partition for partition 7 has future time {timestamp(NOW + 5, 0)}",
            ),
            ({"parts": [0] * 11}, "the query param parts has length 11, max allowed length 10"),
            ({"parts": [10]}, "the part value is 10, allowed value should be in the range [0,9]"),
            (
                {"parts": [0], "since": timestamp(NOW - 5)},
                "for parallel consumption, specify either offsets or time-offsets (since_per_partition) parameter",
            ),
            (
                {"offsets": dict.fromkeys(map(str, range(51)), 0)},
                "the query param offsets has length 51, max allowed length 50",
            ),
            (
                {"parts": [0], "offsets": {"1": 5}, "since_per_partition": {"1": timestamp(NOW - 5)}},
                "for a specific partion, specify either offset or time-offset (since_per_partition), not both",
            ),
            ({"since": "2025-01-01T00:00:00"}, "parsing time"),
            ({"since": ""}, "parsing time"),
            ({"parts": ["0"]}, "json: cannot unmarshal string into Go struct field Model.parts of type int"),
            ({"offsets": {"a": 1}}, "json: cannot unmarshal number a into Go struct field Model.offsets of type int"),
            ({"fields": "name"}, "json: cannot unmarshal string into Go struct field Model.fields of type []string"),
        ],
    )
    def test_positions_that_are_refused(self, model: dict[str, Any], text: str) -> None:
        assert refusal(**model).startswith(text)

    @pytest.mark.parametrize(
        ("model", "text"),
        [
            (
                {"fields": ["x"] * 256},
                "Key: 'Model.Fields' Error:Field validation for 'Fields' failed on the 'max' tag",
            ),
            ({"fields": ["x" * 256]}, "Key: 'Model.Fields[0]' Error:"),
            ({"filters": [{"field": "name", "value": "x"}] * 256}, "Key: 'Model.Filters' Error:"),
            ({"filters": ["name"]}, "json: cannot unmarshal string into Go struct field Model.filters"),
            ({"filters": [{"field": 1}]}, "json: cannot unmarshal number into Go struct field Model.filters.field"),
            ({"filters": [None]}, "there is no such field '' to filter"),
            ({"parts": {"0": 1}}, "json: cannot unmarshal object into Go struct field Model.parts of type []int"),
            ({"parts": [1.5]}, "json: cannot unmarshal number 1.5 into Go struct field Model.parts of type int"),
            ({"parts": [True]}, "json: cannot unmarshal bool into Go struct field Model.parts of type int"),
            ({"offsets": [1]}, "json: cannot unmarshal array into Go struct field Model.offsets of type map[int]int64"),
            ({"since": 5}, "Time.UnmarshalJSON: input is not a JSON string"),
            ({"since": "2025-02-30T00:00:00Z"}, "parsing time"),
            ({"fields": [None]}, "Key: 'Model.Fields[0]' Error:"),
        ],
    )
    def test_shapes_that_are_refused(self, model: dict[str, Any], text: str) -> None:
        assert refusal(**model).startswith(text)

    @pytest.mark.parametrize(
        ("since", "milliseconds"),
        [
            ("2025-01-01T00:00:00Z", 1_735_689_600_000),
            ("2025-01-01T01:30:00.1239+01:30", 1_735_689_600_123),
            ("2024-12-31T22:00:00.5-02:00", 1_735_689_600_500),
            ("0001-01-01T00:00:00Z", None),  # the zero of the server's language
        ],
    )
    def test_times_have_zones_and_count_to_the_millisecond(self, since: str, milliseconds: int | None) -> None:
        assert accepted(since=since).since == milliseconds

    def test_a_null_is_as_good_as_nothing(self) -> None:
        nothing = accepted(since=None, fields=None, filters=None, parts=None, offsets=None, since_per_partition=None)
        assert nothing == accepted()
        assert accepted(parts=[None]).parts == (0,)
        assert accepted(parts=[0], since_per_partition={"0": None}).start(0)[0] == "time"

    def test_the_first_check_that_fails_speaks(self) -> None:
        model = {"fields": ["nope"], "filters": [{"field": "nope2", "value": 1}], "parts": [77]}
        assert "field with name 'nope'" in refusal(**model)
        assert "no such field" in refusal(**{**model, "fields": []})
        assert "part value" in refusal(parts=[77])

    @given(
        st.sets(st.integers(0, 9)),
        st.dictionaries(st.integers(0, 49), st.integers(-2, 10**12)),
        st.dictionaries(st.integers(0, 49), st.integers(0, 10**6)),
    )
    def test_positions_count_only_for_partitions_of_requested_parts(
        self, parts: set[int], offsets: dict[int, int], ages: dict[int, int]
    ) -> None:
        answer = check(
            parts=sorted(parts),
            offsets={str(p): value for p, value in offsets.items()},
            since_per_partition={str(p): timestamp(NOW - age) for p, age in ages.items()},
        )
        inside = {p for p in range(50) if p // 5 in parts}
        if inside & offsets.keys() & ages.keys():
            assert isinstance(answer, Refused)
            return
        assert isinstance(answer, Accepted)
        assert set(answer.partitions) == (inside or set(range(50)))
        for partition in answer.partitions:
            if partition in inside and partition in offsets:
                assert answer.start(partition) == ("offset", offsets[partition])
            elif partition in inside and partition in ages:
                assert answer.start(partition) == ("time", round((NOW - ages[partition]) * 1000))
            else:
                assert answer.start(partition) == ("live", 0)


class TestBinding:
    BODY = b'{"fields":["name"],"parts":[1]}'

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", "", "application/json; charset=utf-8"])
    def test_a_json_body_is_read_whatever_it_says_it_is(self, method: str, content_type: str) -> None:
        assert bind_stream_request(method, "", content_type, self.BODY) == {"fields": ["name"], "parts": [1]}

    def test_a_form_swallows_a_json_body(self) -> None:
        assert bind_stream_request("POST", "", "application/x-www-form-urlencoded", self.BODY) == {}

    def test_query_parameters_are_repeated_keys_and_json_maps(self) -> None:
        query = 'parts=0&parts=1&fields=name&filters={"field":"name","value":"x"}&offsets={"3":7}&since='
        assert bind_stream_request("GET", query, "", b"") == {
            "parts": [0, 1],
            "fields": ["name"],
            "filters": [{"field": "name", "value": "x"}],
            "offsets": {"3": 7},
        }

    def test_a_body_wins_over_the_query_and_maps_are_merged(self) -> None:
        body = b'{"parts":[2],"offsets":{"4":1}}'
        model = bind_stream_request("GET", 'parts=0&offsets={"3":7}', "", body)
        assert model == {"parts": [2], "offsets": {"3": 7, "4": 1}}

    @pytest.mark.parametrize(
        ("query", "message"),
        [
            ("filters=%7B", "unexpected EOF"),
            ("parts=a", 'strconv.ParseInt: parsing "a": invalid syntax'),
        ],
    )
    def test_wrong_query_parameters(self, query: str, message: str) -> None:
        with pytest.raises(HTTPError) as error:
            bind_stream_request("GET", query, "", b"")
        assert (error.value.status, error.value.message) == (422, message)

    def test_an_empty_part_is_part_zero(self) -> None:
        assert bind_stream_request("GET", "parts=", "", b"") == {"parts": [0]}

    def test_a_form_in_the_body_is_read(self) -> None:
        body = b"parts=1&fields=name"
        answer = bind_stream_request("POST", "parts=2", "application/x-www-form-urlencoded", body)
        assert answer == {"parts": [1, 2], "fields": ["name"]}

    def test_keys_are_found_whatever_their_case_and_unknown_ones_are_ignored(self) -> None:
        answer = bind_stream_request("POST", "", "application/json", b'{"Parts":[1],"nope":2,"fields":null}')
        assert answer == {"parts": [1]}

    @pytest.mark.parametrize("body", [b"", b"null", b"{}"])
    def test_nothing_is_fine(self, body: bytes) -> None:
        assert bind_stream_request("POST", "", "application/json", body) == {}

    @pytest.mark.parametrize("body", [b"[", b"[1]", b"x", b'"text"'])
    def test_other_bodies_are_refused(self, body: bytes) -> None:
        with pytest.raises(HTTPError) as error:
            bind_stream_request("POST", "", "application/json", body)
        assert error.value.status == 422


class TestFieldsAndFilters:
    GENERATOR = ArticleGenerator(seed=3)

    def passes(self, record: dict[str, Any], name: str, value: object) -> bool:
        return compile_filters(ARTICLE, {name: value})(record)

    @given(
        st.integers(0, 500), st.lists(st.sampled_from([name for name, _ in leaves(ARTICLE)]), min_size=1, max_size=4)
    )
    def test_what_remains_was_in_the_record_or_is_a_written_zero(self, index: int, names: list[str]) -> None:
        record = self.GENERATOR.article(index)
        pruned = compile_fields(ARTICLE, names)(record)

        def within(small: object, large: object) -> bool:
            if isinstance(small, dict) and isinstance(large, dict):
                return all(key in large and within(value, large[key]) for key, value in small.items())
            if isinstance(small, list) and isinstance(large, list):
                return len(small) == len(large) and all(map(within, small, large))
            return small == large or small in (0, False)

        assert within(pruned, record)
        assert set(pruned) <= {_json_name(name.split(".")[0]) for name in names}

    def test_swapped_and_renamed_names(self) -> None:
        record = {
            "version": {"size": {"value": 3}, "scores": {"revertrisk": {"probability": {"false": 0.9, "true": 0.1}}}},
            "image": {"content_url": "u", "width": 4},
        }
        names = ["version.sizes.*", "version.scores.revertrisk.probability.truthy", "image.contentUrl"]
        assert compile_fields(ARTICLE, names)(record) == {
            "version": {"size": {"value": 3}, "scores": {"revertrisk": {"probability": {"false": 0.9}}}},
            "image": {"content_url": "u"},
        }

    def test_partial_visibility_and_namespace_say_zeros(self) -> None:
        record = {"namespace": {"identifier": 14}, "visibility": {"text": True, "editor": True, "comment": True}}
        assert compile_fields(ARTICLE, ["visibility.text", "namespace.name"])(record) == {
            "namespace": {"identifier": 0},
            "visibility": {"text": True, "editor": False, "comment": False},
        }

    def test_a_record_without_what_was_asked_for_is_empty(self) -> None:
        assert compile_fields(ARTICLE, ["article_body.*"])(self.GENERATOR.article(1, kind="delete")) == {}

    def test_a_wildcard_wins_over_single_fields(self) -> None:
        record = {"version": {"identifier": 1, "comment": "c"}}
        assert compile_fields(ARTICLE, ["version.identifier", "version.*"])(record) == record

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("identifier", 999_999, True),
            ("identifier", 999_999.0, True),
            ("identifier", 999_999.5, False),
            ("version.identifier", 1_000_000, False),  # equal, and still no match
            ("version.size.value", 7, None),
            ("version.sizes.value", 7, False),  # a float field
            ("version.is_minor_edit", False, True),
            ("version.is_minor_edit", True, False),
            ("name", "", False),
            ("abstract", "", True),
            ("main_entity.identifier", "", False),  # the object is not there
            ("categories.name", "a", False),  # not all of them
            ("categories.url", "u", True),
            ("templates.name", "anything", True),  # an empty list passes
        ],
    )
    def test_filters_match_as_the_service_does(self, name: str, value: object, expected: bool | None) -> None:
        record = {
            "name": "N",
            "identifier": 999_999,
            "version": {"identifier": 1_000_000, "size": {"value": 7}},
            "categories": [{"name": "a", "url": "u"}, {"name": "b", "url": "u"}],
        }
        if expected is None:
            assert "no such field" in refusal(filters=[{"field": name, "value": value}])
        else:
            assert isinstance(check(filters=[{"field": name, "value": value}]), Accepted)
            assert self.passes(record, name, value) is expected


def _json_name(name: str) -> str | None:
    field = ARTICLE.find(name)
    assert field is not None
    return field.json


class Service:
    """A firehose on a port of its own, and a client that reads it."""

    def __init__(self, firehose: Firehose, url: str, session: aiohttp.ClientSession, faults: list[Fault]) -> None:
        self.firehose = firehose
        self.url = url
        self.session = session
        self.faults = faults

    def post(self, accept: str | None = "application/x-ndjson", **model: Any) -> Any:
        return self.session.post(self.url, json=model, headers={} if accept is None else {"Accept": accept})

    async def lines(self, count: int, **model: Any) -> list[Any]:
        async with asyncio.timeout(10), self.post(**model) as response:
            assert response.status == 200
            return [msgspec.json.decode(await response.content.readline()) for _ in range(count)]

    async def everything(self, **model: Any) -> bytes:
        """All bytes until the stream ends by itself; its breaking is an error."""
        async with asyncio.timeout(10), self.post(**model) as response:
            data: bytes = await response.read()
            return data

    async def until_broken(self, **model: Any) -> bytes:
        data = b""
        async with asyncio.timeout(10):
            try:
                async with self.post(**model) as response:
                    async for chunk in response.content.iter_any():
                        data += chunk
            except aiohttp.ClientError:
                return data
        raise AssertionError("the stream ended cleanly")


Serve = Callable[..., Any]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def start(**options: Any) -> AsyncIterator[Service]:
        clock = Clock(NOW, frozen=True)
        firehose = Firehose(clock, **options)
        faults: list[Fault] = []

        async def handle(request: web.Request) -> web.StreamResponse:
            return await firehose.handle(request, faults)

        app = web.Application()
        app.router.add_route("*", "/v2/articles", handle)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v2/articles"
        try:
            async with aiohttp.ClientSession() as session:
                yield Service(firehose, url, session, faults)
        finally:
            firehose.disconnect()
            await runner.cleanup()

    return start


def places(events: list[Any]) -> list[tuple[int, int]]:
    return [(event["event"]["partition"], event["event"]["offset"]) for event in events]


class TestStream:
    async def test_bytes_of_both_framings(self, serve: Serve) -> None:
        record = {"name": "X<", "event": {"identifier": "i", "type": "update"}, "image": {"width": 1}}
        line = (
            rb'{"name":"X\u003c","event":{"identifier":"i","type":"update","partition":9,"offset":0},'
            rb'"image":{"width":1}}'
        )
        async with serve() as service:
            service.firehose.publish(record, partition=9)
            service.faults.append(Fault("eof", details={"at": 1}))
            service.firehose.publish(record, partition=9)
            ndjson = await service.everything(parts=[1], offsets={"9": 0})
            sse = await service.everything(accept=None, parts=[1], offsets={"9": 0})
        assert ndjson == line + b"\n"
        assert sse == b"event: message\ndata: " + line + b"\n\n"

    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [
            (None, "text/event-stream; charset=utf-8"),
            ("text/*", "text/event-stream; charset=utf-8"),
            ("application/x-ndjson", "application/x-ndjson; charset=utf-8"),
            ("application/*", "application/x-ndjson; charset=utf-8"),
            ("application/x-ndjson;q=0.1, text/event-stream", "application/x-ndjson; charset=utf-8"),
            ("application/json", "; charset=utf-8"),
        ],
    )
    async def test_content_types_are_negotiated_with_the_servers_quirks(
        self, serve: Serve, accept: str | None, content_type: str
    ) -> None:
        async with serve() as service:
            service.firehose.publish(partition=0)
            async with service.post(accept=accept or "*/*", parts=[0], offsets={"0": 0}) as response:
                first = await response.content.readany()
                assert response.headers["Content-Type"] == content_type
                assert response.headers["Cache-Control"] == "no-cache"
                assert response.headers["Transfer-Encoding"] == "chunked"
                assert first.startswith(b"event: message\n") == ("event-stream" in content_type)

    @pytest.mark.parametrize(
        ("accept", "content_type"),
        [
            ("application/json", "application/json"),
            ("application/x-ndjson", "application/x-ndjson"),
            ("text/event-stream", "text/plain; charset=utf-8"),
        ],
    )
    async def test_refusals_are_documents(self, serve: Serve, accept: str, content_type: str) -> None:
        async with serve() as service, service.post(accept=accept, parts=[10]) as response:
            assert response.status == 422
            assert response.headers["Content-Type"] == content_type
            assert await response.read() == (
                b'{"status":422,"message":"the part value is 10, allowed value should be in the range [0,9]"}\n'
            )

    async def test_a_null_filter_value_is_a_500_without_a_body(self, serve: Serve) -> None:
        async with serve() as service, service.post(filters=[{"field": "name", "value": None}]) as response:
            assert (response.status, await response.read()) == (500, b"")

    async def test_the_head_comes_with_the_first_event(self, serve: Serve) -> None:
        async with serve() as service, asyncio.timeout(10), asyncio.TaskGroup() as group:
            waiting = group.create_task(service.lines(1))
            await service.firehose.wait_open(1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(waiting), 0.15)
            place = service.firehose.publish()
            assert places(await waiting) == [place]

    async def test_offsets_are_inclusive_and_holes_are_passed(self, serve: Serve) -> None:
        async with serve() as service:
            for _ in range(3):
                service.firehose.publish(partition=7)
            service.firehose.skip(7, 5)
            service.firehose.publish(partition=7)
            assert places(await service.lines(3, parts=[1], offsets={"7": 1})) == [(7, 1), (7, 2), (7, 8)]
            assert places(await service.lines(1, parts=[1], offsets={"7": 4})) == [(7, 8)]
            assert places(await service.lines(1, parts=[1], offsets={"7": -2})) == [(7, 0)]

    async def test_positions_without_parts_are_forgotten(self, serve: Serve) -> None:
        async with serve() as service, asyncio.timeout(10), asyncio.TaskGroup() as group:
            service.firehose.publish_many(100)
            task = group.create_task(service.lines(1, offsets=FROM_START))
            await service.firehose.wait_open(1)
            place = service.firehose.publish()
            assert places(await task) == [place]
            assert service.firehose.connections[-1].request.offsets == {}

    async def test_an_expired_offset_jumps_to_live(self, serve: Serve) -> None:
        async with serve(retention=100) as service, asyncio.timeout(10), asyncio.TaskGroup() as group:
            service.firehose.publish_many(5, partition=3)
            service.firehose.clock.advance(101)
            service.firehose.publish_many(2, partition=3)
            task = group.create_task(service.lines(1, parts=[0], offsets={"3": 2}))
            await service.firehose.wait_open(1)
            assert service.firehose.connections[-1].jumped == {3}
            assert service.firehose.connections[-1].start[3] == 7
            service.firehose.publish(partition=3)
            assert places(await task) == [(3, 7)]
            assert places(await service.lines(3, parts=[0], offsets={"3": 5})) == [(3, 5), (3, 6), (3, 7)]

    async def test_times_start_at_the_first_event_not_before_them(self, serve: Serve) -> None:
        async with serve() as service:
            for age in (30, 20, 10):
                service.firehose.publish(partition=0, published=NOW - age)
            since = timestamp(NOW - 20)
            assert places(await service.lines(2, since=since)) == [(0, 1), (0, 2)]
            assert places(await service.lines(2, parts=[0], since_per_partition={"0": since})) == [(0, 1), (0, 2)]
            ancient = timestamp(NOW - 10**8)
            assert places(await service.lines(3, since=ancient)) == [(0, 0), (0, 1), (0, 2)]

    async def test_fields_and_filters_shape_the_lines(self, serve: Serve) -> None:
        async with serve() as service:
            service.firehose.publish(partition=0, project="dewiki")
            service.firehose.publish(partition=0, project="enwiki")
            model = {"parts": [0], "offsets": {"0": 0}}
            filters = [{"field": "is_part_of.identifier", "value": "enwiki"}]
            assert places(await service.lines(1, filters=filters, **model)) == [(0, 1)]
            assert await service.lines(1, fields=["event.type"], **model) == [
                {"event": {"type": "update", "partition": 0, "offset": 0}}
            ]
            assert set((await service.lines(1, fields=["name"], **model))[0]) == {"name"}
            assert await service.lines(1, fields=["article_body.*"], **model) == [{}]

    async def test_a_title_stays_in_its_partition_in_order(self, serve: Serve) -> None:
        async with serve() as service:
            spread = {service.firehose.publish(project="enwiki")[0] for _ in range(300)}
            assert len(spread) > 45
            record = ArticleGenerator().article(1, size="small")
            delete = ArticleGenerator().article(1, kind="delete")
            assert service.firehose.partition_of(record) == service.firehose.partition_of(delete)

    async def test_a_part_given_twice_ends_with_nothing(self, serve: Serve) -> None:
        async with serve() as service:
            service.firehose.publish_many(50)
            assert await service.everything(parts=[0, 0]) == b""

    @pytest.mark.parametrize("flush_each", [True, False])
    async def test_generated_events_are_complete_ordered_and_valid(self, serve: Serve, flush_each: bool) -> None:
        async with serve(flush_each=flush_each) as service:
            service.firehose.publish_many(100, published=NOW - 10)
            service.firehose.generate(5_000)
            service.firehose.publish_many(100)
            events = await service.lines(5_200, parts=ALL_PARTS, offsets=FROM_START)
            seen: dict[int, int] = {}
            for partition, offset in places(events):
                assert offset == seen.get(partition, -1) + 1
                seen[partition] = offset
            assert sum(seen.values()) + len(seen) == 5_200
            assert len({event["event"]["identifier"] for event in events}) == 5_200
            fourth = [event["event"]["date_published"] for event in events if event["event"]["partition"] == 4]
            times = [datetime.fromisoformat(text) for text in fourth]
            assert times == sorted(times)

    async def test_ten_million_generated_events_take_no_memory_and_are_found_by_time(self, serve: Serve) -> None:
        async with serve() as service:
            service.firehose.generate(10_000_000, rate=100.0)
            since = timestamp(NOW - 0.5)
            events = await service.lines(50, parts=ALL_PARTS, since_per_partition=dict.fromkeys(FROM_START, since))
            moments = [datetime.fromisoformat(event["event"]["date_published"]).timestamp() for event in events]
            assert all(NOW - 0.5 <= moment <= NOW for moment in moments)
            service.firehose.expire(NOW - 10)
            assert sum(map(len, service.firehose.log)) == pytest.approx(1000, abs=60)
            assert {log.end for log in service.firehose.log} == {200_000}

    async def test_publishing_wakes_readers_from_any_thread(self, serve: Serve) -> None:
        async with serve() as service, asyncio.timeout(10), asyncio.TaskGroup() as group:
            task = group.create_task(service.lines(20))
            await service.firehose.wait_open(1)
            thread = threading.Thread(target=lambda: [service.firehose.publish(partition=1) for _ in range(20)])
            thread.start()
            assert places(await task) == [(1, n) for n in range(20)]
            thread.join()

    async def test_live_publication_leaves_silent_partitions_alone(self, serve: Serve) -> None:
        async with serve() as service, service.firehose.publishing(2000, silent=range(1, 50)):
            assert {partition for partition, _ in places(await service.lines(20))} == {0}
        assert service.firehose.log[5].end == 0

    async def test_the_throttle_is_scaled_by_parts(self, serve: Serve) -> None:
        async with serve(rate=200) as service:
            service.firehose.generate(500)
            loop = asyncio.get_running_loop()
            began = loop.time()
            await service.lines(11, parts=[0], offsets=FROM_START)
            assert loop.time() - began > 0.4  # ten more after the first, at 20 a second

    async def test_a_slow_reader_gets_everything(self, serve: Serve) -> None:
        """That it holds the stream back shows in the next test, where retention removes what was not sent yet."""
        async with serve() as service:
            for _ in range(40):
                service.firehose.publish({"body": "x" * (1 << 20), "event": {"type": "update"}}, partition=0)
            async with service.post(parts=[0], offsets={"0": 0}) as response:
                await response.content.readany()
                for _ in range(5):
                    await asyncio.sleep(0.02)
                total = 0
                async with asyncio.timeout(10):
                    while total < 39 << 20:
                        total += len(await response.content.readany())

    async def test_a_reader_that_retention_overtakes_goes_on_live(self, serve: Serve) -> None:
        async with serve() as service:
            for _ in range(60):
                service.firehose.publish({"body": "x" * (1 << 20), "event": {"type": "update"}}, partition=0)
            offsets: list[int] = []
            async with service.post(parts=[0], offsets={"0": 0}) as response, asyncio.timeout(10):
                tail = await response.content.readany()
                for _ in range(5):  # until the buffers between the two are full
                    await asyncio.sleep(0.02)
                service.firehose.expire(NOW + 1)
                while not offsets or offsets[-1] < 60:
                    service.firehose.publish(partition=0, published=NOW + 2)
                    tail += await response.content.readany()
                    *lines, tail = tail.split(b"\n")
                    offsets += [json.loads(line)["event"]["offset"] for line in lines]
            assert any(later > earlier + 1 for earlier, later in pairwise(offsets))

    async def test_filters_skip_any_number_of_events(self, serve: Serve) -> None:
        async with serve(flush_each=False) as service:
            service.firehose.generate(20_000)
            service.firehose.publish(project="dewiki", partition=49)
            service.firehose.publish(b"\xff", partition=49)
            filters = [{"field": "is_part_of.identifier", "value": "dewiki"}]
            events = await service.lines(1, filters=filters, parts=ALL_PARTS, offsets=FROM_START)
            assert places(events) == [(49, 400)]

    async def test_a_stream_ends_when_the_client_leaves(self, serve: Serve) -> None:
        async with serve() as service:
            service.firehose.publish(partition=0)
            await service.lines(1, parts=[0], offsets={"0": 0})
            await service.firehose.wait_open(0)


class TestFaults:
    START: Mapping[str, Any] = {"parts": [0], "offsets": {"0": 0}}

    def fault(self, service: Service, kind: str, **details: Any) -> None:
        service.faults.append(Fault(kind, details=details))

    async def published(self, service: Service, count: int = 10) -> bytes:
        service.firehose.publish_many(count, partition=0)
        self.fault(service, "eof", at=count)
        service.firehose.publish(partition=0)
        undamaged = await service.everything(**self.START)
        service.faults.clear()
        assert undamaged.count(b"\n") == count
        return undamaged

    @pytest.mark.parametrize("how", ["reset", "truncated"])
    @pytest.mark.parametrize("after", [1, 500, 777])
    async def test_a_cut_comes_after_so_many_bytes(self, serve: Serve, how: str, after: int) -> None:
        async with serve() as service:
            undamaged = await self.published(service)
            self.fault(service, "cut", after=after, how=how)
            got = await service.until_broken(**self.START)
            assert undamaged.startswith(got)
            assert len(got) <= after
            if how == "truncated":
                assert len(got) >= after - 1  # a reset may overtake what was sent

    async def test_a_clean_cut_looks_like_an_end(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = await self.published(service)
            self.fault(service, "cut", after=600, how="clean")
            assert await service.everything(**self.START) == undamaged[:600]

    async def test_random_cuts_follow_the_seed(self, serve: Serve) -> None:
        lengths = []
        for _ in range(2):
            async with serve(seed=11) as service:
                await self.published(service)
                for _ in range(3):
                    self.fault(service, "cut", within=(1, 3000), how="clean")
                    lengths.append(len(await service.everything(**self.START)))
                    service.faults.clear()
        assert lengths[:3] == lengths[3:]
        assert len(set(lengths)) > 1

    async def test_a_workers_failure_is_a_clean_end_with_nothing(self, serve: Serve) -> None:
        async with serve() as service:
            service.firehose.publish(partition=0)
            self.fault(service, "eof")
            async with service.post(**self.START) as response:
                assert (response.status, await response.read()) == (200, b"")

    async def test_a_stall_keeps_the_connection_and_sends_no_more(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = await self.published(service)
            self.fault(service, "stall", after=400)
            got = b""
            async with service.post(**self.START) as response:
                while len(got) < 400:
                    got += await response.content.readany()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(response.content.readany(), 0.2)
            assert got == undamaged[:400]

    async def test_records_can_be_broken_overlong_lost_or_sent_twice(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = (await self.published(service)).split(b"\n")[:-1]
            self.fault(service, "broken", at=1)
            self.fault(service, "overlong", at=2, size=100_000)
            self.fault(service, "gap", at=4, count=2)
            self.fault(service, "replay", at=7, count=3)
            self.fault(service, "eof", at=8)
            got = (await service.everything(**self.START)).split(b"\n")[:-1]
        with pytest.raises(json.JSONDecodeError):
            json.loads(got[1])
        assert undamaged[1].startswith(got[1])
        assert len(got[2]) == 100_000
        assert json.loads(got[2])["event"] == json.loads(undamaged[2])["event"]
        offsets = [offset for _, offset in places([json.loads(line) for n, line in enumerate(got) if n != 1])]
        assert offsets == [0, 2, 3, 6, 7, 3, 6, 7]

    async def test_an_error_may_stand_in_the_body(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = (await self.published(service)).split(b"\n")
            self.fault(service, "error_line", at=2)
            got = (await service.everything(**self.START)).split(b"\n")
            assert got[:2] == undamaged[:2]
            assert set(json.loads(got[2])) == {"status", "message"}
            assert got[3:] == [b""]

    async def test_an_older_build_sent_blank_lines_and_spaces(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = await self.published(service)
            self.fault(service, "older_framing")
            self.fault(service, "eof", at=10)
            got = await service.everything(**self.START)
            assert got.startswith(b"\n {")
            assert [line.strip() for line in got.split(b"\n") if line.strip()] == undamaged.split(b"\n")[:-1]

    async def test_a_slow_stream_is_whole_and_slow(self, serve: Serve) -> None:
        async with serve() as service:
            undamaged = await self.published(service)
            self.fault(service, "slow", rate=20_000)
            self.fault(service, "eof", at=10)
            began = asyncio.get_running_loop().time()
            assert await service.everything(**self.START) == undamaged
            assert asyncio.get_running_loop().time() - began > len(undamaged) / 40_000

    @pytest.mark.parametrize("how", ["reset", "clean"])
    async def test_a_deploy_ends_all_streams(self, serve: Serve, how: str) -> None:
        async with serve() as service, asyncio.timeout(10):
            service.firehose.publish(partition=0)
            async with service.post(**self.START) as response:
                await response.content.readline()
                service.firehose.disconnect(how)
                if how == "clean":
                    assert await response.content.read() == b""
                else:
                    with pytest.raises(aiohttp.ClientError):
                        await response.content.read()
            await service.firehose.wait_open(0)


class TestInTheSimulator:
    async def test_both_streams_stand_behind_the_front_door(self) -> None:
        async with Simulator(start=NOW, frozen=True) as simulator, aiohttp.ClientSession() as session:
            options = simulator.client_options()
            login = {"username": options["username"], "password": options["password"]}
            async with session.post(f"{simulator.auth_url}/v1/login", json=login) as response:
                token = (await response.json())["access_token"]
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/x-ndjson"}
            for path, firehose in (("/v2/articles", simulator.firehose), ("/v2/wikidata", simulator.wikidata)):
                place = firehose.publish(partition=3)
                simulator.faults.inject("eof", role="realtime", path=path, at=1)
                firehose.publish(partition=3)
                body = {"since": timestamp(NOW - 1, 0)}
                async with session.post(simulator.realtime_url + path, json=body, headers=headers) as response:
                    assert response.status == 200
                    (line,) = (await response.read()).splitlines()
                assert places([json.loads(line)]) == [place] == [(3, 0)]
            async with session.post(simulator.realtime_url + "/v2/articles") as response:
                assert response.status == 401

    @pytest.mark.parametrize(("kind", "problem"), [("expire", ValueError), ("cutt", ValueError)])
    def test_faults_that_a_stream_does_not_know_are_refused(self, kind: str, problem: type[Exception]) -> None:
        with pytest.raises(problem):
            Faults().inject(kind, role="realtime")

    def test_details_that_a_stream_fault_does_not_take_are_refused(self) -> None:
        with pytest.raises(TypeError, match="takes no after"):
            Faults().inject("replay", role="realtime", after=3)


def test_raw_lines_are_sent_as_they_are() -> None:
    firehose = Firehose(Clock(NOW))
    assert firehose.publish(b"\xff not json", partition=2) == (2, 0)
    (entry,) = firehose.log[2].read(0, 9)
    assert (entry.head, entry.tail) == (b"\xff not json", None)


def test_a_record_without_event_gets_no_place() -> None:
    firehose = Firehose(Clock(NOW))
    firehose.publish({"name": "x"}, partition=0)
    (entry,) = firehose.log[0].read(0, 9)
    assert (entry.head, entry.tail) == (dumps({"name": "x"}), None)


def test_the_time_of_a_given_record_is_its_own() -> None:
    firehose = Firehose(Clock(NOW))
    firehose.publish({"name": "x", "event": {"date_published": timestamp(NOW - 9)}}, partition=0)
    assert firehose.log[0].since(int(NOW * 1000) - 9000) == 0
    assert firehose.log[0].since(int(NOW * 1000) - 8999) == 1


def test_logs_can_be_kept_small() -> None:
    firehose = Firehose(Clock(NOW))
    firehose.publish_many(20, partition=0)
    firehose.generate(1000)
    firehose.trim(15)
    assert {len(log) for log in firehose.log} == {15}
    assert (firehose.log[0].base, firehose.log[0].end) == (25, 40)
    assert firehose.log[1].read(0, 1)[0].offset == 5


def test_any_dotted_name_of_an_open_object_is_known() -> None:
    schema = Node({"labels": Node({}, json="labels", open=True)})
    assert isinstance(check_stream_request({"fields": ["labels.en.*"]}, now=NOW, schema=schema), Accepted)
