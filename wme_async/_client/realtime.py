"""`wme.realtime`: the firehose, one method for each kind of event."""

import builtins
import difflib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, overload

import msgspec

from wme_async._arguments import check_flags, check_record_type
from wme_async._client.collection import Value
from wme_async._client.files import Files
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._stream import Commit, OnBadRecord, OnGap, Stream, StreamEvent
from wme_async._stream.framing import MAX_RECORD, Framing
from wme_async._stream.resume import StreamResource
from wme_async._transport import Transport
from wme_async.errors import DecodeError, NotFound
from wme_async.models import Article, WikidataArticle
from wme_async.models.decoding import Buffer, decode_json, decoding
from wme_async.offsets import OffsetStore
from wme_async.settings import Retry

__all__ = ["Realtime"]

logger = logging.getLogger("wme_async.stream")

U = TypeVar("U")

_ANY_JSON = msgspec.json.Decoder()

Hour = Callable[[datetime], Files[Any, Any]]

# What a batch's metadata says of all records in it, under the name that the records have it under too.
_TELLING = frozenset({"is_part_of.identifier", "in_language.identifier", "namespace.identifier"})

# What goes to the stream as it is given.
_OPTIONS = frozenset(
    [
        *("parts", "connections", "since", "offsets", "name", "framing", "on_bad_record", "on_gap", "idle_timeout"),
        *("commit", "commit_interval", "retry", "on_event", "max_buffer", "max_record"),
    ]
)


