"""The client: one account and all of its endpoints."""

import io
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from wme_async._arguments import check_instances, check_path
from wme_async._client.account import Account
from wme_async._client.cache import Cache
from wme_async._client.chunked_files import ChunkedFiles
from wme_async._client.collection import Collection
from wme_async._client.files import Files
from wme_async._client.hours import hour_files
from wme_async._client.lookup import Lookup
from wme_async._client.media import MediaFiles
from wme_async._client.quota import Allowances
from wme_async._client.resources import resource_table
from wme_async._telemetry import Telemetry
from wme_async._text import decode_text
from wme_async._transport import Credentials, SessionPool, Transport
from wme_async._transport.retry import Retrying
from wme_async.models import (
    Article,
    Batch,
    Code,
    Language,
    Namespace,
    Project,
    Snapshot,
    StructuredContent,
    StructuredSnapshot,
)
from wme_async.settings import Hosts, Limits, Retry, Timeouts

if TYPE_CHECKING:  # parts that most programs do not use are imported when they are first used
    from wme_async._client.entities import Wikidata
    from wme_async._client.hour_feed import Hours, OnHourGap
    from wme_async._client.realtime import Realtime
    from wme_async.offsets import OffsetStore

HOST_VARIABLES: Final[Mapping[str, str]] = {
    "auth": "WME_AUTH_URL",
    "api": "WME_API_URL",
    "realtime": "WME_REALTIME_URL",
}
"""The environment variable of each host."""


