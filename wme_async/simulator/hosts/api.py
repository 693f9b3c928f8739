"""The main host: metadata, downloads, and what stands before every route."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from wme_async.simulator.faults import Fault
from wme_async.simulator.hosts.access import AccessRow, Caps, Limiter, allowed
from wme_async.simulator.hosts.auth import Accounts, Denied, User
from wme_async.simulator.hosts.http import Answer, error_answer, negotiate
from wme_async.simulator.hosts.store import ObjectStore
from wme_async.simulator.protocol.query import Panic, Query, Refused, bind, encode_list, encode_row, select_rows
from wme_async.simulator.world.catalog import TWIN, Catalog

__all__ = ["Api", "Call"]

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
class Call:
    """One request to the main host, ready for its handler.

    Attributes:
        method: The HTTP method.
        path: The decoded path.
        query: The query as sent.
        headers: Header lines, names in lower case.
        body: The body.
        user: Who calls.
        values: What the path's variables hold.
        faults: Those that befall this request.
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
        """Bind the parameters; raises `Refused`."""
        return bind(self.method, self.headers.get("content-type"), self.query, self.body)

    @property
    def twin(self) -> str:
        """The suffix of the copies that any member of the free group is given, else ""."""
        return TWIN if _FREE in self.user.groups else ""


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path with variables, its methods, its handler, and the monthly pool that it draws on."""

    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    handler: Handler
    pool: str | None = None


def route(path: str, handler: Handler, methods: tuple[str, ...] = _READ, pool: str | None = None) -> Route:
    """Make a route of a path in which `{name}` is one segment and `{name*}` the rest."""
    text = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.*)", path)
    text = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text)
    return Route(methods, re.compile(f"^{text}$", re.DOTALL), handler, pool)


class Api:
    """The main host.

    Args:
        accounts: Users and tokens.
        catalog: Metadata and archives.
        store: Where downloads are redirected to.
        limiter: Requests per second.
        caps: Requests per month.
        access: The access policy.
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
            # Earlier routes win: these stand where an identifier is expected otherwise.
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
            self.routes.append(route(f"/v2/{name}", self._lister(name)))
            self.routes.append(route(f"/v2/{name}/{{id}}", self._getter(name)))

    def _archives(self, path: str, collection: str, *, twins: bool = False, pool: str | None = None) -> list[Route]:
        """The routes of one kind of archive: list, item, HEAD and GET of the archive itself."""
        file = f"{path}/{{id}}/download"
        return [
            route(path, self._lister(collection, twins=twins)),
            route(f"{path}/{{id}}", self._getter(collection, twins=twins)),
            route(file, self._header(collection, twins=twins), ("HEAD",)),
            route(file, self._redirect(collection, twins=twins), ("GET",), pool),
        ]

    def add(self, path: str, handler: Handler, methods: tuple[str, ...] = _READ, *, pool: str | None = None) -> None:
        """Add a route: `{name}` is one segment, `{name*}` the rest; earlier routes win."""
        self.routes.append(route(path, handler, methods, pool))

    async def answer(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        faults: Sequence[Fault] = (),
    ) -> Answer:
        """Answer one request, in the order of the real host's layers.

        Unauthenticated routes and slash redirects, then 401, 403 (also for unknown paths), 429 by the second, the
        route, 429 by the month.

        Args:
            method: The HTTP method.
            path: The decoded path.
            query: The query as sent.
            headers: Header lines, names in lower case.
            body: The body.
            faults: Those that befall this request.
        """
        accept = headers.get("accept")
        if method == "GET" and path in {"/v2/status", "/healthz"}:
            return Answer(200)
        if (elsewhere := self._slash(method, path, query)) is not None:
            return elsewhere
        try:
            user = self._accounts.authenticate(headers.get("authorization"))
        except Denied as denied:
            return error_answer(401, denied.message, accept)
        if not allowed(self._access(), user.groups, method, path):
            return error_answer(403, "Forbidden", accept)
        if not self._limiter.admit(user.username, user.groups):
            return error_answer(429, "Too Many Requests", accept)
        found = self._match(method, path)
        if found is None:
            return error_answer(404, "Not Found", accept)
        wanted, values = found
        if wanted.pool is not None and not self._caps.spend(user.username, user.groups, wanted.pool):
            return error_answer(429, "Too Many Requests", accept)
        call = Call(method, path, query, headers, body, user, values, faults)
        try:
            return await wanted.handler(call)
        except Refused as refused:
            return error_answer(refused.status, refused.message, accept)
        except Panic as panic:
            if panic.fatal:
                raise
            return Answer(500)

    def _match(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        for candidate in self.routes:
            if method in candidate.methods and (match := candidate.pattern.match(path)) is not None:
                return candidate, match.groupdict()
        return None

    def _slash(self, method: str, path: str, query: str) -> Answer | None:
        """Redirect to the registered form of a path that differs by its last slash; the body does not matter."""
        if path in {"", "/"} or self._match(method, path) is not None:
            return None
        other = path[:-1] if path.endswith("/") else f"{path}/"
        if self._match(method, other) is None:
            return None
        target = other + (f"?{query}" if query else "")
        if method != "GET":
            return Answer(307, {"Location": target})
        return moved(301, target, "Moved Permanently")

    # Metadata

    def _lister(self, collection: str, *, twins: bool = False) -> Handler:
        async def handler(call: Call) -> Answer:
            query = call.bound()
            rows = await self._catalog.rows(collection.format(**call.values) + (call.twin if twins else ""))
            if rows is None:
                raise Refused(404, NO_SUCH_KEY)
            return records(call, select_rows(rows, query))

        return handler

    def _getter(self, collection: str, *, twins: bool = False) -> Handler:
        async def handler(call: Call) -> Answer:
            query = call.bound()
            where, name = _place(collection, call.values)
            row = await self._catalog.row(where + (call.twin if twins else ""), name)
            if row is None:
                raise Refused(404, NO_SUCH_KEY)
            chosen = select_rows([row], query, filtered=False)
            return Answer(200, typed(negotiate(call.accept)), encode_row(chosen[0]))

        return handler

    # Archives

    def _header(self, collection: str, *, twins: bool) -> Handler:
        async def handler(call: Call) -> Answer:
            where, name = _place(collection, call.values)
            found = await self._store.get(f"{where}/{name}{call.twin if twins else ''}.tar.gz")
            if found is None:
                raise Refused(404, "Not Found")
            modified = datetime.fromtimestamp(found.modified, UTC)
            return Answer(
                200,
                {
                    "Accept-Ranges": "bytes",
                    # Copied by a formatter that writes the zone's name, where the store itself writes GMT.
                    "Last-Modified": f"{modified:%a, %d %b %Y %H:%M:%S} UTC",
                    "Content-Length": str(found.size),
                    "Etag": f'"{found.etag}"',
                    "Content-Type": found.content_type,
                    "Access-Control-Expose-Headers": _EXPOSED,
                },
            )

        return handler

    def _redirect(self, collection: str, *, twins: bool) -> Handler:
        async def handler(call: Call) -> Answer:
            where, name = _place(collection, call.values)
            key = f"{where}/{name}{call.twin if twins else ''}.tar.gz"
            return moved(307, self._store.presign(key, call.user.subject), "Temporary Redirect")

        return handler


def _place(collection: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Tell where a thing is kept; of a chunk's id only the last piece after `_` counts."""
    name = values["id"]
    if "chunks/" in collection:
        name = f"chunk_{name.rpartition('_')[2]}"
    return collection.format(**values), name


def moved(status: int, target: str, phrase: str) -> Answer:
    """Redirect, with the small page that the services' language adds."""
    body = f'<a href="{escape(target)}">{phrase}</a>.\n\n'
    return Answer(status, {"Location": target, "Content-Type": "text/html; charset=utf-8"}, body.encode())


def typed(kind: str) -> dict[str, str]:
    """Return the headers of a body of this type; one that was not negotiated is sniffed as text."""
    return {"Content-Type": kind or "text/plain; charset=utf-8"}


def records(call: Call, rows: Sequence[Mapping[str, Any]]) -> Answer:
    """Answer with a list of metadata in the form that the Accept header chooses."""
    kind = negotiate(call.accept)
    return Answer(200, typed(kind), encode_list([encode_row(row) for row in rows], kind))
