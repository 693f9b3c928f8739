"""Archives: head, download and read, written once for every kind."""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar, overload

import msgspec

from wme_async._archive import ArchiveReader, OnBadRecord
from wme_async._archive.tar import DEFAULT_MAX_RECORD
from wme_async._arguments import check_path
from wme_async._client.archive_names import ArchiveName, uses_version
from wme_async._client.archive_source import ArchiveSource
from wme_async._client.collection import Collection
from wme_async._client.hours import RelativeHour, hour_of, is_relative
from wme_async._client.paths import chunk_path, hour_path
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._download import (
    Budget,
    Checksum,
    ContentReader,
    Download,
    FileInfo,
    ProgressHook,
    download,
    open_content,
)
from wme_async._platform import unusable_name
from wme_async._query.query import Query
from wme_async._transport import Response, Transport
from wme_async.models import Archive, Chunk

__all__ = ["ChunkedFiles", "Files", "RelativeFiles", "hour_files", "target_path"]

M = TypeVar("M", bound=Archive)
R = TypeVar("R", bound=msgspec.Struct)
U = TypeVar("U")

# Stands in for the hour in names that are checked before the hour is known.
_UNRESOLVED = "0000-00-00/00"


class Files(Collection[M], Generic[M, R]):
    """Archives of one kind: what can be listed, got, asked for its size, downloaded and read.

    `M` is the model of an archive's metadata, `R` that of the records in it.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        path: Its path, placeholders filled in.
        place: Which hour (`YYYY-MM-DD/HH`) or snapshot it is part of, for the names of files.
    """

    def __init__(self, transport: Transport, resource: Resource, path: str, *, place: str = "") -> None:
        super().__init__(transport, resource, path)
        self._place = place

    @property
    def hour(self) -> datetime | None:
        """The hour that these are the batches of, UTC; None for other archives.

        Of `latest` and `-3h` it is known after the first request, and None before.
        """
        return hour_of(self._place) if self._place and self._resource.name.endswith("batches") else None

    async def head(self, identifier: str | int) -> FileInfo:
        """Return size, ETag and dates of an archive; free of charge.

        Raises:
            ValueError: The identifier is none.
            NotFound: There is no such archive.
            WMEError: Whatever else went wrong.
        """
        return await self._source(identifier).head()

    async def download(
        self,
        identifier: str | int,
        to: str | os.PathLike[str] = ".",
        *,
        name: str | None = None,
        overwrite: bool = False,
        progress: ProgressHook | None = None,
        verify: bool = True,
        if_changed: bool = False,
        connections: int | None = None,
        min_rate: float | None = None,
        max_rate: float | None = None,
        budget: Budget | None = None,
    ) -> Download:
        """Download an archive in concurrent byte ranges, for one metered request.

        The file has its name only once it is whole and its MD5 is that of the metadata; until then it is `NAME.part`,
        with a ledger beside it, from which the same call goes on after an interruption of any kind.

        Args:
            identifier: As the list has it.
            to: A folder, or the path of the file. What ends in a slash is a folder, and created if it does not exist.
                The path below a folder identifies the content: `batches/2025-07-16/05/enwiki_namespace_0.tar.gz`,
                `snapshots/enwiki_namespace_0.tar.gz`, `snapshots/enwiki_namespace_0/chunk_3.tar.gz`,
                `structured_snapshots/…`, `wikidata/snapshots/…`, `wikidata/batches/…`. A symbolic link to a file is
                followed.
            name: Another path below the folder `to`, which is created if it does not exist: a template of `{kind}
                {date} {hour} {snapshot} {chunk} {identifier} {version} {ext}`, such as `"{identifier}"` for a flat
                folder. The extension is appended where it is missing.
            overwrite: Download the file anew and replace the one that is there, of whatever version.
            progress: Receives `Progress` about ten times a second and once at the end.
            verify: Check the MD5. Without it the size and the version on the server are checked alone.
            if_changed: Keep the file up to date: one of another version is replaced. Without `if_changed` and
                `overwrite` that is a `VersionConflict`. A file of the same version is never downloaded again, which is
                free of charge, unless `overwrite` says so; `unchanged` tells. In a folder, `IDENTIFIER.tar.gz` (the
                name of earlier versions of this package) satisfies `if_changed` too.
            connections: Concurrent byte ranges at most; not given, as many as bring something.
            min_rate: Bytes a second below which a range is asked for again by a new connection.
            max_rate: Bytes a second of this download at most.
            budget: Connections and bandwidth to share with other downloads.

        Raises:
            ValueError: The identifier is none, an option is out of range, or the name has an unknown field or leads out
                of the folder; nothing was sent.
            VersionConflict: A file of another version is there.
            IsADirectoryError: The path of the file is a folder.
            OSError: The disk is full, or not to be written to.
            IntegrityError: What arrived is not what the metadata promises; no file was made.
            QuotaExceeded: The month's allowance is used up.
            WMEError: Whatever else went wrong.
        """
        source = self._source(identifier)
        # A template that cannot be filled in is an error before anything is sent.
        self._name(identifier).path(name)
        check_path("to", to)
        await self._locate()
        below = self._name(identifier)
        path = target_path(to, below.path(name), folder=name is not None)
        if uses_version(name):
            path = target_path(to, below.path(name, version=await self._version(source)), folder=True)
        return await download(
            source,
            path,
            transport=self._transport,
            progress=progress,
            verify=verify,
            if_changed=if_changed,
            overwrite=overwrite,
            also=Path(to, below.flat) if name is None and path != Path(to) else None,
            create=path != Path(to),
            connections=connections,
            min_rate=min_rate,
            max_rate=max_rate,
            budget=budget,
        )

    @overload
    def read(
        self,
        identifier: str | int,
        *,
        tee: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        connections: int | None = None,
        window: int = 12 << 20,
        max_rate: float | None = None,
        budget: Budget | None = None,
    ) -> ArchiveReader[R]: ...
    @overload
    def read(
        self,
        identifier: str | int,
        *,
        type: type[U],
        tee: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        connections: int | None = None,
        window: int = 12 << 20,
        max_rate: float | None = None,
        budget: Budget | None = None,
    ) -> ArchiveReader[U]: ...
    def read(
        self,
        identifier: str | int,
        *,
        type: type[Any] | None = None,
        tee: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        on_bad_record: OnBadRecord = "raise",
        max_record: int = DEFAULT_MAX_RECORD,
        select: Callable[[str], bool] | None = None,
        connections: int | None = None,
        window: int = 12 << 20,
        max_rate: float | None = None,
        budget: Budget | None = None,
    ) -> ArchiveReader[Any]:
        """Read the records of an archive while it downloads: no temporary file, flat memory.

        Example:
            >>> async with hour.read("enwiki_namespace_0") as articles:  # doctest: +SKIP
            ...     async for article in articles: ...

        Args:
            identifier: As the list has it.
            type: A msgspec Struct of yours to decode into; what it does not name is skipped, which is quick.
            tee: Keep the archive too: a folder or the path of a file, which is there when all was read and checked. It
                is named as by `download`.
            overwrite: Replace a file of another version that `tee` finds there.
            on_bad_record: What to do with a line that does not decode: `"raise"`, `"skip"` and count, or a function
                that is given the `DecodeError` with member, line, offset and raw bytes.
            max_record: Bytes of one record above which it is a bad record.
            select: Called with the name of each member, says whether to read it: to go on where an earlier run stopped.
            connections: Concurrent byte ranges at most. Not given, one where the archive is metered, since several need
                a metered request for every minute of reading; else as many as bring something.
            window: Bytes held in memory ahead of the reader.
            max_rate: Bytes a second at most.
            budget: Connections and bandwidth to share with other downloads.

        Returns:
            An async context manager that is an async iterator of records.

        Raises:
            ValueError: The identifier is none.
            VersionConflict: When it is entered or read: `tee` found a file of another version.
        """
        source = self.content(
            identifier,
            tee=tee,
            overwrite=overwrite,
            connections=connections,
            window=window,
            max_rate=max_rate,
            budget=budget,
        )
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

    def content(
        self,
        identifier: str | int,
        *,
        tee: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        connections: int | None = None,
        window: int = 12 << 20,
        max_rate: float | None = None,
        budget: Budget | None = None,
    ) -> ContentReader:
        """Return the bytes of an archive in order, to pass them on.

        Example:
            >>> async with hour.content("enwiki_namespace_0") as content:  # doctest: +SKIP
            ...     await upload(content, "s3://bucket/enwiki_namespace_0.tar.gz")

        Args:
            identifier: As the list has it.
            tee: Keep the archive too: a folder or the path of a file, named as by `download`.
            overwrite: Replace a file of another version that `tee` finds there.
            connections: Concurrent byte ranges at most. Not given, one where the archive is metered, since several need
                a metered request for every minute of reading; else as many as bring something.
            window: Bytes held in memory ahead of the reader.
            max_rate: Bytes a second at most.
            budget: Connections and bandwidth to share with other downloads.

        Returns:
            An async context manager that is an async iterator of `bytes`. Its end means that they are those of the
            object: `verified` is True where the metadata promises their MD5, None where the object is of another
            version than the metadata, or has none. Anything else is an `IntegrityError` there.

        Raises:
            ValueError: The identifier is none, or an option is out of range.
        """
        source = self._source(identifier)
        keep = None if tee is None else target_path(tee, self._name(identifier).path(), argument="tee")

        async def kept_file() -> Path:
            await self._locate()
            return target_path(tee or "", self._name(identifier).path())

        return open_content(
            source,
            transport=self._transport,
            tee=None if tee is None else kept_file,
            overwrite=overwrite,
            create=keep is not None and keep != Path(tee or ""),
            connections=1 if connections is None and self._resource.pool else connections,
            window=window,
            max_rate=max_rate,
            budget=budget,
        )

    def cost(self, *identifiers: str | int) -> Cost:
        """Return what downloading or reading these archives will be charged.

        Each expiry of a signature in the middle of a download adds one request.

        Args:
            *identifiers: As the list has them, one by one: `cost(*identifiers)`.

        Raises:
            TypeError: A list of them in one argument, which would count as one archive.
        """
        for identifier in identifiers:
            if not isinstance(identifier, str | int):
                raise TypeError(f"identifiers are given one by one, as in cost(*identifiers), got {identifier!r}")
        return Cost(pool=self._resource.pool, requests=len(identifiers) if self._resource.pool else 0)

    def _name(self, identifier: str | int) -> ArchiveName:
        return ArchiveName(kind=self._resource.name, identifier=str(identifier), place=self._place)

    async def _version(self, source: ArchiveSource) -> str:
        """Return the MD5 of the metadata, or the ETag of an archive without any, for its name."""
        checksum = await source.checksum()
        if checksum is not None:
            return checksum.md5
        return (await source.head()).etag or "unknown"

    def _source(self, identifier: str | int) -> ArchiveSource:
        async def checksum() -> Checksum | None:
            record = await self.get(identifier)
            return Checksum(md5=record.version, modified=record.date_modified) if record.version else None

        quoted = self._quote(identifier)
        return ArchiveSource(self._transport, self._resource, lambda: f"{self._path}/{quoted}", checksum, self._locate)


