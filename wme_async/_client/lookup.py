"""Look-ups by title: the pages with one name in all projects, for one title or thousands."""

import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Final, Generic, Literal, TypeAlias, TypedDict, TypeVar, Unpack, overload

from wme_async._arguments import check_choice, check_type
from wme_async._client.cache import Cache, send_cached
from wme_async._client.collection import Value
from wme_async._client.concurrent_lookups import ConcurrencyOptions, Looked, Lookups
from wme_async._client.lookup_plan import LookupPlan, plan_lookup, read_response
from wme_async._client.paths import article_path
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._text import ShownText
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url
from wme_async.errors import NotFound

logger: logging.Logger = logging.getLogger("wme_async.lookup")

T = TypeVar("T")
U = TypeVar("U")

Missing: TypeAlias = Literal["empty", "raise"]
Order: TypeAlias = Literal["project"] | Sequence[str] | Callable[[Any], Any] | None

# NDJSON, so that one broken record does not make the others unreadable.
_HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}

# Seconds during which the API counts as in trouble after a failed request, and the mean wait before a recheck.
_TROUBLE_SECONDS = 60.0
_RECHECK_SECONDS = 1.0

_HINT_AFTER = 2000
_HOUR = 3600.0


class LookupOptions(TypedDict, total=False):
    """The options of `Lookup.lookup`, except `type`, on which the type of the result depends."""

    fields: Sequence[str] | None
    filters: Mapping[str, Value] | None
    limit: int | None
    missing: Missing
    order: Order
    recheck: bool | None


class _ManyOptions(LookupOptions, ConcurrencyOptions, total=False):
    """The options of `Lookup.lookup_many`, except `type`."""


class BulkHint:
    """Logs once that bulk archives are cheaper, after thousands of look-ups within an hour.

    Args:
        archives: The kind of archive to recommend.
    """

    def __init__(self, archives: str) -> None:
        self._archives = archives
        self._count = 0
        self._start = 0.0
        self._logged = False

    def count(self, now: float) -> None:
        """Count one look-up.

        Args:
            now: Seconds.
        """
        if self._logged:
            return
        if now - self._start > _HOUR:
            self._start = now
            self._count = 0
        self._count += 1
        if self._count >= _HINT_AFTER:
            self._logged = True
            logger.warning(
                "%d look-ups within an hour, each metered: for whole projects, %s are quicker, and a download of one "
                "is a single metered request",
                self._count,
                self._archives,
            )


async def send_lookup(
    transport: Transport, request: Request, *, cache: Cache | None, recheck: bool | None
) -> Response | NotFound:
    """Send a look-up and return its response, or a `NotFound` after a second request if the first may be wrong.

    The server also responds "not found" while its own store fails, and does not say which of the two it is.

    Args:
        transport: Sends the request.
        request: The look-up.
        cache: The cache, if any.
        recheck: Whether to repeat the request after a "not found", about one second later and for one more metered
            request: always, never, or (None) if a request to the API failed within the last minute.

    Raises:
        WMEError: The request failed in another way.
    """
    timeout = transport.timeouts.lookup
    try:
        return await send_cached(transport, request, cache=cache, read_timeout=timeout)
    except NotFound as error:
        if not (transport.failed_recently("api", _TROUBLE_SECONDS) if recheck is None else recheck):
            return error
    await transport.sleep(_RECHECK_SECONDS * (0.5 + transport.random.random()))
    try:
        return await send_cached(transport, request, cache=cache, read_timeout=timeout)
    except NotFound as error:
        return error


def cost_of(resource: Resource, names: int | Sized) -> Cost:
    """Return the cost of look-ups of these names, or of this number of names."""
    if isinstance(names, str | bytes | bool) or not isinstance(names, int | Sized):
        raise TypeError(f"cost takes a list of names, or a number of names, not {names!r}")
    count = names if isinstance(names, int) else len(names)
    if count < 0:
        raise ValueError(f"a number of names is at least 0, not {count}")
    return Cost(pool=resource.pool, requests=count if resource.pool else 0)


