"""The simulator itself: four origins on loopback, one clock, one seed."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from email.utils import formatdate
from os import PathLike
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload
from urllib.parse import unquote, urlsplit

from aiohttp import web

from wme_async.simulator.arguments import check_mappings, check_numbers, check_texts
from wme_async.simulator.clock import Clock
from wme_async.simulator.faults import Fault, Faults
from wme_async.simulator.hosts.access import (
    ACCESS_2025,
    ACCESS_2026,
    CAPS_2025,
    CAPS_2026,
    AccessRow,
    Caps,
    Limiter,
    allowed,
)
from wme_async.simulator.hosts.api import Api, moved
from wme_async.simulator.hosts.auth import Accounts, AuthHost, Denied, User
from wme_async.simulator.hosts.commons import Commons
from wme_async.simulator.hosts.http import Answer, error_answer, fault_answer, hang, send, tear
from wme_async.simulator.hosts.ondemand import Lookups, Pages
from wme_async.simulator.hosts.realtime import Firehose
from wme_async.simulator.hosts.store import ObjectStore, StoredObject, stored
from wme_async.simulator.hosts.wikidata import Entities
from wme_async.simulator.protocol.query import Panic
from wme_async.simulator.record import Request, Requests, kept_body
from wme_async.simulator.thread import call_in, running
from wme_async.simulator.world.catalog import Catalog

__all__ = ["Simulator"]

_T = TypeVar("_T")
_ROLES: Final = ("auth", "api", "realtime", "store")
_RECORD: Final = web.RequestKey("wme_simulator_record", Request)
_POOLS: Final = ("ondemand", "snapshots", "chunks")
_TABLES: Final = {"2025": (ACCESS_2025, CAPS_2025), "2026": (ACCESS_2026, CAPS_2026)}


class Simulator:
    """Auth, API, object store and realtime of Wikimedia Enterprise on loopback, each on a port of its own.

    Used as an async context manager, or from synchronous code through `run_in_thread`. Everything it serves follows
    from the seed and the clock.

    Args:
        seed: What data, random winners and unnamed positions of faults follow from.
        username: The name of the first account.
        password: Its password.
        groups: Its groups: group_1 is the free plan, group_2 a paid one, group_3 has everything.
        start: The time at which the clock begins, epoch seconds or an aware datetime; None for now.
        frozen: Whether the clock stands still between calls of `clock.advance`.
        access: The access policy: "2026" (as published), "2025" (the built-in policy of that server), or rows.
        caps: Monthly allowances by group and pool ("ondemand", "snapshots", "chunks"); None for those of `access`.
        rate_limits: Requests per second by group.
        expires_in: Lifetime of an access token in seconds.
        max_access_tokens: How often one refresh token may be used in 90 days.
        data: A folder with real files to serve instead of the built-in world: `articles.ndjson`, `batches.json`,
            `projects.json`, `languages.json`, `namespaces.json`, `codes.json`, each used where it is there.
        articles: Records in each archive.
        article_size: "small", None for natural sizes (43 KB on average), or bytes.
        archive_bytes: For single identifiers such as `enwiki_namespace_0`, or keys such as
            `batches/2025-07-16/05/enwiki_namespace_0`, the compressed size to reach, in bytes. Whatever is listed is
            built, so a large archive makes its list slow the first time.
        duplicates: The share of records in archives that come a second time with an older revision.
        part_size: Above so many bytes an object's entity tag has the multipart form.
        presign_seconds: How long a download address lives.
        batch_delay: Seconds from the end of an hour until its list of batches appears.
        stream: Options of the `Firehose`, such as `{"rate": 50}` for the service's own pace.
        keep_requests: How many records of requests are kept.
        ports: Fixed ports by role; 0 or absent for a free one.

    Attributes:
        clock: The one clock; `advance` ages tokens, addresses, hours and months.
        faults: What goes wrong, on request.
        requests: What was seen.
        access: The rows of the access policy; may be replaced at any time.
        caps: Monthly allowances (`limits`) and counters.
        limiter: Requests per second (`rates`).
        accounts: Users and tokens.
        catalog: Metadata and archives.
        store: The objects, and `presign` for an address without a request to the API.
        pages: What look-ups by title find: `add`, `add_structured`, `remove`, `titles`.
        entities: What Wikidata look-ups find: `add`, `shape`, `labels_as_list`.
        commons: Files: `add`.
        firehose: The stream of articles.
        wikidata: The stream of entities.
        errors: Exceptions of the simulator's own; leaving the block raises them.

    Raises:
        TypeError: An argument of another type, such as one name for `groups`.
        ValueError: A naive `start`, a negative number, a `data` that is no folder, or `caps` of a pool, `ports` of a
            role or an `access` that there is not.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        username: str = "simulated",
        password: str = "simulated-password",  # noqa: S107 - an account of a server that exists in this process alone
        groups: Sequence[str] = ("group_3",),
        start: float | datetime | None = None,
        frozen: bool = False,
        access: Literal["2025", "2026"] | Sequence[AccessRow] = "2026",
        caps: Mapping[str, Mapping[str, int]] | None = None,
        rate_limits: Mapping[str, float] | None = None,
        expires_in: int = 86_400,
        max_access_tokens: int = 90,
        data: str | PathLike[str] | None = None,
        articles: int = 12,
        article_size: int | Literal["small"] | None = "small",
        archive_bytes: Mapping[str, int] | None = None,
        duplicates: float = 0.0,
        part_size: int = 100_000_000,
        presign_seconds: int = 60,
        batch_delay: float = 1500.0,
        stream: Mapping[str, Any] | None = None,
        keep_requests: int = 10_000,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        check_numbers(0, articles=articles, keep_requests=keep_requests, max_access_tokens=max_access_tokens)
        check_numbers(0, whole=False, expires_in=expires_in, presign_seconds=presign_seconds, batch_delay=batch_delay)
        check_numbers(0, whole=False, duplicates=duplicates)
        check_numbers(1, part_size=part_size)
        check_texts(username=username, password=password)
        if data is not None and not Path(data).is_dir():
            raise ValueError(f"data must be a folder with files such as articles.ndjson, and {str(data)!r} is not")
        if article_size != "small" and article_size is not None:
            check_numbers(1, article_size=article_size)
        check_mappings(
            caps=(caps, "group and a dict of pool and number"),
            rate_limits=(rate_limits, "group and requests per second"),
            archive_bytes=(archive_bytes, "identifier and bytes"),
            stream=(stream, "options of the Firehose"),
            ports=(ports, "role and port"),
        )
        check_mappings(**{f"caps of {group}": (pools, "pool and number") for group, pools in (caps or {}).items()})
        for role in sorted({*(ports or {})} - {*_ROLES}):
            raise ValueError(f"there is no role {role!r}; there are {', '.join(_ROLES)}")
        if isinstance(access, str) and access not in _TABLES:
            raise ValueError(f"access is {' or '.join(_TABLES)}, or rows, not {access!r}")
        table, allowances = _TABLES[access] if isinstance(access, str) else (tuple(access), CAPS_2026)
        self.clock: Clock = Clock(start, frozen=frozen)
        self.faults: Faults = Faults(seed)
        self.requests: Requests = Requests(keep_requests)
        self.access: Sequence[AccessRow] = table
        for pool in sorted({pool for pools in (caps or {}).values() for pool in pools} - set(_POOLS)):
            raise ValueError(f"there is no pool {pool!r}; there are {', '.join(_POOLS)}")
        self.caps: Caps = Caps(self.clock, {group: dict(pools) for group, pools in (caps or allowances).items()})
        self.limiter: Limiter = Limiter(self.clock, dict(rate_limits or {}))
        self.accounts: Accounts = Accounts(
            self.clock, seed=seed, expires_in=expires_in, max_access_tokens=max_access_tokens
        )
        self.catalog: Catalog = Catalog(
            self.clock,
            seed=seed,
            data=data,
            articles=articles,
            article_size=article_size,
            archive_bytes=archive_bytes,
            duplicates=duplicates,
            part_size=part_size,
            batch_delay=batch_delay,
        )
        self.store: ObjectStore = ObjectStore(
            self.clock, self.catalog.find, part_size=part_size, validity=presign_seconds, objects=self.catalog.objects
        )
        self.auth: AuthHost = AuthHost(self.accounts, self.caps, lambda: self.access)
        self.api: Api = Api(self.accounts, self.catalog, self.store, self.limiter, self.caps, lambda: self.access)
        self.pages: Pages = Pages(self.catalog)
        self.commons: Commons = Commons(self.store, seed)
        self.commons.load()
        self.entities: Entities = Entities(self.catalog.entities, Random(seed))
        self._route(Lookups(self.pages, Random(seed)))
        self.firehose: Firehose = Firehose(
            self.clock,
            **{"seed": seed, "make": self.catalog.generator.article, "options": {"size": "small"}, **(stream or {})},
        )
        self.wikidata: Firehose = Firehose.wikidata(self.clock, **{"seed": seed, **_stream_pace(stream)})
        self._streams = {"/v2/articles": self.firehose, "/v2/wikidata": self.wikidata}
        self.errors: list[Exception] = []
        self._first = self.add_user(username, password, groups)
        self._ports = dict(ports or {})
        self._urls: dict[str, str] = {}
        self._runners: dict[str, web.AppRunner] = {}
        self._busy: dict[str, set[asyncio.Task[Any]]] = {role: set() for role in _ROLES}
        self._loop: asyncio.AbstractEventLoop | None = None

    def _route(self, lookups: Lookups) -> None:
        self.api.add("/v2/articles/{name*}", lookups.articles, pool="ondemand")
        self.api.add("/v2/structured-contents/{name*}", lookups.structured, pool="ondemand")
        self.api.add("/v2/wikidata/items/{id}", self.entities.item, pool="ondemand")
        self.api.add("/v2/wikidata/properties/{id}", self.entities.property, pool="ondemand")
        self.api.add("/v2/wikidata/labels/{id}", self.entities.labels, pool="ondemand")
        self.api.add("/v2/files/{id}", self.commons.page)
        self.api.add("/v2/files/{id}/download", self.commons.download, ("GET",))

    # Lifecycle

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self.catalog.stopping.clear()
        try:
            for role in _ROLES:
                await self._listen(role, self._ports.get(role, 0))
        except BaseException:
            await self._shut()
            raise
        self.store.origin = self._urls["store"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._shut()
        if problem is None and self.errors:
            raise ExceptionGroup("the simulator itself failed", self.errors)

    @contextlib.asynccontextmanager
    async def down(self, role: Literal["auth", "api", "realtime", "store"]) -> AsyncIterator[None]:
        """Take one origin down for a block: connections are refused, open ones end. It comes back on its port."""
        port = urlsplit(self._url(role)).port or 0
        runner = self._runners.pop(role)
        for task in list(self._busy[role]):
            task.cancel()
        await runner.cleanup()
        try:
            yield
        finally:
            await self._listen(role, port)

    async def _listen(self, role: str, port: int) -> None:
        app = web.Application(client_max_size=0)
        app.router.add_route("*", r"/{tail:[\s\S]*}", self._handler(role))
        app.on_response_prepare.append(self._on_prepare)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._runners[role] = runner
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        self._urls[role] = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _shut(self) -> None:
        self.catalog.stopping.set()
        # Handlers that hang on purpose would hold the closing of their server up.
        for task in [task for tasks in self._busy.values() for task in tasks]:
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for runner in self._runners.values():
                group.create_task(runner.cleanup())
        self._runners.clear()

    @classmethod
    @contextlib.contextmanager
    def run_in_thread(cls, **options: Any) -> "Generator[Simulator]":
        """Run a simulator in a thread of its own, for synchronous code.

        `faults`, `requests`, `users` and the clock may be used from any thread; what touches the loop goes through
        `call`.

        Args:
            **options: Those of the constructor.

        Yields:
            The simulator, listening.
        """
        with running(lambda: cls(**options)) as simulator:
            yield simulator

    @overload
    def call(self, function: Callable[..., Coroutine[Any, Any, _T]], /, *args: Any, **kwargs: Any) -> _T: ...
    @overload
    def call(self, function: Callable[..., _T], /, *args: Any, **kwargs: Any) -> _T: ...
    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function in the simulator's loop, from another thread, and return its result.

        Args:
            function: A function, or a coroutine function, whose result is awaited there.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Raises:
            RuntimeError: The simulator is not running, or this is its own thread.
        """
        return call_in(self._loop, function, *args, **kwargs)

    # Addresses

    @property
    def auth_url(self) -> str:
        """The origin of the auth host, without a path."""
        return self._url("auth")

    @property
    def api_url(self) -> str:
        """The origin of the main host, without a path."""
        return self._url("api")

    @property
    def realtime_url(self) -> str:
        """The origin of the realtime host, without a path."""
        return self._url("realtime")

    @property
    def store_url(self) -> str:
        """The origin of the object store, without a path."""
        return self._url("store")

    def _url(self, role: str) -> str:
        try:
            return self._urls[role]
        except KeyError:
            raise RuntimeError("the simulator is not running: use `async with`, or `run_in_thread`") from None

    def client_options(self) -> dict[str, Any]:
        """Return what a client needs: username, password and the hosts, as plain values."""
        return {
            "username": self._first.username,
            "password": self._first.password,
            "hosts": {"auth": self.auth_url, "api": self.api_url, "realtime": self.realtime_url},
        }

    def environment(self) -> dict[str, str]:
        """Return the same as environment variables."""
        return {
            "WME_USERNAME": self._first.username,
            "WME_PASSWORD": self._first.password,
            "WME_AUTH_URL": self.auth_url,
            "WME_API_URL": self.api_url,
            "WME_REALTIME_URL": self.realtime_url,
        }

    # The world

    @property
    def users(self) -> dict[str, User]:
        """The accounts by name."""
        return self.accounts.users

    def add_user(
        self,
        username: str,
        password: str,
        groups: Sequence[str] = ("group_3",),
        *,
        email: str | None = None,
        challenge: str | None = None,
    ) -> User:
        """Add an account.

        Args:
            username: The name.
            password: The password.
            groups: group_1 (free), group_2 (paid), group_3 (everything).
            email: A second name that works for login alone.
            challenge: A challenge that login answers with; `NEW_PASSWORD_REQUIRED` withholds the tokens.

        Raises:
            TypeError: `groups` is one name instead of several.
        """
        if isinstance(groups, str):
            raise TypeError(f"groups must be a list of names, such as [{groups!r}], not one string")
        if not isinstance(groups, Iterable):
            raise TypeError(f"groups must be a list of names, not {groups!r}")
        check_texts(username=username, password=password)
        return self.accounts.add(User(username, password, list(groups), email, challenge))

    @property
    def hours(self) -> list[str]:
        """The hours whose lists of batches exist now, oldest first, such as `2025-07-16T05`."""
        return self.catalog.hours()

    def put_object(self, key: str, data: bytes | str | PathLike[str], *, update_metadata: bool = True) -> StoredObject:
        """Store or replace an object while the simulator runs.

        Args:
            key: Such as `batches/2025-07-16/05/enwiki_namespace_0.tar.gz`, `snapshots/enwiki_namespace_0.tar.gz`,
                `chunks/enwiki_namespace_0/chunk_1.tar.gz`; the copies of the free plan end in `_group_1.tar.gz`.
            data: Its bytes, or the path of a file.
            update_metadata: Whether version, size and date in the metadata follow, or stay stale.

        Returns:
            What was stored.
        """
        made = stored(data, self.clock.now(), part_size=self.store.part_size)
        self.store.deleted.discard(key)
        self.catalog.put(key, made, update_metadata=update_metadata)
        return made

    def delete_object(self, key: str) -> None:
        """Remove an object; its metadata stay."""
        self.store.delete(key)

    # Requests

    async def _on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        record = request.get(_RECORD)
        transport = request.transport
        if record is not None and transport is not None and not transport.is_closing():
            self.requests.answered(record, response.status)
        headers = response.headers
        if headers.get("Server", "").startswith("Python/"):
            del headers["Server"]
        if headers.get("Content-Length") == "0" and headers.get("Content-Type") == "application/octet-stream":
            del headers["Content-Type"]  # the framework's guess about nothing
        # The clock that tokens, signatures and retention go by is also the one that clients are told.
        response.headers["Date"] = formatdate(self.clock.now(), usegmt=True)

    def _handler(self, role: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self._busy[role].add(task)
            record: Request | None = None
            try:
                body = await request.read()
                record = self._note(role, request, body)
                return await self._respond(role, request, body, record)
            except ConnectionError:
                return web.Response()  # to nobody: the client has left
            except Exception as problem:
                self.errors.append(problem)
                raise
            finally:
                self._busy[role].discard(task)
                if record is not None:
                    self.requests.finished(record)

        return handle

    def _note(self, role: str, request: web.Request, body: bytes) -> Request:
        target = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        path, _, query = target.partition("?")
        hit = self.faults.match(role, request.method, target)
        request[_FAULTS] = hit
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        record = Request(
            role=role,
            method=request.method,
            path=path,
            query=query,
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers),
            body=kept_body(body),
            at=self.clock.now(),
            faults=tuple(fault.kind for fault in hit),
            peer=peer[1] if peer else 0,
        )
        request[_RECORD] = record
        self.requests.add(record)
        return record

    async def _respond(self, role: str, request: web.Request, body: bytes, record: Request) -> web.StreamResponse:
        faults = request[_FAULTS]
        headers = _lowered(record)
        for fault in faults:
            if fault.kind in {"reset", "refuse"}:
                return tear(request)
            if fault.kind == "hang_head":
                await hang()
            if fault.kind == "delay":
                await asyncio.sleep(float(fault.get("seconds", 0.05)))
            if fault.kind == "status":
                return await send(request, fault_answer(fault, headers.get("accept")), faults, self.faults.random)
        if role == "realtime":
            return await self._stream(request, record, headers, faults)
        try:
            answer = await self._answer(role, record, headers, body, faults)
        except Panic:
            return tear(request)
        if role != "store":
            answer.headers.setdefault("X-Request-Id", str(uuid.uuid4()))
            if "origin" in headers:
                answer.headers["Access-Control-Allow-Origin"] = "*"
        return await send(request, answer, faults, self.faults.random)

    async def _answer(
        self, role: str, record: Request, headers: dict[str, str], body: bytes, faults: Sequence[Fault]
    ) -> Answer:
        if role == "store":
            return await self.store.answer(record.method, record.path, record.query, headers, faults)
        path = unquote(record.path)
        if record.method == "OPTIONS" and "origin" in headers:
            return Answer(204, {"Access-Control-Allow-Methods": "GET,POST,OPTIONS,HEAD"})
        if role == "auth":
            return self.auth.answer(record.method, path, headers, body)
        return await self.api.answer(record.method, path, record.query, headers, body, faults)

    async def _stream(
        self, request: web.Request, record: Request, headers: dict[str, str], faults: Sequence[Fault]
    ) -> web.StreamResponse:
        accept = headers.get("accept")
        path = unquote(record.path)
        if record.method == "GET" and path in {"/v2/status", "/healthz"}:
            return await send(request, Answer(200))
        if path.endswith("/") and path.rstrip("/") in self._streams:
            location = path.rstrip("/") + (f"?{record.query}" if record.query else "")
            if record.method == "GET":
                return await send(request, moved(301, location, "Moved Permanently"))
            return await send(request, Answer(307, {"Location": location}))
        if record.method == "OPTIONS":
            cors = {"Origin": "*", "Methods": "GET,POST,OPTIONS,HEAD", "Headers": "*"}
            return await send(request, Answer(204, {f"Access-Control-Allow-{name}": cors[name] for name in cors}))
        try:
            user = self.accounts.authenticate(headers.get("authorization"))
        except Denied as denied:
            return await send(request, error_answer(401, denied.message, accept))
        if not allowed(self.access, user.groups, record.method, path):
            return await send(request, error_answer(403, "Forbidden", accept))
        firehose = self._streams.get(path)
        if firehose is None or record.method not in {"GET", "POST"}:
            return await send(request, error_answer(404, "Not Found", accept))
        return await firehose.handle(request, faults)


def _stream_pace(stream: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of the article stream that mean the same for any record."""
    shared = ("partitions", "parts", "retention", "rate", "flush_each", "burst")
    return {name: value for name, value in (stream or {}).items() if name in shared}


_FAULTS: Final = web.RequestKey("wme_simulator_faults", list[Fault])


def _lowered(record: Request) -> dict[str, str]:
    """Headers by lower-case name; of repeated ones the first counts, as the services read them."""
    lowered: dict[str, str] = {}
    for name, value in record.headers:
        lowered.setdefault(name.lower(), value)
    return lowered