class RelativeFiles(Files[M, R]):
    """The batches of an hour that the first request resolves: `latest` and `-3h`.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        hour: `latest`, or so many hours ago.
    """

    def __init__(self, transport: Transport, resource: Resource, hour: str) -> None:
        super().__init__(transport, resource, resource.at(hour=hour), place=_UNRESOLVED)
        self._relative: RelativeHour[Response] = RelativeHour(transport, hour)

    @property
    def hour(self) -> datetime | None:
        """The hour, UTC; None before the first request."""
        return hour_of(self._relative.place) if self._relative.place else None

    async def _locate(self) -> None:
        if not self._relative.place:
            await self._resolve(self._query(["identifier"], None, None), needed=False)

    async def _send_list(self, query: Query) -> Response:
        response = None if self._relative.place else await self._resolve(query, needed=True)
        return response if response is not None else await super()._send_list(query)

    async def _resolve(self, query: Query, *, needed: bool) -> Response | None:
        response = await self._relative.resolve(
            lambda place: self._send(self._resource.at(hour=place), query), needed=needed
        )
        self._place = self._relative.place
        self._path = self._resource.at(hour=self._place)
        return response


def hour_files(transport: Transport, resource: Resource, hour: str | datetime) -> "Files[Any, Any]":
    """Return the archives of an hour.

    Args:
        transport: Sends the requests.
        resource: The row of the table.
        hour: As `hour_path` takes it, or `latest`, or so many hours ago (`-3h`).

    Raises:
        TypeError: It is neither text nor a datetime.
        ValueError: It is not an hour, or a naive datetime.
    """
    if isinstance(hour, str) and is_relative(hour):
        return RelativeFiles(transport, resource, hour)
    place = hour_path(hour)
    return Files(transport, resource, resource.at(hour=place), place=place)


