"""Look-ups by title: the pages of one name in all projects, one title or thousands."""

import logging
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar, overload

from wme_async._client.cache import Cache, forget_unreadable, send_cached
from wme_async._client.collection import Value
from wme_async._client.concurrent_lookups import Looked, LookupProgress, Lookups
from wme_async._client.lookup_plan import LookupPlan, plan_lookup, read_response
from wme_async._client.paths import article_path
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._query.query import Query
from wme_async._transport import Request, Response, Transport
from wme_async._transport.error_responses import bare_url
from wme_async.errors import ClientClosed, NotFound, WMEError

__all__ = ["BulkHint", "Lookup", "cost_of", "send_lookup"]

logger = logging.getLogger("wme_async.lookup")

T = TypeVar("T")
U = TypeVar("U")

Missing: TypeAlias = Literal["empty", "raise"]
Order: TypeAlias = Literal["project"] | Sequence[str] | Callable[[Any], Any] | None

# Lines, so that one record that is broken does not take the others with it.
_HEADERS: Final = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}

# How long the API is thought to be in trouble after a request of ours failed, and how long to wait before asking again.
_TROUBLE = 60.0
_RECHECK_AFTER = 1.0

_MANY = 2000
_HOUR = 3600.0


class BulkHint:
    """Says once, where look-ups come in thousands an hour, what they are cheaper with.

    Args:
        bulk: What is cheaper.
    """

    __slots__ = ("_began", "_bulk", "_count", "_said")

    def __init__(self, bulk: str) -> None:
        self._bulk = bulk
        self._count = 0
        self._began = 0.0
        self._said = False

    def count(self, now: float) -> None:
        """Count one look-up.

        Args:
            now: Seconds.
        """
        if self._said:
            return
        if now - self._began > _HOUR:
            self._began = now
            self._count = 0
        self._count += 1
        if self._count >= _MANY:
            self._said = True
            logger.warning(
                "%d look-ups within an hour, each metered: for whole projects, %s are quicker, and a download of one "
                "is a single metered request",
                self._count,
                self._bulk,
            )


async def send_lookup(
    transport: Transport, request: Request, *, cache: Cache | None, recheck: bool | None
) -> Response | NotFound:
    """Send a look-up; a "not found" is returned, and asked again where it may be false.

    The server says "not found" too where its own store fails it, and does not tell the two apart.

    Args:
        transport: Sends it.
        request: What to send.
        cache: Where to look first.
        recheck: Ask a second time after a "not found", one second later and for one more metered request: always,
            never, or (None) where the API failed us within the last minute.

    Raises:
        WMEError: Whatever else went wrong.
    """
    timeout = transport.timeouts.lookup
    try:
        return await send_cached(transport, request, cache=cache, read_timeout=timeout)
    except NotFound as error:
        if not (transport.failed_recently("api", _TROUBLE) if recheck is None else recheck):
            return error
    await transport.sleep(_RECHECK_AFTER * (0.5 + transport.random.random()))
    try:
        return await send_cached(transport, request, cache=cache, read_timeout=timeout)
    except NotFound as error:
        return error


def cost_of(resource: Resource, names: int | Sized) -> Cost:
    """Return what that many look-ups will be charged."""
    if isinstance(names, str | bytes | bool) or not isinstance(names, int | Sized):
        raise TypeError(f"a cost is that of several names, or of a number of them, not of {names!r}")
    count = names if isinstance(names, int) else len(names)
    if count < 0:
        raise ValueError(f"a number of names is 0 or more, got {count}")
    return Cost(pool=resource.pool, requests=count if resource.pool else 0)


