"""The main host: the layers before every route, metadata, and the redirects of downloads."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from wme_async.simulator.errors import HTTPError, Panic
from wme_async.simulator.faults import Fault
from wme_async.simulator.hosts.access import AccessRow, Caps, Limiter, authorize
from wme_async.simulator.hosts.accounts import Accounts, User
from wme_async.simulator.hosts.http import Response, document, error_response, negotiate, redirect, slash_redirect
from wme_async.simulator.hosts.store import ObjectStore
from wme_async.simulator.protocol.query import Query, bind, encode_list, encode_row, select_rows
from wme_async.simulator.world.catalog import TWIN, Catalog

_FREE: Final = "group_1"
_READ: Final = ("GET", "POST")
_EXPOSED: Final = (
    "Accept-Ranges, Last-Modified, Content-Length, ETag, Cache-Control, Content-Disposition, Content-Encoding, "
    "Content-Type, Expires"
)
NO_SUCH_KEY: Final = (
    "NoSuchKey: The specified key does not exist.\n"
    "\tstatus code: 404, request id: 5D3F1A9C0E7B2468, host id: c2ltdWxhdGVk"
)


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request to the main host, with its account and the variables of its path.

    Attributes:
        method: The HTTP method.
        path: The decoded path.
        query: The query as sent.
        headers: Header lines, names in lower case.
        body: The body.
        user: The account.
        values: The variables of the path.
        faults: The faults of this request.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    user: User
    values: Mapping[str, str]
    faults: Sequence[Fault]

    @property
    def accept(self) -> str | None:
        """The Accept header."""
        return self.headers.get("accept")

    def bound(self) -> Query:
        """Bind the parameters; raises `HTTPError`."""
        return bind(self.method, self.headers.get("content-type"), self.query, self.body)

    @property
    def twin(self) -> str:
        """The suffix of the copies that members of the free group get, or ""."""
        return TWIN if _FREE in self.user.groups else ""


Handler = Callable[[ApiRequest], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path with variables, its methods, its handler, and the monthly pool that it draws on."""

    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    handler: Handler
    pool: str | None = None


def _route(path: str, handler: Handler, methods: tuple[str, ...] = _READ, pool: str | None = None) -> Route:
    """Make a route of a path in which `{name}` is one segment and `{name*}` the rest."""
    text = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", path)
    text = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text)
    return Route(methods, re.compile(f"^{text}$", re.DOTALL), handler, pool)