class ChunkedFiles(Files[M, R]):
    """Archives that can also be had in chunks.

    Args:
        transport: Sends the requests.
        resource: Their row of the table.
        chunks: The row of their chunks.
    """

    def __init__(self, transport: Transport, resource: Resource, chunks: Resource) -> None:
        super().__init__(transport, resource, resource.path)
        self._chunks = chunks

    def chunks(self, identifier: str) -> "Files[Chunk, R]":
        """Return the chunks of an archive: the same records in pieces of some hundred megabytes.

        Args:
            identifier: Of the archive, as its list has it.

        Raises:
            ValueError: The identifier is none.
        """
        return _Chunks(self._transport, self._chunks, self._chunks.at(snapshot=self._quote(identifier)), identifier)


class _Chunks(Files[Chunk, R]):
    """The chunks of one archive; the server reads the last number of an identifier and nothing else."""

    def __init__(self, transport: Transport, resource: Resource, path: str, snapshot: str) -> None:
        super().__init__(transport, resource, path, place=snapshot)

    def _quote(self, identifier: str | int) -> str:
        return chunk_path(self._place, identifier)


def target_path(
    to: str | os.PathLike[str], name: str | PurePosixPath, *, argument: str = "to", folder: bool = False
) -> Path:
    """Return the path of a file that is to go to a folder, or to have this path itself.

    Args:
        to: A folder if it exists as one or ends in a slash; else the path of the file.
        name: The path of the file below a folder.
        argument: What `to` is called, for messages.
        folder: It is a folder in any case.

    Raises:
        TypeError: It is not a path; the message has the argument's name.
        ValueError: It is empty, or the system cannot have a file of this name.
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