class Lookup(Generic[T]):
    """Pages by title.

    The title must be exact: capitals count, redirects are not followed. It may exist in many projects, and each has a
    record of its own: without a filter the server walks through all of them, which takes long, and returns any `limit`
    of those that have it. Filter by `is_part_of.identifier` (`"enwiki"`) or `in_language.identifier` (`"en"`) where
    you know them.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        cache: Where answers are kept, if anywhere.
    """

    def __init__(self, transport: Transport, resource: Resource, *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resource = resource
        self._cache = cache
        self._hint = BulkHint("snapshots")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._resource.path}>"

    @overload
    async def lookup(
        self,
        name: str,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
    ) -> list[T]: ...
    @overload
    async def lookup(
        self,
        name: str,
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: type[U],
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
    ) -> list[U]: ...
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
        """Return the pages of this title. One metered request, also where there is none.

        Args:
            name: The title as it reads: `"AC/DC"`, `"What Is Life?"`. Spaces and underscores are the same.
            fields: Dotted names of what to fetch, such as `["name", "version.identifier"]`; everything where not given.
            filters: Dotted name to the one value it must have. The server picks records by project and language, and
                compares other fields afterwards: so one of these two goes with them. What it cannot compare exactly is
                refused, unless the filters name the project, and so one record at most: then it is compared here.
            limit: 1 to 10 records; the server's default is 3. Of more that there are it picks some at random.
            type: A msgspec Struct of yours to decode into; `fields` then follow from it.
            missing: What a title without a page gives: an empty list, or `"raise"` for `NotFound`.
            order: The server's is random. `"project"`: as in the list of projects, by identifier. A list of project
                identifiers: in that order, then the rest. A function of a record: by what it returns. None: as they
                came. For the first two the project's identifier is fetched besides what you asked for.
            recheck: The server also says "not found" while its store is in trouble. Ask once more before believing it,
                after about a second and for one more metered request: True always, False never, None where the API
                failed within the last minute. The same trouble can hide some of several records, which no one can tell.

        Returns:
            Records; of structured contents, those whose `is_raw_article` is true are unstructured articles, which the
            server sends where it could not make the structure.

        Raises:
            ValueError: The title is none, an unknown field, or a filter that could not give a right answer; nothing was
                sent.
            NotFound: There is no such page, with `missing="raise"`.
            DecodeError: A record is not what the API gives; its bytes are in `record`, and the records of the same
                answer that could be read in `records`. Some descriptions break structured contents for good. An
                unstructured article among structured records is one too, where `type` is yours and could not show it,
                or where a filter is by what it lacks, such as `description`.
            QuotaExceeded: The month's allowance is used up.
            WMEError: Whatever else went wrong.
        """
        _check_options(missing, recheck)
        plan = self._plan(fields, filters, limit, type, order)
        response = await self._send(name, plan, recheck)
        if isinstance(response, NotFound):
            if missing == "raise":
                raise _not_found(name, response) from response
            return []
        with forget_unreadable(self._cache, response):
            records, error = read_response(response, plan)
            if error is not None:
                raise error
        if not records and missing == "raise":
            raise _not_found(name, _filtered_out(response))
        return records

    @overload
    def lookup_many(
        self,
        names: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[T]: ...
    @overload
    def lookup_many(
        self,
        names: Iterable[str] | AsyncIterable[str],
        *,
        fields: Sequence[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: type[U],
        missing: Missing = "empty",
        order: Order = "project",
        recheck: bool | None = None,
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
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
        concurrency: int = 10,
        ordered: bool = True,
        progress: Callable[[LookupProgress], None] | None = None,
    ) -> Lookups[Any]:
        """Look many titles up: an async iterator with one `Looked` for each, a failure among them or not.

        Memory is bounded, however many titles there are and however slowly results are taken. What holds for every
        title (no right to look up, the month's allowance used up) is asked once, and then is the error of all titles
        that follow.

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
            concurrency: Requests at a time. Connections are bounded by `Limits.connections` all the same.
            ordered: In the order of titles; else as answers come.
            progress: Told how far it is, at most five times a second and at the end. It must not block.

        Raises:
            TypeError: `names` is one title.
            ValueError: An unknown field, a filter that could not give a right answer, a concurrency below 1.
        """
        _check_options(missing, recheck)
        plan = self._plan(fields, filters, limit, type, order)

        async def ask(name: str) -> Looked[Any]:
            try:
                response = await self._send(name, plan, recheck)
            except ClientClosed:
                # It says nothing of this name, and there is no way to ask for those that follow.
                raise
            except (WMEError, ValueError, TypeError) as error:
                return Looked(name=name, error=error)
            if isinstance(response, NotFound):
                return Looked(name=name, error=_not_found(name, response) if missing == "raise" else None)
            records, trouble = read_response(response, plan)
            if trouble is not None and self._cache is not None:
                self._cache.forget(response)
            if not records and trouble is None and missing == "raise":
                return Looked(name=name, error=_not_found(name, _filtered_out(response)))
            return Looked(name=name, records=tuple(records if trouble is None else trouble.records), error=trouble)

        return Lookups(
            names,
            ask,
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            monotonic=self._transport.monotonic,
        )

    def cost(self, names: int | Sized) -> Cost:
        """Return what looking these titles up will be charged: one metered request each, found or not.

        Args:
            names: The titles, or how many they are.

        Raises:
            TypeError: One title, or neither several nor a number.
            ValueError: A negative number.
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
        """Say in words, one fact a line, what `lookup` would send and what it would apply here. Nothing is sent.

        Args:
            fields: As for `lookup`, and so the next three.
            filters: As for `lookup`.
            limit: As for `lookup`.
            type: As for `lookup`.

        Raises:
            ValueError: As `lookup` raises it.
        """
        plan = self._plan(fields, filters, limit, type, "project")
        return "\n".join([plan.query.explain(), *plan.notes])

    async def _send(self, name: str, plan: LookupPlan, recheck: bool | None) -> Response | NotFound:
        resource = self._resource
        # The server ignores a JSON body without the header that names it, and answers with everything.
        request = Request(
            method="POST",
            path=resource.path.replace("{name}", article_path(name)),
            headers=_HEADERS,
            body=plan.body,
            token=True,
            pool=resource.pool,
            product=resource.product,
        )
        self._hint.count(self._transport.monotonic())
        return await send_lookup(self._transport, request, cache=self._cache, recheck=recheck)

    def _plan(
        self,
        fields: Sequence[str] | None,
        filters: Mapping[str, Value] | None,
        limit: int | None,
        type: type[Any] | None,
        order: Order,
    ) -> LookupPlan:
        assert self._resource.backend is not None
        query = Query.build(
            self._resource.backend, self._resource.model, fields=fields, filters=filters, limit=limit, type=type
        )
        return plan_lookup(query, order)


def check_recheck(recheck: object) -> None:
    """Refuse what is neither True, False nor None.

    Raises:
        TypeError: Naming it.
    """
    if recheck is not None and not isinstance(recheck, bool):
        raise TypeError(f"recheck must be True, False or None, not {recheck!r}")


def _check_options(missing: str, recheck: object) -> None:
    if missing not in ("empty", "raise"):  # no set: what is given may be a list
        raise ValueError(f'missing is "empty" or "raise", got {missing!r}')
    check_recheck(recheck)


def _filtered_out(response: Response) -> NotFound:
    """What the server would have said of an answer of which the filters that are applied here leave nothing."""
    return NotFound(status=404, url=bare_url(response.url), request_id=response.headers.get("X-Request-Id"))


def _not_found(name: str, error: NotFound) -> NotFound:
    return NotFound(
        f"there is no page {name!r} that the filters let through: titles are exact, capitals count, and redirects are "
        "not followed",
        status=error.status,
        url=error.url,
        request_id=error.request_id,
        body=error.body,
    )
