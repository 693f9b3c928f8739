"""`wme.realtime`: the streams, one method for each kind of event."""

import builtins
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, Unpack, overload

import msgspec

from wme_async._arguments import check_record_type
from wme_async._client.collection import Value
from wme_async._client.files import Files
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._stream import GroupStream, Stream, StreamOptions
from wme_async._stream.resume import StreamResource
from wme_async._stream.sharing import Group, GroupOptions, Share, Static, checked_sharing
from wme_async._text import ShownText
from wme_async._transport import Transport
from wme_async.errors import DecodeError, NotFound
from wme_async.models import Article, WikidataArticle
from wme_async.models.decoding import Buffer, decode_json, decoding

logger: logging.Logger = logging.getLogger("wme_async.stream")

U = TypeVar("U")

_ANY_JSON = msgspec.json.Decoder()

Hour = Callable[[datetime], Files[Any, Any]]

# The fields that a batch's metadata has in common with its records, under the same names.
_BATCH_FIELDS = frozenset({"is_part_of.identifier", "in_language.identifier", "namespace.identifier"})


class Realtime:
    """The streams of an account.

    Args:
        transport: Sends the requests.
        resources: The rows of the table.
        batches: Returns the hourly batches that fill gaps of the stream of articles.
        entities: The same for Wikidata.
    """

    def __init__(self, transport: Transport, resources: Mapping[str, Resource], batches: Hour, entities: Hour) -> None:
        self._transport = transport
        self._resources = resources
        self._hours = {"realtime.articles": batches, "realtime.wikidata": entities}

    def __repr__(self) -> str:
        return "<Realtime>"

    @overload
    def articles(self, *, share: Literal["group"], **options: Unpack[GroupOptions]) -> GroupStream[Article]: ...
    @overload
    def articles(
        self, *, type: builtins.type[U], share: Literal["group"], **options: Unpack[GroupOptions]
    ) -> GroupStream[U]: ...
    @overload
    def articles(self, *, share: Static | None = None, **options: Unpack[StreamOptions]) -> Stream[Article]: ...
    @overload
    def articles(
        self, *, type: builtins.type[U], share: Static | None = None, **options: Unpack[StreamOptions]
    ) -> Stream[U]: ...
    def articles(
        self, *, type: builtins.type[Any] | None = None, share: Share | None = None, **options: Any
    ) -> Stream[Any] | GroupStream[Any]:
        """Follow updates, deletions and visibility changes of articles of all projects.

        Example:
            >>> offsets = SQLiteOffsets("offsets.db")  # doctest: +SKIP
            >>> async with wme.realtime.articles(offsets=offsets) as stream:
            ...     async for article in stream:
            ...         print(article.event.type, article.name)

        Args:
            type: A msgspec Struct to decode into, of which the stream then requests exactly the fields; or `dict`; or
                `msgspec.Raw` for the bytes. By default the model. Partition and offset are tracked even if it has no
                `event`.
            fields: Dotted JSON names of the fields to receive; all by default. `event` is always among them, since
                without it a stream cannot continue.
            filters: Dotted JSON name to the one value it must have. Values that the server would never match (whole
                numbers above 999,999, fractions) are compared here, at the cost of receiving everything.
            share: Share the parts with other processes: `"group"` by leases in the store, which has to be a
                `LeaseStore`, so that members may come and go; `Static(ordinal, of)` by a fixed plan. By default this
                stream reads everything, or `parts`.
            parts: Tenths of the stream, 0 to 9; all by default.
            connections: The number of connections that share the parts, 1 to the number of parts. The server sends each
                one 50 events a second, scaled by its share of the parts, so more connections do not raise the total.
            since: The start of partitions without a saved position: a time with a zone, within the last 48 hours; or
                `"oldest"` for all that the server keeps, by its clock. By default half a minute ago, so that a clock
                that is a little ahead of the server's does no harm.
            offsets: The store of positions; by default in memory, for this stream alone.
            name: The name of this reader. Positions are stored under `"<name>/articles"`.
            framing: `"ndjson"` (default), or `"sse"`, which costs a third more on small events and has no advantage.
            on_bad_record: For a record that does not decode: `"raise"` the `DecodeError` (default; the next request for
                an event continues behind it), `"skip"` and count it, or a function, plain or async, that receives the
                error; the position moves on once it has returned.
            on_gap: For missing events: `"log"` (default), `"raise"` the `OffsetGap` (the next request for an event
                continues), or a function, plain or async, that receives it.
            idle_timeout: Seconds of silence after which a connection is replaced, 300 by default. The server has no
                heartbeats, so the silence of a narrow filter looks the same as a dead connection; it costs one request.
            commit: When an event counts as processed. `"auto"` (default): when the next one is requested. `"ack"`: when
                it is acknowledged, in any order; the position of a partition moves up to where everything is.
                `"manual"`: as with `"auto"`, but only `commit()` saves.
            commit_interval: Seconds between two saves, 5 by default.
            backfill: Fetch the events of a gap from the hourly batches, as far as the server still has them, and hand
                them out with `stream.backfilled` true. A batch has the last revision of a page in its hour, not each.
            retry: When to give up; by default never.
            on_event: Called with frozen records about connects, disconnects, retries, gaps, bad records, saves, and
                parts that were taken or lost.
            max_buffer: Bytes received ahead of the consumer, 2 MiB by default.
            max_record: Bytes above which a record counts as bad, 64 MiB by default.
            lease: With `share="group"`: seconds after which the parts of a member that died are read by others, 30 by
                default. A member that cannot run for so long loses its parts.
            member: With `share="group"`: a name of this member for people, in the list of members.
            **options: The arguments above, by name.

        Returns:
            An async context manager that is an async iterator of articles, or of `type`.

        Raises:
            ValueError: A field does not exist, or the server would reject or misread an argument.
            TypeError: An argument does not exist or has the wrong type.
        """
        return self._open("realtime.articles", type, share, options)

    @overload
    def wikidata(
        self,
        *,
        share: Literal["group"],
        partitions: int = 50,
        parts_total: int = 10,
        **options: Unpack[GroupOptions],
    ) -> GroupStream[WikidataArticle]: ...
    @overload
    def wikidata(
        self,
        *,
        type: builtins.type[U],
        share: Literal["group"],
        partitions: int = 50,
        parts_total: int = 10,
        **options: Unpack[GroupOptions],
    ) -> GroupStream[U]: ...
    @overload
    def wikidata(
        self,
        *,
        share: Static | None = None,
        partitions: int = 50,
        parts_total: int = 10,
        **options: Unpack[StreamOptions],
    ) -> Stream[WikidataArticle]: ...
    @overload
    def wikidata(
        self,
        *,
        type: builtins.type[U],
        share: Static | None = None,
        partitions: int = 50,
        parts_total: int = 10,
        **options: Unpack[StreamOptions],
    ) -> Stream[U]: ...
    def wikidata(
        self,
        *,
        type: builtins.type[Any] = WikidataArticle,
        share: Share | None = None,
        partitions: int = 50,
        parts_total: int = 10,
        **options: Any,
    ) -> Stream[Any] | GroupStream[Any]:
        """Follow changes of Wikidata entities (beta: announced, not documented in full).

        Args:
            type: As for `articles`.
            share: As for `articles`.
            partitions: The number of partitions; 50 is an assumption, by analogy with articles.
            parts_total: The number of parts that they are grouped into; 10 by the same analogy.
            **options: As for `articles`.

        Returns:
            As `articles` does, of entities.

        Raises:
            ValueError: As for `articles`.
            TypeError: As for `articles`.
        """
        return self._open("realtime.wikidata", type, share, options, partitions=partitions, parts=parts_total)

    def explain(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        type: builtins.type[Any] | None = None,
    ) -> str:
        """Return, one fact a line, which fields and filters `articles` would send, and which it would apply here.

        Nothing is sent.

        Args:
            fields: As for `articles`, and so the next two.
            filters: As for `articles`.
            type: As for `articles`.

        Raises:
            ValueError: As `articles` raises it.
        """
        row = self._resources["realtime.articles"]
        assert row.backend is not None
        return ShownText(Query.build(row.backend, row.model, fields=fields, filters=filters, type=type).explain())

    def _open(
        self,
        name: str,
        type: builtins.type[Any] | None,
        share: object,
        options: Mapping[str, Any],
        **layout: int,
    ) -> Stream[Any] | GroupStream[Any]:
        row = self._resources[name]
        assert row.backend is not None
        resource = StreamResource(name=name.partition(".")[2], path=row.path, product=row.product, **layout)
        settings, sharing = checked_sharing(share, options, resource)
        if type is not None:
            check_record_type(type)
        # Only a Struct has fields to request; `dict` and `Raw` take any record.
        struct = type if isinstance(type, builtins.type) and issubclass(type, msgspec.Struct) else None
        query = Query.build(row.backend, row.model, fields=settings["fields"], filters=settings["filters"], type=struct)
        body = query.body()
        result = query.result if type is None else type
        open_stream = partial(
            Stream,
            self._transport,
            resource,
            type=result,
            fields=body.get("fields"),
            filters=body.get("filters"),
            keep=_keep(query, type),
            backfill=_HourlyRecords(self._hours[name], query) if settings["backfill"] else None,
        )
        if isinstance(sharing, Group):
            return GroupStream(
                resource,
                settings,
                type=result,
                open_stream=open_stream,
                group=sharing,
                sleep=self._transport.sleep,
                telemetry=self._transport.telemetry,
            )
        return open_stream(options=settings, claims=sharing)


