"""The simulator itself: four origins on loopback, one clock, one seed."""

import asyncio
import contextlib
import inspect
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from email.utils import formatdate
from os import PathLike
from random import Random
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, Unpack, overload
from urllib.parse import unquote, urlsplit

from aiohttp import web

from wme_async.simulator.arguments import check_numbers, check_texts
from wme_async.simulator.clock import Clock
from wme_async.simulator.errors import Panic
from wme_async.simulator.faults import Fault, Faults
from wme_async.simulator.feed import WorldFeed
from wme_async.simulator.hosts.access import AccessRow, Caps, Limiter
from wme_async.simulator.hosts.accounts import Accounts, User
from wme_async.simulator.hosts.api import Api, Handler
from wme_async.simulator.hosts.auth import AuthHost
from wme_async.simulator.hosts.commons import Commons
from wme_async.simulator.hosts.http import Response, fault_response, hang, send, tear
from wme_async.simulator.hosts.ondemand import Entities, Lookups, Pages
from wme_async.simulator.hosts.realtime import Firehose, RealtimeHost
from wme_async.simulator.hosts.store import ObjectStore, StoredObject, stored
from wme_async.simulator.options import ROLES, SimulatorOptions, policy, resolve
from wme_async.simulator.record import BODY_LIMIT, Request, Requests
from wme_async.simulator.world.catalog import Catalog
from wme_async.simulator.world.world import World

__all__ = ["Simulator"]

_T = TypeVar("_T")
_RECORD: Final = web.RequestKey("wme_simulator_record", Request)
_SHARED_STREAM_OPTIONS: Final = ("partitions", "parts", "retention", "rate", "flush_each", "burst")