class Client:
    """One Wikimedia Enterprise account.

    Example:
        >>> async with Client.from_env() as wme:  # doctest: +SKIP
        ...     hour = wme.batches("2025-07-16T05")
        ...     batches = await hour.list(filters={"in_language.identifier": "en"})

    Args:
        username: Of the account; sent in lower case, as the server requires.
        password: Of the account. The server asks for it again after 90 days or 90 refreshes. Until then it may be left
            out where the `token_file` has the tokens of an earlier sign-in; afterwards requests are `Unauthorized`.
        access_token: A token from elsewhere. With a user name and password, the client uses it first.
        hosts: The addresses of the services, as `Hosts` or a mapping with some of the keys `auth`, `api`, `realtime`.
        timeouts: Seconds of silence.
        retry: When to retry.
        limits: Bounds of concurrency and request rate.
        pool: Connections to share with other clients of this process; closing the client leaves it open.
        token_file: File that shares tokens with other processes and the next run. The client creates it with mode 0600
            in an existing folder. It needs a user name.
        on_retry: Called before the wait of every retry. It runs in the event loop and must not block.
        allowances: Monthly limits for warnings and quotas; by default those of the account's plan.
        paths: Path templates by resource name, for beta endpoints that have moved.
        telemetry: Observes requests, downloads, reads, tasks and streams, such as
            `wme_async.integrations.otel.OpenTelemetry()`.
        cache: Keeps the responses of look-ups and of metadata that seldom change; several clients may share one.

    Raises:
        TypeError: A setting has the wrong type, such as a number in place of `Timeouts`.
        ValueError: Credentials are missing or incomplete, or a setting cannot work.
    """

    def __init__(
        self,
        username: str | None = None,
        password: str | None = None,
        *,
        access_token: str | None = None,
        hosts: Hosts | Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        limits: Limits | None = None,
        pool: SessionPool | None = None,
        token_file: str | os.PathLike[str] | None = None,
        on_retry: Callable[[Retrying], None] | None = None,
        allowances: Allowances | None = None,
        paths: Mapping[str, str] | None = None,
        cache: Cache | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        check_instances(allowances=(allowances, Allowances), cache=(cache, Cache))
        if token_file == "":
            raise ValueError("token_file is empty; leave it out to keep tokens in memory alone")
        check_path("token_file", token_file, optional=True)
        self._cache = cache
        self._resources = resource_table(paths)
        self._transport = Transport(
            Credentials(username, password, access_token=access_token, stored=token_file is not None),
            hosts=Hosts.of(hosts),
            timeouts=timeouts,
            retry=retry,
            limits=limits,
            pool=pool,
            token_file=None if token_file is None else Path(token_file),
            on_retry=on_retry,
            telemetry=telemetry,
        )
        self.telemetry: Telemetry | None = telemetry
        self._closed = False
        self.auth: Account = Account(self._transport, allowances=allowances)
        self.codes: Collection[Code] = self._endpoint("codes")
        self.languages: Collection[Language] = self._endpoint("languages")
        self.projects: Collection[Project] = self._endpoint("projects")
        self.namespaces: Collection[Namespace] = self._endpoint("namespaces")
        self.snapshots: ChunkedFiles[Snapshot, Article] = self._endpoint("snapshots")
        self.structured_snapshots: Files[StructuredSnapshot, StructuredContent] = self._endpoint("structured_snapshots")
        self.articles: Lookup[Article] = self._endpoint("articles")
        self.structured_contents: Lookup[StructuredContent] = self._endpoint("structured_contents")
        self.files: MediaFiles = MediaFiles(self._transport, self._resources["files"], cache=cache)

    @cached_property
    def wikidata(self) -> "Wikidata":
        """Wikidata, which is a beta of the service: entities, labels, and archives."""
        from wme_async._client.entities import Wikidata  # noqa: PLC0415

        return Wikidata(self._transport, self._resources, cache=self._cache)

    @cached_property
    def realtime(self) -> "Realtime":
        """The streams of changes as they happen."""
        from wme_async._client.realtime import Realtime  # noqa: PLC0415

        return Realtime(self._transport, self._resources, self.batches, self.wikidata.batches)

    @classmethod
    def from_env(cls, env_file: str | os.PathLike[str] | None = None, **options: Any) -> Self:
        """Create a client from environment variables.

        `WME_USERNAME` and `WME_PASSWORD`, or `WME_ACCESS_TOKEN`; for other hosts, `WME_AUTH_URL`, `WME_API_URL` and
        `WME_REALTIME_URL` (scheme and host, no path). Whitespace around a user name or a token, which files often
        leave, is dropped; of a password only the line ends at its end, since spaces may belong to it. `WME_RETRY_BASE`
        and the other fields of `Retry` in capitals (`WME_RETRY_ATTEMPTS`, ...) change when the client retries; with
        `WME_RETRY_BASE=0` it does not wait, for tests.

        Args:
            env_file: A file of `NAME=value` lines to read too (extra `cli`); `${NAME}` in a value stays unchanged. The
                environment overrides it. No other file is read.
            **options: As for `Client`; they override the environment.

        Raises:
            ValueError: Credentials are missing, or a setting is invalid.
            FileNotFoundError: `env_file` does not exist.
            TypeError: `env_file` is not a path.
            ImportError: There is an `env_file`, and python-dotenv is not installed.
        """
        variables = environment(env_file)
        if not {"username", "password", "access_token"} & options.keys():
            for name in ("username", "password", "access_token"):
                if value := variables.get(f"WME_{name.upper()}"):
                    options[name] = value.rstrip("\r\n") if name == "password" else value.strip()
        if "hosts" not in options:
            options["hosts"] = {role: variables[name] for role, name in HOST_VARIABLES.items() if variables.get(name)}
        if "retry" not in options:
            options["retry"] = _retry(variables)
        return cls(**options)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"<Client {state}, {self._transport.open_bodies} open bodies, {self._transport.waiting} requests waiting>"
        )

    async def __aenter__(self) -> Self:
        if self._closed:
            raise RuntimeError("this client is closed; create a new one")
        # A pool of another event loop is an error here rather than with the first request.
        await self._transport.pool.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections without revoking tokens. A second call does nothing.

        Downloads, streams, readers and look-ups of other tasks end with `ClientClosed` at once. A pool that the caller
        created stays open.
        """
        if not self._closed:
            self._closed = True
            self._transport.close()
            try:
                await self.auth.save()
            finally:
                await self._transport.aclose()

    def server_now(self) -> datetime:
        """Return the present by the clock of the service, which alone decides what is too old or in the future.

        Every response brings its time. Before the first one, this is the time of this machine.
        """
        return datetime.fromtimestamp(self._transport.server_now("api"), UTC)

    def batches(self, hour: str | datetime) -> "Files[Batch, Article]":
        """Return the batches of an hour: all articles that changed in it, one archive for each project and namespace.

        They appear some 25 minutes after the end of the hour and stay for two days; before and after, their list is
        a `NotFound`. A batch also has the first minutes of the next hour, and deletions.

        Args:
            hour: `"2025-07-16T05"` (UTC), or any aware datetime within the hour; `"latest"` for the newest hour
                that has a list, `"-3h"` for the hour of three hours ago. The first request resolves these by the
                server's clock, and the object keeps that hour; `.hour` says which it is.

        Raises:
            ValueError: It is not an hour, or a naive datetime.
        """
        return hour_files(self._transport, self._resources["batches"], hour)

    def hours(
        self,
        since: str | datetime | None = None,
        *,
        offsets: "OffsetStore | None" = None,
        name: str = "default",
        on_gap: "OnHourGap" = "log",
        poll: float = 60.0,
    ) -> "Hours[Batch, Article]":
        """Follow the batches hour by hour: each hour once, as its list appears, and missed ones first.

        Lists appear some 25 minutes after the end of their hour and stay for 48 hours. An hour counts as processed
        when the next one is requested, so that after a crash the unfinished one comes again. While the service is
        not reachable, the iterator waits.

        Example:
            >>> async for hour in wme.hours(since="-24h", offsets=SQLiteOffsets("hours.db")):  # doctest: +SKIP
            ...     await hour.sync("data/")

        Args:
            since: Where to begin without a saved position: an hour as `batches` takes it, `"-24h"` for the hour of a
                day ago; by default the newest one that has a list.
            offsets: Stores the position: partition 0, whose offset is the number of hours since 1970.
            name: Of this reader, within the store; several readers of one store need different names.
            on_gap: An hour that is gone is logged, raised as `HourGap` (the next call continues after it), or
                passed to a function, which may be a coroutine function.
            poll: Seconds between two requests of a list that is due.

        Returns:
            An async iterator of the archives of an hour, whose `.hour` says which. It is an async context manager too;
            leaving it lets others use the positions at once.

        Raises:
            TypeError: An argument is of another type.
            ValueError: `since` is not an hour, or an option is out of range.
        """
        from wme_async._client.hour_feed import Hours  # noqa: PLC0415

        return Hours(
            self._transport, self.batches, "batches", since=since, offsets=offsets, name=name, on_gap=on_gap, poll=poll
        )

    def _endpoint(self, name: str) -> Any:
        """Return an object with the verbs of a resource: a new endpoint is a row and an attribute above."""
        resource = self._resources[name]
        chunks = self._resources.get(f"{name}.chunks")
        if "lookup" in resource.verbs:
            return Lookup(self._transport, resource, cache=self._cache)
        if chunks is not None:
            return ChunkedFiles(self._transport, resource, chunks)
        if "download" in resource.verbs:
            return Files(self._transport, resource, resource.path)
        return Collection(self._transport, resource, resource.path, cache=self._cache)


def _retry(variables: Mapping[str, str]) -> Retry | None:
    """Return the policy that the variables `WME_RETRY_...` describe; None without any.

    Raises:
        ValueError: A value is not a number, or out of range.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Retry):
        name = f"WME_RETRY_{field.name.upper()}"
        if name in variables:
            try:
                values[field.name] = field.type(variables[name])
            except ValueError:
                kind = "whole number" if field.type is int else "number"
                raise ValueError(f"{name} must be a {kind}, not {variables[name]!r}") from None
    return Retry(**values) if values else None


def environment(env_file: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """Return the variables of the environment and of a file, which the environment overrides. Empty ones are unset.

    Args:
        env_file: As for `Client.from_env`.

    Raises:
        FileNotFoundError: The file does not exist.
        ImportError: There is a file, and python-dotenv is not installed.
    """
    return {**_env_file(env_file), **{name: value for name, value in os.environ.items() if value}}


def _env_file(path: str | os.PathLike[str] | None) -> dict[str, str]:
    if path is None:
        return {}
    check_path("env_file", path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"the file {os.fspath(path)!r} does not exist")
    try:
        from dotenv import dotenv_values  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError("reading an env_file needs python-dotenv: pip install 'wme-async[cli]'") from error
    text = decode_text(Path(path).read_bytes(), os.fspath(path))
    values = dotenv_values(stream=io.StringIO(text), interpolate=False)
    return {name: value for name, value in values.items() if value}
