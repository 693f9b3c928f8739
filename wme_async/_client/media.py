"""Media files of Wikimedia Commons: their pages, and their bytes."""

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from wme_async._arguments import check_flags, check_functions, check_type
from wme_async._client.archive_source import ArchiveSource
from wme_async._client.cache import Cache
from wme_async._client.collection import Collection
from wme_async._client.files import target_path
from wme_async._client.paths import file_path
from wme_async._client.quota import Cost
from wme_async._client.resources import Resource
from wme_async._download import Download, DownloadSettings, FileInfo, ProgressHook, download
from wme_async._tasks import in_thread, long_in_thread
from wme_async._transport import Transport
from wme_async.errors import Forbidden, NotFound, VersionConflict
from wme_async.models import FilePage, FileRevision

U = TypeVar("U")

_BLOCK = 1 << 20


class MediaFiles:
    """`wme.files`: single media files by name. The server has this endpoint; its reference lacks it.

    Args:
        transport: Sends the requests.
        resource: Its row of the table.
        cache: Stores pages; None for no cache.
    """

    def __init__(self, transport: Transport, resource: Resource, *, cache: Cache | None = None) -> None:
        self._transport = transport
        self._resource = resource
        self._pages: Collection[FilePage] = _Pages(transport, resource, resource.path, cache=cache, brief=True)
        # Bytes are verified against the current checksum, never a cached one.
        self._latest: Collection[FilePage] = _Pages(transport, resource, resource.path)

    def __repr__(self) -> str:
        return f"<MediaFiles {self._resource.path}>"

    @overload
    async def get(self, name: str, *, fields: Sequence[str] | None = None) -> FilePage: ...
    @overload
    async def get(self, name: str, *, fields: Sequence[str] | None = None, type: type[U]) -> U: ...
    async def get(self, name: str, *, fields: Sequence[str] | None = None, type: type[Any] | None = None) -> Any:
        """Return the page of a file: licence, size, checksum, who uploaded it.

        Args:
            name: As it reads, without `File:` before it: `"Ottawa 0757.jpg"`.
            fields: Dotted names of the fields to fetch.
            type: A msgspec Struct of yours to decode into.

        Raises:
            ValueError: An unknown field, or a name that no file can have; nothing was sent.
            NotFound: The file does not exist.
            DecodeError: The response is malformed.
            WMEError: The request failed in another way.
        """
        if type is None:
            return await self._pages.get(name, fields=fields)
        return await self._pages.get(name, fields=fields, type=type)

    async def download(
        self,
        name: str,
        to: str | os.PathLike[str] = ".",
        *,
        overwrite: bool = False,
        progress: ProgressHook | None = None,
        verify: bool = True,
        if_changed: bool = False,
    ) -> Download:
        """Download a file. It gets its name only when it is complete and its SHA-1 is that of its page.

        Args:
            name: As it reads, without `File:` before it.
            to: A folder, in which the file has its name with underscores, or the path of the file. A path that ends in
                a slash is a folder, which is created if it does not exist. A symbolic link to a file is followed.
            overwrite: Download the file again and replace an existing one, whichever upload it is.
            progress: Receives `Progress` about ten times a second and once at the end.
            verify: Check the SHA-1. If the page lacks one, `verified` is None.
            if_changed: Keep the file up to date: one of another upload is replaced. Without `if_changed` and
                `overwrite` that is a `VersionConflict`. A file with the SHA-1 of the latest upload is not downloaded
                again, unless `overwrite` says so.

        Raises:
            ValueError: No file can have this name; nothing was sent.
            NotFound: The file does not exist.
            VersionConflict: The path holds a file of another upload.
            IntegrityError: The bytes do not have the SHA-1 of the page; no file was created.
            OSError: The disk is full or not writable.
            WMEError: The request failed in another way.
        """
        check_flags(overwrite=overwrite, verify=verify, if_changed=if_changed)
        check_functions(progress=progress)
        path = f"{self._resource.path}/{file_path(name)}"
        target = await in_thread(target_path, to, name.replace(" ", "_"))
        present = not overwrite and await in_thread(target.is_file)
        uploads = await self._uploads(name) if verify or present else []
        checksums = frozenset(upload.sha1.lower() for upload in uploads)
        if present:
            sha1 = await long_in_thread(partial(_sha1_or_none, target))
            if sha1 in _newest(uploads):
                status = await in_thread(target.stat)
                return Download(path=target, size=status.st_size, verified=True, unchanged=True)
            if sha1 is not None and not if_changed:
                remote = " or ".join(sorted(_newest(uploads))) or None
                raise VersionConflict(
                    f"{target} has SHA-1 {sha1}, the latest upload {remote or 'an unknown one'}; nothing was replaced. "
                    "overwrite=True (--force) replaces it, and if_changed=True keeps it up to date",
                    path=str(target),
                    local=sha1,
                    remote=remote,
                )
        source = _MediaSource(self._transport, self._resource, lambda: path, _no_md5)
        return await download(
            source,
            target,
            DownloadSettings(
                progress=progress,
                overwrite=True,
                verify=False,
                sha1=checksums if verify else (),
                create=target != Path(to),
            ),
            transport=self._transport,
        )

    def cost(self, *names: str) -> Cost:
        """Return the cost of downloading these files: nothing, since files are not metered."""
        return Cost(pool=self._resource.pool, requests=len(names) if self._resource.pool else 0)

    async def _uploads(self, name: str) -> list[FileRevision]:
        """Return the uploads that the page has a checksum of."""
        try:
            page = await self._latest.get(name, fields=["files"])
        except NotFound:
            return []
        return [upload for upload in page.files if upload.sha1]


class _Pages(Collection[FilePage]):
    """Pages of files; the server cannot list them."""

    def _quote(self, identifier: str | int) -> str:
        check_type("a file name", identifier, str, "text")
        return file_path(str(identifier))


class _MediaSource(ArchiveSource):
    """The source of one file for the downloader."""

    async def head(self) -> FileInfo:
        """Return size and version, or an empty `FileInfo`: the server forbids HEAD for single files."""
        try:
            return await super().head()
        except Forbidden:
            return FileInfo()


def _newest(uploads: list[FileRevision]) -> frozenset[str]:
    """Return the checksum of the latest upload, or all where none is dated: an earlier one is of a replaced file."""
    date = max((upload.date_modified for upload in uploads if upload.date_modified), default=None)
    return frozenset(upload.sha1.lower() for upload in uploads if upload.date_modified == date)


async def _no_md5() -> None:
    """Return no checksum."""


def _sha1_or_none(path: Path, cancelled: Callable[[], bool]) -> str | None:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha1(usedforsecurity=False)
            while not cancelled() and (block := file.read(_BLOCK)):
                digest.update(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