class Realtime:
    """The streams of an account.

    Args:
        transport: Sends the requests.
        resources: The rows of the table.
        batches: Returns the hourly batches that fill gaps of the articles' stream.
        entities: The same for Wikidata.
    """

    def __init__(
        self, transport: Transport, resources: Mapping[str, Resource], batches: Hour, entities: Hour | None
    ) -> None:
        self._transport = transport
        self._resources = resources
        self._hours = {"realtime.articles": batches, "realtime.wikidata": entities}

    def __repr__(self) -> str:
        return "<Realtime>"

    @overload
    def articles(
        self,
        *,
        parts: Iterable[int] | None = None,
        connections: int = 1,
        since: datetime | None = None,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        offsets: OffsetStore | None = None,
        name: str = "default",
        framing: Framing = "ndjson",
        on_bad_record: OnBadRecord = "raise",
        on_gap: OnGap = "log",
        idle_timeout: float = 300.0,
        commit: Commit = "auto",
        commit_interval: float = 5.0,
        backfill: bool = False,
        retry: Retry | None = None,
        on_event: Callable[[StreamEvent], None] | None = None,
        max_buffer: int = 2 * 1024 * 1024,
        max_record: int = MAX_RECORD,
    ) -> Stream[Article]: ...
    @overload
    def articles(
        self,
        *,
        type: builtins.type[U],
        parts: Iterable[int] | None = None,
        connections: int = 1,
        since: datetime | None = None,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        offsets: OffsetStore | None = None,
        name: str = "default",
        framing: Framing = "ndjson",
        on_bad_record: OnBadRecord = "raise",
        on_gap: OnGap = "log",
        idle_timeout: float = 300.0,
        commit: Commit = "auto",
        commit_interval: float = 5.0,
        backfill: bool = False,
        retry: Retry | None = None,
        on_event: Callable[[StreamEvent], None] | None = None,
        max_buffer: int = 2 * 1024 * 1024,
        max_record: int = MAX_RECORD,
    ) -> Stream[U]: ...
    def articles(
        self,
        *,
        type: builtins.type[Any] | None = None,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        backfill: bool = False,
        **options: Any,
    ) -> Stream[Any]:
        """Follow updates, deletions and visibility changes of articles of all projects.

        Example:
            >>> offsets = SQLiteOffsets("offsets.db")  # doctest: +SKIP
            >>> async with wme.realtime.articles(offsets=offsets) as stream:
            ...     async for article in stream:
            ...         print(article.event.type, article.name)

        Args:
            type: A msgspec Struct of yours to decode into; only its fields are then asked for. Partition and offset are
                tracked even if it has no `event`.
            fields: Dotted JSON names of what to fetch; `event` comes along in any case, since there is no resuming
                without it.
            filters: Dotted JSON name to the one value it must have. What the server would never match (whole numbers
                above 999,999, fractions) is applied here, at the cost of receiving everything.
            backfill: Fetch what a gap lost from the hourly batches, as far as they still have it, and hand it out with
                `stream.backfilled` true. A batch keeps the last revision of a page in its hour, not each one.
            parts: Which tenths of the stream, 0 to 9; None for all.
            connections: Over how many connections the parts are dealt out, 1 to 10.
            since: Where to begin what has no saved position: an aware time within the last 48 hours. Now by default.
            offsets: Where positions are kept; in memory by default.
            name: Of this reader, within the store.
            framing: `"ndjson"` or `"sse"`.
            on_bad_record: `"raise"`, `"skip"` and count, or a function that is given the `DecodeError`.
            on_gap: `"log"`, `"raise"`, or a function that is given the `OffsetGap`.
            idle_timeout: Seconds of silence after which a connection is replaced.
            commit: `"auto"`, `"ack"` or `"manual"`.
            commit_interval: Seconds between two saves.
            retry: When to give up; never by default.
            on_event: Told of connects, cuts, retries, gaps and saves.
            max_buffer: Bytes received ahead of the consumer.
            max_record: Bytes above which a record counts as bad.
            **options: The arguments above, by name.

        Returns:
            An async context manager that is an async iterator of articles, or of `type`.

        Raises:
            ValueError: An unknown field, a filter or an argument that the server would refuse or misread.
            TypeError: An argument of a wrong type.
        """
        return self._open("realtime.articles", type, fields, filters, backfill=backfill, options=options)

    @overload
    def wikidata(
        self,
        *,
        parts: Iterable[int] | None = None,
        connections: int = 1,
        since: datetime | None = None,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        offsets: OffsetStore | None = None,
        name: str = "default",
        framing: Framing = "ndjson",
        on_bad_record: OnBadRecord = "raise",
        on_gap: OnGap = "log",
        idle_timeout: float = 300.0,
        commit: Commit = "auto",
        commit_interval: float = 5.0,
        backfill: bool = False,
        partitions: int = 50,
        parts_total: int = 10,
        retry: Retry | None = None,
        on_event: Callable[[StreamEvent], None] | None = None,
        max_buffer: int = 2 * 1024 * 1024,
        max_record: int = MAX_RECORD,
    ) -> Stream[WikidataArticle]: ...
    @overload
    def wikidata(
        self,
        *,
        type: builtins.type[U],
        parts: Iterable[int] | None = None,
        connections: int = 1,
        since: datetime | None = None,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        offsets: OffsetStore | None = None,
        name: str = "default",
        framing: Framing = "ndjson",
        on_bad_record: OnBadRecord = "raise",
        on_gap: OnGap = "log",
        idle_timeout: float = 300.0,
        commit: Commit = "auto",
        commit_interval: float = 5.0,
        backfill: bool = False,
        partitions: int = 50,
        parts_total: int = 10,
        retry: Retry | None = None,
        on_event: Callable[[StreamEvent], None] | None = None,
        max_buffer: int = 2 * 1024 * 1024,
        max_record: int = MAX_RECORD,
    ) -> Stream[U]: ...
    def wikidata(
        self,
        *,
        type: builtins.type[Any] = WikidataArticle,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        backfill: bool = False,
        partitions: int = 50,
        parts_total: int = 10,
        **options: Any,
    ) -> Stream[Any]:
        """Follow changes of Wikidata entities (beta: announced, not documented in full).

        Args:
            type: As for `articles`.
            fields: As for `articles`.
            filters: As for `articles`.
            backfill: As for `articles`.
            partitions: Partitions of the stream; 50 is an assumption, by analogy with articles.
            parts_total: Parts that they are grouped into; 10 by the same analogy.
            **options: As for `articles`.

        Returns:
            As `articles` does, of entities.

        Raises:
            ValueError: As for `articles`.
            TypeError: As for `articles`.
        """
        shape = {"partitions": partitions, "parts": parts_total}
        return self._open("realtime.wikidata", type, fields, filters, backfill=backfill, options=options, **shape)

    def explain(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        type: builtins.type[Any] | None = None,
    ) -> str:
        """Say in words, one fact a line, what `articles` would send and what it would apply here. Nothing is sent.

        Args:
            fields: As for `articles`, and so the next two.
            filters: As for `articles`.
            type: As for `articles`.

        Raises:
            ValueError: As `articles` raises it.
        """
        row = self._resources["realtime.articles"]
        assert row.backend is not None
        return Query.build(row.backend, row.model, fields=fields, filters=filters, type=type).explain()

    def _open(
        self,
        name: str,
        type: builtins.type[Any] | None,
        fields: Sequence[str] | None,
        filters: Mapping[str, Value] | None,
        *,
        backfill: bool,
        options: Mapping[str, Any],
        **shape: int,
    ) -> Stream[Any]:
        _check_options(options)
        check_flags(backfill=backfill)
        row = self._resources[name]
        assert row.backend is not None
        if type is not None:
            check_record_type(type)
        # Only a Struct says what to ask for; `dict` and `Raw` take whatever comes.
        own = type if isinstance(type, builtins.type) and issubclass(type, msgspec.Struct) else None
        query = Query.build(row.backend, row.model, fields=fields, filters=filters, type=own)
        body = query.body()
        hours = self._hours[name]
        if backfill and hours is None:
            raise ValueError("there are no batches to fill gaps of this stream from")
        return Stream(
            self._transport,
            StreamResource(
                name=name.partition(".")[2], path=row.path, model=row.model, product=row.product, beta=row.beta, **shape
            ),
            type=query.result if type is None else type,
            fields=body.get("fields"),
            filters=body.get("filters"),
            keep=_keep(query, type),
            backfill=_Batches(hours, query) if backfill and hours is not None else None,
            **options,
        )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse what no stream takes, in the words of the call rather than of what stands behind it."""
    for name in sorted(options.keys() - _OPTIONS):
        close = difflib.get_close_matches(name, _OPTIONS, 1, 0.6)
        meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(_OPTIONS))}"
        raise TypeError(f"a stream has no option {name!r}; {meant}")


def _keep(query: Query, type: builtins.type[Any] | None) -> Callable[[Any], bool] | None:
    """Return what applies the filters that the server cannot, if there are any."""
    if not query.selects:
        return None
    if type is not msgspec.Raw:
        return query.keep
    return lambda record: query.keep(decode_json(record, _ANY_JSON))


class _Batches:
    """The records of an hour's batches that a stream with this query would have sent.

    Args:
        hour: Returns the batches of an hour.
        query: What the stream was asked for.
    """

    def __init__(self, hour: Hour, query: Query) -> None:
        self._hour = hour
        # Nobody filters an archive but us, so what the server applied to the stream is applied here.
        self._query = query.for_unfiltered()
        self._narrow = {each.field: each.value for each in query.conditions if each.field in _TELLING}

    async def __call__(self, hour: datetime) -> AsyncIterator[Buffer]:
        """Yield the records of one hour, as JSON; none where it has no batches, or no longer."""
        files = self._hour(hour)
        try:
            batches = await files.list(filters=self._narrow or None, fields=["identifier"])
        except NotFound:
            return
        for batch in batches:
            try:
                async with files.read(batch.identifier, type=msgspec.Raw, connections=1) as records:
                    while True:
                        try:
                            wanted = self._wanted(await anext(records))
                        except StopAsyncIteration:
                            break
                        except DecodeError as error:
                            # As it is: what becomes of it is for the stream's `on_bad_record` to say.
                            wanted = error.record
                        if wanted is not None:
                            yield wanted
            except NotFound:
                # The list lags behind. Raised, it would be met again with every new attempt to get past the gap.
                logger.warning("the batch %s of %s is gone, and with it what a gap lost", batch.identifier, hour)

    def _wanted(self, record: msgspec.Raw) -> Buffer | None:
        if not self._query.selects and not self._query.reshapes:
            return memoryview(record)
        with decoding(record):
            plain = msgspec.json.decode(record)
            if not self._query.keep(plain):
                return None
            return msgspec.json.encode({**self._query.project(plain), "event": plain.get("event", {})})