def check_recheck(recheck: object) -> None:
    """Raise if the value is not True, False or None.

    Raises:
        TypeError: It is something else.
    """
    check_type("recheck", recheck, bool | None, "True, False or None")


def not_found(message: str, source: NotFound | Response) -> NotFound:
    """Return a `NotFound` with a message of ours.

    Args:
        message: Cause and remedy.
        source: The server's "not found", or a response of which the local filters leave no record.
    """
    if isinstance(source, NotFound):
        error = NotFound(message, status=404, url=source.url, request_id=source.request_id, body=source.body)
        error.__cause__ = source
        return error
    return NotFound(message, status=404, url=bare_url(source.url), request_id=source.headers.get("X-Request-Id"))


class Lookup(Generic[T]):
    """Pages by title.

    The title must be exact: it is case-sensitive, and redirects are not followed. It may exist in many projects, with
    one record in each: without a filter the server searches all of them, which takes long, and returns any `limit` of
    the matching records. Filter by `is_part_of.identifier` (`"enwiki"`) or `in_language.identifier` (`"en"`) if you
    know them.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        cache: The cache for responses, if any.
    """

    def __init__(self, transport: Transport, resource: Resource, *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resource = resource
        self._cache = cache
        self._hint = BulkHint("snapshots")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._resource.path}>"

    @overload
    async def lookup(self, name: str, **options: Unpack[LookupOptions]) -> list[T]: ...
    @overload
    async def lookup(self, name: str, *, type: type[U], **options: Unpack[LookupOptions]) -> list[U]: ...
    async def lookup(
        self,
        name: str,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: type[Any] | None = None,
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
    ) -> list[Any]:
        """Return the pages with this title. One metered request, even without a page.

        Args:
            name: The title in plain text: `"AC/DC"`, `"What Is Life?"`. Spaces and underscores are equivalent.
            fields: Dotted names of the fields to fetch, such as `["name", "version.identifier"]`; all by default.
            filters: Dotted name to the one value it must have. The server selects records by project and language, and
                compares other fields afterwards, so one of these two must be among the filters. A filter that the
                server cannot compare exactly is a `ValueError`, unless the filters name the project, and so at most one
                record: then it is applied locally.
            limit: 1 to 10 records; the server's default is 3. The server picks them at random if more match.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.
            missing: The result for a title without a page: `"empty"` for an empty list, `"raise"` for `NotFound`.
            order: The server's order is random. `"project"`: by project identifier, as in the list of projects. A list
                of project identifiers: in that order, then the others. A function of a record: by its result. None: as
                received. The first two fetch the project's identifier in addition to your fields.
            recheck: The server also responds "not found" while its store is in trouble. Whether to repeat the request
                before believing it, after about a second and for one more metered request: True always, False never,
                None if the API failed within the last minute. The same trouble can hide some of several records, which
                no client can detect.

        Returns:
            Records. Structured contents with a true `is_raw_article` are unstructured articles, which the server sends
            if it could not build the structure.

        Raises:
            ValueError: No page can have this title, a field is unknown, or a filter could not give a right result;
                nothing was sent.
            NotFound: No page matches, with `missing="raise"`.
            DecodeError: A record is malformed; its bytes are in `record`, and the other records of the response in
                `records`. Some descriptions break structured contents for good. An unstructured article among
                structured records is an error too, if your `type` could not show it, or if a filter is on a field that
                it lacks, such as `description`.
            QuotaExceeded: The month's allowance is used up.
            WMEError: The request failed in another way.
        """
        _check_options(missing, recheck)
        result = await self._find(name, self._plan(fields, filters, limit, type, order), missing, recheck)
        return list(result.unwrap())

    @overload
    def lookup_many(self, names: Iterable[str] | AsyncIterable[str], **options: Unpack[_ManyOptions]) -> Lookups[T]: ...
    @overload
    def lookup_many(
        self, names: Iterable[str] | AsyncIterable[str], *, type: type[U], **options: Unpack[_ManyOptions]
    ) -> Lookups[U]: ...
    def lookup_many(
        self,
        names: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: type[Any] | None = None,
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
        **concurrency: Unpack[ConcurrencyOptions],
    ) -> Lookups[Any]:
        """Look many titles up: an async iterator with one `Looked` for each, whether it succeeds or fails.

        Memory is bounded, whatever the number of titles and the speed of the consumer. An error that holds for every
        title (no right to look up, the month's allowance used up) ends the requests, and is the error of all following
        titles.

        Example:
            >>> async with wme.articles.lookup_many(titles, limit=1) as results:  # doctest: +SKIP
            ...     async for looked in results:
            ...         print(looked.name, looked.first or looked.error or "no such page")

        Args:
            names: Titles: a list, a generator, an open file's stripped lines, an async iterator.
            fields: As for `lookup`, and so the next six.
            filters: As for `lookup`.
            limit: As for `lookup`.
            type: As for `lookup`.
            missing: As for `lookup`: with `"raise"`, a `NotFound` is the error of a title.
            order: As for `lookup`.
            recheck: As for `lookup`.
            **concurrency: `concurrency`: requests at a time (10); connections are bounded by `Limits.connections` all
                the same. `ordered`: whether results come in the order of titles (True), or as requests complete.
                `progress`: called with `LookupProgress` at most five times a second and at the end; it must not block.

        Raises:
            TypeError: `names` is one title.
            ValueError: A field is unknown, a filter could not give a right result, or `concurrency` is below 1.
        """
        _check_options(missing, recheck)
        plan = self._plan(fields, filters, limit, type, order)
        return Lookups(
            names,
            lambda name: self._find(name, plan, missing, recheck),
            monotonic=self._transport.monotonic,
            **concurrency,
        )

    def cost(self, names: int | Sized) -> Cost:
        """Return the cost of looking these titles up: one metered request each, whether there is a page or not.

        Args:
            names: The titles, or their number.

        Raises:
            TypeError: It is one title, or neither a list nor a number.
            ValueError: The number is negative.
        """
        return cost_of(self._resource, names)

    def explain(
        self,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: type[Any] | None = None,
    ) -> str:
        """Describe, one fact a line, the request of `lookup` and the filters that apply locally. Nothing is sent.

        Args:
            fields: As for `lookup`, and so the next three.
            filters: As for `lookup`.
            limit: As for `lookup`.
            type: As for `lookup`.

        Raises:
            ValueError: As for `lookup`.
        """
        plan = self._plan(fields, filters, limit, type, "project")
        return ShownText("\n".join([plan.query.explain(), *plan.notes]))

    async def _find(self, name: str, plan: LookupPlan, missing: Missing, recheck: bool | None) -> Looked[Any]:
        """Look one title up. An error of its records is in the result; other errors are raised."""
        request = Request(
            method="POST",
            path=self._resource.path.replace("{name}", article_path(name)),
            headers=_HEADERS,
            body=plan.body,
            token=True,
            pool=self._resource.pool,
            product=self._resource.product,
        )
        self._hint.count(self._transport.monotonic())
        response = await send_lookup(self._transport, request, cache=self._cache, recheck=recheck)
        records: list[Any] = []
        error: Exception | None = None
        if isinstance(response, Response):
            records, error = read_response(response, plan)
            if error is not None and self._cache is not None:
                self._cache.forget(response)
        if not records and error is None and missing == "raise":
            error = not_found(
                f"no page {name!r} matches the filters: titles are exact and case-sensitive, and "
                "redirects are not followed",
                response,
            )
        return Looked(name=name, records=tuple(records), error=error)

    def _plan(
        self,
        fields: Sequence[str] | None,
        filters: Mapping[str, Value] | None,
        limit: int | None,
        type: type[Any] | None,
        order: Order,
    ) -> LookupPlan:
        assert self._resource.backend is not None
        return plan_lookup(
            Query.build(
                self._resource.backend, self._resource.model, fields=fields, filters=filters, limit=limit, type=type
            ),
            order,
        )


def _check_options(missing: object, recheck: object) -> None:
    check_choice("missing", missing, ("empty", "raise"))
    check_recheck(recheck)