def _keep(query: Query, type: builtins.type[Any] | None) -> Callable[[Any], bool] | None:
    """Return a function that applies the filters that the server cannot apply; None without such filters."""
    if not query.selects:
        return None
    if type is not msgspec.Raw:
        return query.keep
    return lambda record: query.keep(decode_json(record, _ANY_JSON))


class _HourlyRecords:
    """The records of an hour's batches that a stream with this query would have sent.

    Args:
        hour: Returns the batches of an hour.
        query: The query of the stream.
    """

    def __init__(self, hour: Hour, query: Query) -> None:
        self._hour = hour
        # A batch has all records, so the filters that the server applies to the stream are applied here.
        self._query = query.for_unfiltered()
        self._filters = {
            condition.field: condition.value for condition in query.conditions if condition.field in _BATCH_FIELDS
        }

    async def __call__(self, hour: datetime) -> AsyncGenerator[Buffer]:
        """Yield the records of one hour, as JSON; none if the server has no batches of it, or no longer."""
        files = self._hour(hour)
        try:
            batches = await files.list(filters=self._filters or None, fields=["identifier"])
        except NotFound:
            return
        for batch in batches:
            try:
                async with files.read(batch.identifier, type=msgspec.Raw, connections=1) as records:
                    while True:
                        try:
                            record = self._selected(await anext(records))
                        except StopAsyncIteration:
                            break
                        except DecodeError as error:
                            # The stream meets the same error, and handles it as its `on_bad_record` says.
                            record = error.record
                        if record is not None:
                            yield record
            except NotFound:
                # The list is not up to date. Raised, the error would come again with each attempt to pass the gap.
                logger.warning("the batch %s of %s no longer exists, nor do the events in it", batch.identifier, hour)

    def _selected(self, record: msgspec.Raw) -> Buffer | None:
        """Return a record as the stream would have sent it; None if it would not have."""
        if not self._query.selects and not self._query.reshapes:
            return memoryview(record)
        with decoding(record):
            plain = msgspec.json.decode(record)
            if not self._query.keep(plain):
                return None
            return msgspec.json.encode({**self._query.project(plain), "event": plain.get("event", {})})