class Api:
    """The main host.

    Args:
        accounts: Users and tokens.
        catalog: Metadata and archives.
        store: The target of the redirects of downloads.
        limiter: Requests per second.
        caps: Requests per month.
        access: Returns the access policy.
    """

    def __init__(
        self,
        accounts: Accounts,
        catalog: Catalog,
        store: ObjectStore,
        limiter: Limiter,
        caps: Caps,
        access: Callable[[], Sequence[AccessRow]],
    ) -> None:
        self._accounts = accounts
        self._catalog = catalog
        self._store = store
        self._limiter = limiter
        self._caps = caps
        self._access = access
        self.routes: list[Route] = []
        if any("wikidata" in row.path for row in access()):
            # Earlier routes win: "wikidata" would be an identifier of the routes below.
            self.routes += [
                *self._archives("/v2/snapshots/wikidata", "wikidata-snapshots", twins=True, pool="snapshots"),
                *self._archives(
                    "/v2/snapshots/wikidata/{sid}/chunks", "wikidata-chunks/{sid}", twins=True, pool="chunks"
                ),
                *self._archives("/v2/batches/wikidata/{date}/{hour}", "batches/wikidata/{date}/{hour}"),
            ]
        self.routes += [
            *self._archives("/v2/snapshots/structured-contents", "structured-snapshots"),
            *self._archives("/v2/snapshots", "snapshots", twins=True, pool="snapshots"),
            *self._archives("/v2/snapshots/{sid}/chunks", "chunks/{sid}", twins=True, pool="chunks"),
            *self._archives("/v2/batches/{date}/{hour}", "batches/{date}/{hour}"),
        ]
        for name in ("codes", "languages", "projects", "namespaces"):
            self.routes += self._metadata(f"/v2/{name}", name, twins=False)

    def _metadata(self, path: str, collection: str, *, twins: bool) -> list[Route]:
        return [
            _route(path, partial(self._list, collection, twins)),
            _route(f"{path}/{{id}}", partial(self._item, collection, twins)),
        ]

    def _archives(self, path: str, collection: str, *, twins: bool = False, pool: str | None = None) -> list[Route]:
        """Return the routes of one kind of archive: list, item, HEAD and GET of the archive itself."""
        file = f"{path}/{{id}}/download"
        return [
            *self._metadata(path, collection, twins=twins),
            _route(file, partial(self._head, collection, twins), ("HEAD",)),
            _route(file, partial(self._redirect, collection, twins), ("GET",), pool),
        ]

    def add(self, path: str, handler: Handler, methods: tuple[str, ...] = _READ, *, pool: str | None = None) -> None:
        """Add a route: `{name}` is one segment, `{name*}` the rest; earlier routes win."""
        self.routes.append(_route(path, handler, methods, pool))

    async def respond(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        faults: Sequence[Fault] = (),
    ) -> Response:
        """Answer one request, in the order of the real host's layers.

        Unauthenticated routes and slash redirects, then 401, 403 (also for unknown paths), 429 by the second, the
        route, 429 by the month.

        Args:
            method: The HTTP method.
            path: The decoded path.
            query: The query as sent.
            headers: Header lines, names in lower case.
            body: The body.
            faults: The faults of this request.
        """
        if method == "GET" and path in {"/v2/status", "/healthz"}:
            return Response(200)
        other_path = path[:-1] if path.endswith("/") else f"{path}/"
        if path not in {"", "/"} and self._match(method, path) is None and self._match(method, other_path) is not None:
            return slash_redirect(method, other_path, query)
        try:
            user, route, values = self._admit(method, path, headers)
            return await route.handler(ApiRequest(method, path, query, headers, body, user, values, faults))
        except HTTPError as error:
            return error_response(error.status, error.message, headers.get("accept"))
        except Panic as panic:
            if panic.fatal:
                raise
            return Response(500)

    def _admit(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[User, Route, Mapping[str, str]]:
        user = authorize(self._accounts, self._access(), method, path, headers)
        if not self._limiter.admit(user.username, user.groups):
            raise HTTPError(429, "Too Many Requests")
        match = self._match(method, path)
        if match is None:
            raise HTTPError(404, "Not Found")
        if match[0].pool is not None and not self._caps.spend(user.username, user.groups, match[0].pool):
            raise HTTPError(429, "Too Many Requests")
        return user, *match

    def _match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        for route in self.routes:
            if method in route.methods and (match := route.pattern.match(path)) is not None:
                return route, match.groupdict()
        return None

    # Metadata

    async def _list(self, collection: str, twins: bool, request: ApiRequest) -> Response:
        query = request.bound()
        rows = await self._catalog.rows(collection.format(**request.values) + (request.twin if twins else ""))
        if rows is None:
            raise HTTPError(404, NO_SUCH_KEY)
        kind = negotiate(request.accept)
        return document(encode_list([encode_row(row) for row in select_rows(rows, query)], kind), kind)

    async def _item(self, collection: str, twins: bool, request: ApiRequest) -> Response:
        query = request.bound()
        prefix, name = _location(collection, request.values)
        return single_row(request, await self._catalog.row(prefix + (request.twin if twins else ""), name), query)

    # Archives

    async def _head(self, collection: str, twins: bool, request: ApiRequest) -> Response:
        archive = await self._store.get(_key(collection, request, twins=twins))
        if archive is None:
            raise HTTPError(404, "Not Found")
        modified = datetime.fromtimestamp(archive.modified, UTC)
        headers = {
            "Accept-Ranges": "bytes",
            # Copied by a formatter that writes the zone's name, where the store itself writes GMT.
            "Last-Modified": f"{modified:%a, %d %b %Y %H:%M:%S} UTC",
            "Content-Length": str(archive.size),
            "Etag": f'"{archive.etag}"',
            "Content-Type": archive.content_type,
            "Access-Control-Expose-Headers": _EXPOSED,
        }
        return Response(200, headers)

    async def _redirect(self, collection: str, twins: bool, request: ApiRequest) -> Response:
        return download_redirect(request, self._store, _key(collection, request, twins=twins))


def _location(collection: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Return collection and name of an archive; of a chunk's id only the last piece after `_` counts."""
    name = values["id"]
    if "chunks/" in collection:
        name = f"chunk_{name.rpartition('_')[2]}"
    return collection.format(**values), name


def _key(collection: str, request: ApiRequest, *, twins: bool) -> str:
    prefix, name = _location(collection, request.values)
    return f"{prefix}/{name}{request.twin if twins else ''}.tar.gz"


def single_row(request: ApiRequest, row: Mapping[str, Any] | None, query: Query) -> Response:
    """Answer with the metadata of one thing, or raise the 404 of the store behind them."""
    if row is None:
        raise HTTPError(404, NO_SUCH_KEY)
    return document(encode_row(select_rows([row], query, filtered=False)[0]), negotiate(request.accept))


def download_redirect(request: ApiRequest, store: ObjectStore, key: str) -> Response:
    """Redirect to a signed address of an object."""
    return redirect(307, store.presign(key, request.user.subject), "Temporary Redirect")
