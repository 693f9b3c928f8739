"""Archives: head, download and read, written once for every kind."""

import copy
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

import msgspec

from wme_async._archive import ArchiveReader, OnBadRecord
from wme_async._archive.reader import ReaderOptions
from wme_async._archive.tar import DEFAULT_MAX_RECORD
from wme_async._arguments import check_numbers, check_path, check_text, check_type
from wme_async._client.archive_names import ArchiveName, uses_version
from wme_async._client.archive_source import ArchiveSource, ListedSource, PinnedSource
from wme_async._client.collection import Collection, Value
from wme_async._client.paths import hour_advice, hour_of
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._download import (
    Budget,
    Checksum,
    ContentOptions,
    ContentReader,
    Download,
    DownloadOptions,
    DownloadSettings,
    FileInfo,
    download,
    open_content,
)
from wme_async._platform import unusable_name
from wme_async._tasks import in_thread
from wme_async._transport import Transport
from wme_async.errors import NotFound
from wme_async.models import Archive

if TYPE_CHECKING:  # imported when they are first used
    from wme_async._client.read_all import ListingReader
    from wme_async._client.sync_report import SyncProgressHook, SyncReport

M = TypeVar("M", bound=Archive)
R = TypeVar("R", bound=msgspec.Struct)
U = TypeVar("U")
A = TypeVar("A", bound=ArchiveSource)

_MD5 = re.compile("[0-9a-fA-F]{32}")