class Simulator:
    """Auth, API, object store and realtime of Wikimedia Enterprise on loopback, each on a port of its own.

    An async context manager; synchronous code uses `run_in_thread`. All its data follow from the seed and the clock.

    Args:
        **options: All are optional.

            - seed (0): Determines data, random choices, and the positions that faults leave open.
            - username ("simulated"), password ("simulated-password"): The first account.
            - groups (["group_3"]): Its groups: group_1 is the free plan, group_2 a paid one, group_3 has everything.
            - start (None): The time at which the clock begins, epoch seconds or an aware datetime; None for now.
            - frozen (False): Whether the clock stands still between calls of `clock.advance`.
            - access ("2026"): The access policy: "2026" (as published), "2025" (built into that server), or rows.
            - caps (None): Monthly allowances by group and pool ("ondemand", "snapshots", "chunks"); None for those of
              `access`.
            - rate_limits (None): Requests per second by group; None for no limits.
            - expires_in (86,400): Lifetime of an access token in seconds.
            - max_access_tokens (90): Uses of one refresh token in 90 days.
            - world (None): A `World`, or a dict of its arguments: archives, the stream and look-ups of articles follow
              from it.
            - data (None): A folder with real files to serve instead of the built-in data: `articles.ndjson`,
              `batches.json`, `projects.json`, `languages.json`, `namespaces.json`, `codes.json`; each may be absent.
            - articles (12): Records in each archive.
            - article_size ("small"): "small", None for natural sizes (43 KB on average), or bytes.
            - archive_bytes (None): The compressed size to reach, in bytes, for identifiers such as `enwiki_namespace_0`
              or keys such as `batches/2025-07-16/05/enwiki_namespace_0`. A list builds its archives, so a large one
              makes it slow the first time.
            - duplicates (0.0): The share of records in archives that come a second time with an older revision.
            - part_size (100,000,000): An object of more bytes has an entity tag of the multipart form.
            - presign_seconds (60): Lifetime of a signed address in seconds.
            - batch_delay (1500.0): Seconds from the end of an hour until its list of batches appears.
            - stream (None): Options of the `Firehose`, such as `{"rate": 50}` for the pace of the service.
            - keep_requests (10,000): The number of records of requests to keep.
            - ports (None): Fixed ports by role; 0 or absent for a free one.

    Attributes:
        clock: The one clock; `advance` ages tokens, addresses, hours and months.
        faults: Faults on request.
        requests: The received requests.
        access: The rows of the access policy; may be replaced at any time.
        caps: Monthly allowances (`limits`) and counters.
        limiter: Requests per second (`rates`).
        accounts: Users and tokens.
        catalog: Metadata and archives.
        store: The objects, and `presign` for an address without a request to the API.
        pages: The pages of look-ups by title: `add`, `add_structured`, `remove`, `titles`.
        entities: The entities of Wikidata look-ups: `add`, `shape`, `labels_as_list`.
        commons: Files: `add`.
        world: The wikis behind it all: the option `world`, or the built-in world, whose pages it can change.
        firehose: The stream of articles.
        wikidata: The stream of entities.
        errors: Exceptions of the simulator itself; leaving the block raises them.

    Raises:
        TypeError: An option does not exist or is of another type, such as one name for `groups`.
        ValueError: A naive `start`, a negative number, a `data` that is not a folder, or a pool, a role or an `access`
            that does not exist.
    """

    def __init__(self, **options: Unpack[SimulatorOptions]) -> None:
        settings = resolve(options)
        seed = settings["seed"]
        self.clock: Clock = Clock(settings["start"], frozen=settings["frozen"])
        self.faults: Faults = Faults(seed)
        self.requests: Requests = Requests(settings["keep_requests"])
        rows, allowances = policy(settings)
        self.access: Sequence[AccessRow] = rows
        self.limiter: Limiter = Limiter(self.clock, dict(settings["rate_limits"] or {}))
        self.accounts: Accounts = Accounts(
            self.clock, seed=seed, expires_in=settings["expires_in"], max_access_tokens=settings["max_access_tokens"]
        )
        self.caps: Caps = Caps(self.clock, self.accounts, allowances)
        self.catalog: Catalog = Catalog(self.clock, settings)
        self.store: ObjectStore = ObjectStore(
            self.clock,
            self.catalog.find,
            part_size=settings["part_size"],
            validity=settings["presign_seconds"],
            objects=self.catalog.objects,
            deleted=self.catalog.deleted,
        )
        self.auth: AuthHost = AuthHost(self.accounts, self.caps, self._access)
        self.api: Api = Api(self.accounts, self.catalog, self.store, self.limiter, self.caps, self._access)
        self.world: World = self.catalog.world
        # Look-ups of the built-in world have articles of natural size.
        size = None if self.catalog.has_built_in_world else settings["article_size"]
        self.pages: Pages = Pages(self.catalog, self.world, size)
        self.commons: Commons = Commons(self.store, seed)
        self.entities: Entities = Entities(self.catalog.entities, Random(seed))
        self._add_lookups(Lookups(self.pages, Random(seed)))
        stream = settings["stream"] or {}
        self._feed = WorldFeed(self.clock, self.catalog, {"seed": seed, **stream})
        self.firehose: Firehose = self._feed.firehose
        entities = {name: stream[name] for name in _SHARED_STREAM_OPTIONS if name in stream}
        self.wikidata: Firehose = Firehose.wikidata(self.clock, seed=seed, **entities)
        streams = {"/v2/articles": self.firehose, "/v2/wikidata": self.wikidata}
        self.realtime: RealtimeHost = RealtimeHost(self.accounts, self._access, streams)
        self.errors: list[Exception] = []
        self._user = self.add_user(settings["username"], settings["password"], settings["groups"])
        self._ports = dict(settings["ports"] or {})
        self._urls: dict[str, str] = {}
        self._runners: dict[str, web.AppRunner] = {}
        self._handlers: dict[str, set[asyncio.Task[Any]]] = {role: set() for role in ROLES}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def _access(self) -> Sequence[AccessRow]:
        return self.access

    def _add_lookups(self, lookups: Lookups) -> None:
        metered: dict[str, Handler] = {
            "articles/{name*}": lookups.articles,
            "structured-contents/{name*}": lookups.structured,
            "wikidata/items/{id}": self.entities.item,
            "wikidata/properties/{id}": self.entities.property,
            "wikidata/labels/{id}": self.entities.labels,
        }
        for path, handler in metered.items():
            self.api.add(f"/v2/{path}", handler, pool="ondemand")
        self.api.add("/v2/files/{id}", self.commons.page)
        self.api.add("/v2/files/{id}/download", self.commons.download, ("GET",))

    # Lifecycle

    async def __aenter__(self) -> Self:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self.catalog.stopping.clear()
        try:
            for role in ROLES:
                await self._listen(role, self._ports.get(role, 0))
        except BaseException:
            await self._close()
            raise
        self.store.origin = self._urls["store"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()
        if problem is None and self.errors:
            raise ExceptionGroup("the simulator itself failed", self.errors)

    @contextlib.asynccontextmanager
    async def down(self, role: Literal["auth", "api", "realtime", "store"]) -> AsyncIterator[None]:
        """Take one origin down for an `async with` block: it refuses new connections and ends open ones.

        It comes back on its port.
        """
        port = urlsplit(self._url(role)).port or 0
        runner = self._runners.pop(role)
        for task in list(self._handlers[role]):
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
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        self._urls[role] = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _close(self) -> None:
        self.catalog.stopping.set()
        # Handlers that hang on purpose would delay the end of their server.
        for task in [task for tasks in self._handlers.values() for task in tasks]:
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for runner in self._runners.values():
                group.create_task(runner.cleanup())
        self._runners.clear()

    @classmethod
    @contextlib.contextmanager
    def run_in_thread(cls, **options: Unpack[SimulatorOptions]) -> "Generator[Simulator]":
        """Run a simulator in a thread of its own, for synchronous code.

        `faults`, `requests`, `users`, `world` and the clock may be used from any thread; everything else goes
        through `call`.

        Args:
            **options: The options of the constructor.

        Yields:
            The simulator, listening.
        """
        from anyio.from_thread import start_blocking_portal  # noqa: PLC0415 - nothing else here needs it

        with start_blocking_portal() as portal, portal.wrap_async_context_manager(cls(**options)) as simulator:
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
        if self._loop is None or not self._loop.is_running():
            raise RuntimeError("the simulator is not running")
        if threading.get_ident() == self._thread:
            raise RuntimeError("this is the simulator's own thread: call the function itself")

        async def run() -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

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
        """Return the arguments of a client: username, password and the hosts, as plain values."""
        return {
            "username": self._user.username,
            "password": self._user.password,
            "hosts": {"auth": self.auth_url, "api": self.api_url, "realtime": self.realtime_url},
        }

    def environment(self) -> dict[str, str]:
        """Return the same as environment variables."""
        return {
            "WME_USERNAME": self._user.username,
            "WME_PASSWORD": self._user.password,
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
            challenge: A challenge in the response to a login; `NEW_PASSWORD_REQUIRED` withholds the tokens.

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
            update_metadata: Whether version, size and date in the metadata follow, or stay stale. Then the lists have
                the archive too, however small it is: below 500 bytes their size is 0.001 MB.

        Returns:
            The stored object.
        """
        replacement = stored(data, self.clock.now(), part_size=self.store.part_size)
        self.store.deleted.discard(key)
        self.catalog.put(key, replacement, update_metadata=update_metadata)
        return replacement

    def delete_object(self, key: str, *, update_metadata: bool = False) -> None:
        """Remove an object.

        Args:
            key: As for `put_object`.
            update_metadata: Whether its metadata and its entry in the list go too, or stay.
        """
        self.store.delete(key)
        if update_metadata:
            self.catalog.drop(key.removesuffix(".tar.gz"))

    def export_snapshot(self, identifier: str, *, share: float = 1.0) -> None:
        """Export a snapshot and its chunks now, in place of those before; a new day does so by itself.

        A new export deals pages to chunks anew. It has no objects that `put_object` stored.

        Args:
            identifier: Such as `enwiki_namespace_0`.
            share: The share of its records; below 1 the export is incomplete.

        Raises:
            ValueError: There is no such snapshot, or the share is not 0 to 1.
        """
        check_numbers(0, integer=False, share=share)
        if share > 1:
            raise ValueError(f"share is 0 to 1, not {share!r}")
        self.catalog.export(identifier, share)

    def withdraw_snapshot(self, identifier: str) -> None:
        """Remove a snapshot and its chunks until the next export.

        Args:
            identifier: Such as `enwiki_namespace_0`.

        Raises:
            ValueError: There is no such snapshot.
        """
        self.catalog.withdraw(identifier)

    def publish_history(self) -> None:
        """Put the regular edits of the built-in world on the stream, from the cut of the snapshots to now.

        A copy from a snapshot and the stream is complete then: from now on nothing changes but by `world`, which is on
        the stream. The edits take little memory: reading makes their events.

        Raises:
            RuntimeError: The stream has events already, or `world` was given, which has its history on the stream.
        """
        self._feed.publish_history()

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
            del headers["Content-Type"]  # the framework's default for an empty body
        # Clients go by the same clock as tokens, signatures and retention.
        response.headers["Date"] = formatdate(self.clock.now(), usegmt=True)

    def _handler(self, role: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self._handlers[role].add(task)
            try:
                body = await request.read()
                return await self._respond(role, request, body, *self._record(role, request, body))
            except ConnectionError:
                return web.Response()  # to nobody: the client has left
            except Exception as error:
                self.errors.append(error)
                raise
            finally:
                self._handlers[role].discard(task)
                if (record := request.get(_RECORD)) is not None:
                    self.requests.finished(record)

        return handle

    def _record(self, role: str, request: web.Request, body: bytes) -> tuple[Request, list[Fault]]:
        target = request.raw_path if request.raw_path.startswith("/") else request.rel_url.raw_path_qs
        path, _, query = target.partition("?")
        faults = self.faults.match(role, request.method, target)
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        record = request[_RECORD] = Request(
            role=role,
            method=request.method,
            path=path,
            query=query,
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.raw_headers),
            body=body[:BODY_LIMIT],
            at=self.clock.now(),
            faults=tuple(fault.kind for fault in faults),
            peer=peer[1] if peer else 0,
        )
        self.requests.add(record)
        return record, faults

    async def _respond(
        self, role: str, request: web.Request, body: bytes, record: Request, faults: list[Fault]
    ) -> web.StreamResponse:
        # Of repeated headers the first counts, as the services read them.
        headers = {name.lower(): value for name, value in reversed(record.headers)}
        for fault in faults:
            if fault.kind in {"reset", "refuse"}:
                return tear(request)
            if fault.kind == "hang_head":
                await hang()
            if fault.kind == "delay":
                await asyncio.sleep(float(fault.get("seconds", 0.05)))
            if fault.kind == "status":
                response = fault_response(fault, headers.get("accept"))
                return await send(request, response, faults, self.faults.random)
        if role == "realtime":
            return await self.realtime.respond(request, unquote(record.path), record.query, headers, faults)
        try:
            response = await self._dispatch(role, record, headers, body, faults)
        except Panic:
            return tear(request)
        if role != "store":
            response.headers.setdefault("X-Request-Id", str(uuid.uuid4()))
            if "origin" in headers:
                response.headers["Access-Control-Allow-Origin"] = "*"
        return await send(request, response, faults, self.faults.random)

    async def _dispatch(
        self, role: str, record: Request, headers: dict[str, str], body: bytes, faults: Sequence[Fault]
    ) -> Response:
        if role == "store":
            return await self.store.respond(record.method, record.path, record.query, headers, faults)
        path = unquote(record.path)
        if record.method == "OPTIONS" and "origin" in headers:
            return Response(204, {"Access-Control-Allow-Methods": "GET,POST,OPTIONS,HEAD"})
        if role == "auth":
            return self.auth.respond(record.method, path, headers, body)
        return await self.api.respond(record.method, path, record.query, headers, body, faults)