class Files(Collection[M], Generic[M, R]):
    """Archives of one kind: list them, get their metadata and size, download, sync and read them.

    `M` is the model of an archive's metadata, `R` that of the records in it.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        path: Its path, with the placeholders filled in.
        place: The hour (`YYYY-MM-DD/HH`) or snapshot that the archives belong to, for the names of files.
    """

    def __init__(self, transport: Transport, resource: Resource, path: str, *, place: str = "") -> None:
        super().__init__(transport, resource, path)
        self._place = place

    @property
    def hour(self) -> datetime | None:
        """The hour of these batches, UTC; None for other archives.

        `latest` and `-3h` are resolved by the first request; until then it is None.
        """
        return hour_of(self._place) if self._place and self._resource.name.endswith("batches") else None

    async def head(self, identifier: str | int) -> FileInfo:
        """Return size, ETag and dates of an archive; free of charge.

        Raises:
            ValueError: The identifier is malformed.
            NotFound: The archive does not exist.
            WMEError: The request failed in another way.
        """
        return await self._source(identifier).head()

    async def download(
        self,
        identifier: str | int,
        to: str | os.PathLike[str] = ".",
        *,
        name: str | None = None,
        **options: Unpack[DownloadOptions],
    ) -> Download:
        """Download an archive in concurrent byte ranges, for one metered request.

        The file gets its name only when it is complete and its MD5 is that of the metadata; until then it is
        `NAME.part`, with a ledger beside it, from which the same call resumes after any interruption.

        Args:
            identifier: From the list.
            to: A folder, or the path of the file. One that ends in a slash is a folder, created if it does not exist.
                The path below a folder identifies the content: `batches/2025-07-16/05/enwiki_namespace_0.tar.gz`,
                `snapshots/enwiki_namespace_0.tar.gz`, `snapshots/enwiki_namespace_0/chunk_3.tar.gz`,
                `structured_snapshots/…`, `wikidata/snapshots/…`, `wikidata/batches/…`. A symbolic link to a file is
                followed.
            name: Another path below the folder `to`, which is created if it does not exist: a template of `{kind}
                {date} {hour} {snapshot} {chunk} {identifier} {version} {ext}`, such as `"{identifier}"` for a flat
                folder. A missing extension is appended.
            overwrite: Download the file again and replace an existing one, whichever version it is.
            progress: Receives `Progress` about ten times a second and once at the end.
            verify: Check the MD5. If False, only the size and the version on the server are checked.
            if_changed: Keep the file up to date: one of another version is replaced. Without `if_changed` and
                `overwrite` that is a `VersionConflict`. A file of the same version is not downloaded again, which is
                free of charge, unless `overwrite` is set; its `unchanged` is True. In a folder, `IDENTIFIER.tar.gz`
                (the name in earlier versions of this package) satisfies `if_changed` too.
            connections: Concurrent byte ranges at most; by default as many as increase the rate.
            min_rate: Bytes a second below which a range is requested again on a new connection.
            max_rate: Bytes a second of this download at most.
            budget: Connections and bandwidth to share with other downloads.

        Raises:
            ValueError: The identifier is malformed, an option is out of range, or the name has an unknown field or
                leads out of the folder; nothing was sent.
            VersionConflict: The path holds a file of another version.
            IsADirectoryError: The path of the file is a folder.
            OSError: The disk is full or not writable.
            IntegrityError: The bytes do not match the metadata; no file was created.
            QuotaExceeded: The month's allowance is used up.
            WMEError: The request failed in another way.
        """
        settings = DownloadSettings(**options)
        source = self._source(identifier)
        # A template that cannot be filled in is an error before anything is sent.
        self._name(identifier).path(name)
        check_path("to", to)
        await self._locate()
        below = self._name(identifier)
        path = await in_thread(target_path, to, below.path(name), folder=name is not None)
        if uses_version(name):
            versioned = below.path(name, version=await self._version(source))
            path = await in_thread(target_path, to, versioned, folder=True)
        in_folder = path != Path(to)
        settings = msgspec.structs.replace(
            settings, also=Path(to, below.flat) if name is None and in_folder else None, create=in_folder
        )
        return await download(source, path, settings, transport=self._transport)

    async def sync(
        self,
        to: str | os.PathLike[str],
        *,
        filters: Mapping[str, Value] | None = None,
        name: str | None = None,
        concurrency: int = 32,
        delete: bool = False,
        max_delete: float = 0.1,
        keep: timedelta | None = None,
        dry_run: bool = False,
        max_rate: float | None = None,
        progress: "SyncProgressHook | None" = None,
        budget: Budget | None = None,
    ) -> "SyncReport":
        """Make a folder equal to the listing: fetch new and changed files, for at most one metered request each.

        One list gives versions and sizes, and each file takes two requests: a signature and the bytes. A file that the
        folder has in the same version is not even read; a changed one is replaced. A file gets its name only when it is
        complete, has the MD5 of its metadata and is on the disk. After an interruption at any point, also by `kill -9`,
        the same call resumes. One failure does not stop the others.

        Example:
            >>> report = await wme.batches("latest").sync("data/")  # doctest: +SKIP
            >>> for file in report.failed:  # doctest: +SKIP
            ...     print(file.identifier, file.error)

        Args:
            to: The folder; created if it does not exist. Its `.wme-sync.db` records the files of earlier syncs.
            filters: As for `list`: only these archives.
            name: A template for the names below the folder, as for `download`; the default tells kinds and hours apart.
            concurrency: Files at once.
            delete: Remove files that earlier syncs of the same hour or kind with the same filters wrote and that the
                listing lacks, unless they have changed since. Other files are never touched.
            max_delete: Share of those files, 0 to 1, above which nothing is removed and `DataError` is raised.
            keep: Of batches: remove those of hours that are older than this, before the hour of this sync, under the
                same conditions but for `max_delete`.
            dry_run: Only report the differences. Nothing is fetched, written or removed.
            max_rate: Bytes a second for all files together.
            progress: Receives `SyncProgress` about ten times a second and once at the end.
            budget: Connections and bandwidth to share with other downloads.

        Returns:
            The results, with failures, which are not raised.

        Raises:
            ValueError: An option is out of range, or two entries of the listing get one name, or names that differ only
                in case. No file was requested.
            BlockingIOError: Another sync of this folder is running.
            DataError: With `delete`: the listing is empty or lacks more than `max_delete` of the synced files;
                nothing was fetched or removed. Or the folder's state is damaged.
            NotFound: The list does not exist, or not yet.
            OSError: The folder cannot be used.
            WMEError: The request of the list failed, or the account was rejected.
        """
        from wme_async._client.sync import Sync  # noqa: PLC0415
        from wme_async._client.sync_options import Listing, sync_options  # noqa: PLC0415

        check_path("to", to)
        options = sync_options(
            filters=filters, name=name, concurrency=concurrency, delete=delete, max_delete=max_delete, keep=keep,
            dry_run=dry_run, max_rate=max_rate, progress=progress, budget=budget,
        )  # fmt: skip
        if keep is not None and not self._resource.name.endswith("batches"):
            raise ValueError("keep is for hourly batches; other archives are replaced in place")

        async def fetch(filters: Mapping[str, Value]) -> Sequence[Archive]:
            return await self.list(filters=filters or None)

        listing = Listing(
            fetch=fetch,
            collection=lambda: f"{self._resource.name} {self._place}",
            name=self._name,
            source=lambda identifier: self._source_as(ListedSource, identifier),
            pool=self._resource.pool,
        )
        # Invalid filters raise before the folder is touched.
        self._query(None, filters, None)
        return await Sync(listing, Path(to), self._transport, options).run()

    @overload
    def read(
        self,
        identifier: str | int,
        *,
        tee: str | os.PathLike[str] | None = None,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        md5: str | None = None,
        **options: Unpack[ContentOptions],
    ) -> ArchiveReader[R]: ...
    @overload
    def read(
        self,
        identifier: str | int,
        *,
        type: type[U],
        tee: str | os.PathLike[str] | None = None,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        md5: str | None = None,
        **options: Unpack[ContentOptions],
    ) -> ArchiveReader[U]: ...
    def read(
        self,
        identifier: str | int,
        *,
        type: type[Any] | None = None,
        tee: str | os.PathLike[str] | None = None,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        md5: str | None = None,
        **options: Unpack[ContentOptions],
    ) -> ArchiveReader[Any]:
        """Read the records of an archive while it downloads: no temporary file, flat memory.

        Example:
            >>> async with hour.read("enwiki_namespace_0") as articles:  # doctest: +SKIP
            ...     async for article in articles: ...

        Args:
            identifier: From the list.
            type: A msgspec Struct of yours to decode into; other fields are skipped, which is fast.
            tee: Save the archive too: a folder or the path of a file, which appears when all is read and verified. It
                is named as by `download`.
            overwrite: Let `tee` replace a file of another version.
            on_bad_record: How to handle a line that does not decode: `"raise"`, `"skip"` and count, or a function that
                receives the `DecodeError` with member, line, offset and raw bytes.
            max_record: Bytes of one record above which it is a bad record.
            select: Returns whether to read a member, by its name: to go on where an earlier run stopped.
            md5: Read this version alone: the `version` of the metadata. An archive is replaced in place, so that what
                was listed before may be another one now. That is checked before a metered request is sent.
            connections: Concurrent byte ranges at most. By default one if the archive is metered, since several need a
                metered request for every minute of reading; else as many as increase the rate.
            window: Bytes held in memory ahead of the reader.
            max_rate: Bytes a second at most.
            budget: Connections and bandwidth to share with other downloads.

        Returns:
            An async context manager that is an async iterator of records.

        Raises:
            ValueError: The identifier is malformed, or `md5` is not one.
            Replaced: On reading: the server has another version than `md5`. No record was returned, unless the archive
                was uploaded in parts and its metadata is older than its bytes, which only their end proves.
            VersionConflict: On entering or reading: `tee` names a file of another version.
        """
        source = self._content(self._pinned(identifier, md5), identifier, tee, options)
        record = type if type is not None else self._resource.record
        assert record is not None
        return ArchiveReader(
            source,
            type=record,
            on_bad_record=on_bad_record,
            max_record=max_record,
            select=select,
            label=str(identifier),
        )

    @overload
    def read_all(
        self,
        *,
        filters: Mapping[str, Value] | None = None,
        concurrency: int = 8,
        max_bytes: int = 128 << 20,
        **options: Unpack[ReaderOptions],
    ) -> "ListingReader[M, R]": ...
    @overload
    def read_all(
        self,
        *,
        filters: Mapping[str, Value] | None = None,
        type: type[U],
        concurrency: int = 8,
        max_bytes: int = 128 << 20,
        **options: Unpack[ReaderOptions],
    ) -> "ListingReader[M, U]": ...
    def read_all(
        self,
        *,
        filters: Mapping[str, Value] | None = None,
        type: type[Any] | None = None,
        concurrency: int = 8,
        max_bytes: int = 128 << 20,
        **options: Unpack[ReaderOptions],
    ) -> "ListingReader[M, Any]":
        """Read the records of all archives of the listing while they download: no temporary file, bounded memory.

        Example:
            >>> async with hour.read_all(filters={"in_language.identifier": "en"}) as batches:  # doctest: +SKIP
            ...     async for batch, articles in batches: ...

        Args:
            filters: As for `list`: only these archives.
            type: As for `read`.
            concurrency: Archives at once.
            max_bytes: Bytes of compressed and uncompressed data that are held ahead, for all archives together.
            **options: `on_bad_record`, `max_record` and `select`, as for `read`.

        Returns:
            An async context manager that is an async iterator of `(record of the list, list of records)`. Lists of one
            archive come in order; those of several alternate. An archive without records has none.

        Raises:
            ValueError: An option is out of range, or a filter cannot be right.
        """
        check_numbers(whole=True, optional=False, minimum=1, concurrency=concurrency, max_bytes=max_bytes)
        self._query(None, filters, None)
        from wme_async._client.read_all import ListingReader  # noqa: PLC0415

        record = type if type is not None else self._resource.record
        return ListingReader(
            self._transport, partial(self.list, filters=filters), partial(self._source_as, ListedSource),
            options={"type": record, **options}, metered=self._resource.pool is not None, concurrency=concurrency,
            max_bytes=max_bytes,
        )  # fmt: skip

    def content(
        self, identifier: str | int, *, tee: str | os.PathLike[str] | None = None, **options: Unpack[ContentOptions]
    ) -> ContentReader:
        """Return the bytes of an archive in order, to pass them on.

        Example:
            >>> async with hour.content("enwiki_namespace_0") as content:  # doctest: +SKIP
            ...     await upload(content, "s3://bucket/enwiki_namespace_0.tar.gz")

        Args:
            identifier: From the list.
            tee: Keep the archive too: a folder or the path of a file, named as by `download`.
            overwrite: Let `tee` replace a file of another version.
            connections: Concurrent byte ranges at most. By default one if the archive is metered, since several need a
                metered request for every minute of reading; else as many as increase the rate.
            window: Bytes held in memory ahead of the reader.
            max_rate: Bytes a second at most.
            budget: Connections and bandwidth to share with other downloads.

        Returns:
            An async context manager that is an async iterator of `bytes`. Its end means that they are those of the
            object: `verified` is True where the metadata promises their MD5, None where the object is of another
            version than the metadata, or has none. Anything else is an `IntegrityError` there.

        Raises:
            ValueError: The identifier is malformed, or an option is out of range.
        """
        return self._content(self._source(identifier), identifier, tee, options)

    def _content(
        self,
        source: ArchiveSource,
        identifier: str | int,
        tee: str | os.PathLike[str] | None,
        options: ContentOptions,
    ) -> ContentReader:
        if self._resource.pool and options.get("connections") is None:  # several need more signatures
            options["connections"] = 1
        if tee is None:
            return open_content(source, transport=self._transport, **options)
        target = target_path(tee, self._name(identifier).path(), argument="tee")

        async def located_target() -> Path:
            await self._locate()
            return await in_thread(target_path, tee, self._name(identifier).path())

        return open_content(
            source, transport=self._transport, tee=located_target, create=target != Path(tee), **options
        )

    @asynccontextmanager
    async def reopened(self) -> AsyncIterator[Self]:
        """Give the same archives on connections of their own, for another event loop than that of the client.

        It signs in for itself, unless the client has a token file.

        Raises:
            RuntimeError: The client uses your own aiohttp session, which belongs to one event loop.
        """
        transport = self._transport.copy()
        try:
            yield self._with(transport)
        finally:
            await transport.aclose()

    def _with(self, transport: Transport) -> Self:
        twin = copy.copy(self)
        # A cache belongs to the event loop of its client.
        twin._transport, twin._cache = transport, None  # noqa: SLF001 - the same class
        return twin

    def cost(self, *identifiers: str | int) -> Cost:
        """Return the cost of downloading or reading these archives.

        Each expiry of a signature in the middle of a download adds one request.

        Args:
            *identifiers: From the list, one by one: `cost(*identifiers)`.

        Raises:
            TypeError: A list of them in one argument, which would count as one archive.
        """
        for identifier in identifiers:
            check_type("an argument of cost", identifier, str | int, "one identifier, as in cost(*identifiers)")
        return Cost(pool=self._resource.pool, requests=len(identifiers) if self._resource.pool else 0)

    def _name(self, identifier: str | int) -> ArchiveName:
        return ArchiveName(kind=self._resource.name, identifier=str(identifier), place=self._place)

    async def _version(self, source: ArchiveSource) -> str:
        """Return the MD5 of the metadata, or the ETag of an archive without any, for its name."""
        checksum = await source.checksum()
        if checksum is not None:
            return checksum.md5
        return (await source.head()).etag or "unknown"

    def _list_advice(self) -> str:
        hour, now = self.hour, datetime.fromtimestamp(self._transport.server_now("api"), UTC)
        return "" if hour is None else hour_advice(hour, now)

    def _source(self, identifier: str | int) -> ArchiveSource:
        return self._source_as(ArchiveSource, identifier, lambda error: self._advise(error, identifier))

    def _pinned(self, identifier: str | int, md5: str | None) -> ArchiveSource:
        if md5 is None:
            return self._source(identifier)
        check_text(md5=md5)
        if not _MD5.fullmatch(md5):
            raise ValueError(f"md5 must be 32 hexadecimal digits, such as `version` of the metadata, not {md5!r}")
        source = self._source_as(PinnedSource, identifier)
        source.md5 = md5.lower()
        return source

    def _source_as(
        self, kind: type[A], identifier: str | int, advise: Callable[[NotFound], Awaitable[None]] | None = None
    ) -> A:
        query = self._query(None, None, None)

        async def checksum() -> Checksum | None:
            record = await self._get(identifier, query)
            return Checksum(md5=record.version, modified=record.date_modified) if record.version else None

        segment = self._quote(identifier)
        return kind(self._transport, self._resource, lambda: f"{self._path}/{segment}", checksum, self._locate, advise)


def target_path(
    to: str | os.PathLike[str], name: str | PurePosixPath, *, argument: str = "to", folder: bool = False
) -> Path:
    """Return the path of a file in a folder, or the path itself if it is not a folder.

    Args:
        to: A folder if it exists as one or ends in a slash; else the path of the file.
        name: The path of the file below a folder.
        argument: The name of the parameter `to`, for messages.
        folder: Treat `to` as a folder in any case.

    Raises:
        TypeError: It is not a path; the message has the argument's name.
        ValueError: It is empty, or the file name is not possible on this system.
    """
    check_path(argument, to)
    text = os.fspath(to)
    path = Path(text)
    if not (folder or text.endswith(("/", os.sep)) or path.is_dir()):
        return path
    for part in PurePosixPath(name).parts:
        if reason := unusable_name(part):
            raise ValueError(f"no file can be called {part!r} here: {reason}; give another `name`")
    return path / name
