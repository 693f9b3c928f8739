"""The sources of files: web servers, WME archives, and pages with media; each file is downloaded to a folder."""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import msgspec
from yarl import URL

from wme_async import _platform
from wme_async._client.archive_names import ArchiveName
from wme_async._client.client import Client
from wme_async._client.files import Files
from wme_async._download import Budget, Checksum, DownloadSettings, FileInfo, Progress, SignedUrl, download
from wme_async._download.range_responses import content_coding, parse_content_range
from wme_async._files import free_space
from wme_async._tasks import in_thread
from wme_async._transport import Body, Request, Transport
from wme_async._transport.error_responses import REDIRECTS
from wme_async._transport.proxies import check_proxy
from wme_async._transport.retry import http_date
from wme_async.errors import DataError, IntegrityError, StatusError, TimedOut, WMEError
from wme_async.jobs.changes import retry_pause
from wme_async.jobs.job_files import DATA
from wme_async.jobs.naming import FileName, name_file
from wme_async.jobs.url_policy import origin, redirect_target
from wme_async.jobs.validation import InvalidBatch, JobLimits, Options, Problem, WmeUrl, parse_wme

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_MAX_REDIRECTS: Final = 10
# Statuses for a range of servers and filters in front of them that do not support ranges, or of an empty file.
_RANGE_REJECTED: Final = frozenset({400, 403, 405, 406, 416, 417, 501})
_MAX_COOKIES: Final = 50
_MAX_COOKIE: Final = 4096
# Cookies that can be sent back in a header.
_COOKIE: Final = re.compile(r"[\x20-\x7e]+")
# Content types of pages and playlists, which stand for the medium behind them.
_PAGES: Final = frozenset(
    {
        "text/html",
        "application/xhtml+xml",
        "application/vnd.apple.mpegurl",
        "application/x-mpegurl",
        "application/dash+xml",
    }
)
_NO_DESCRIPTOR: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file in its staging folder.

    Args:
        path: The file.
        name: The parts of its name.
        size: Bytes.
        etag: Its version, as its server named it.
        extras: Files that belong to it, such as subtitles; they get names derived from its name.
    """

    path: Path
    name: FileName
    size: int
    etag: str | None = None
    extras: tuple[Path, ...] = ()


Moved = Callable[[int, int | None, float | None, float | None], None]
"""Receives done and total bytes, bytes per second and seconds left. An exception of it ends the download."""

Titled = Callable[[str, int | None], None]
"""Receives the title and the size in bytes."""


class MediaFetcher(Protocol):
    """Downloads the medium behind a page. `wme_async.integrations.media.Media` does."""

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        options: Options,
        moved: Moved,
        titled: Titled,
        allow: Iterable[str],
    ) -> Fetched:
        """Download the medium of a page into a folder, resuming an earlier attempt."""
        ...


def check_media(media: object, proxy: str | None) -> None:
    """Raise if media cannot be downloaded with these options.

    Raises:
        TypeError: It is not a media fetcher, or the proxy is not text.
        ValueError: The proxy cannot be used, or media would bypass it.
    """
    if media is not None and (isinstance(media, type) or not hasattr(media, "fetch")):
        raise TypeError(f"media must be wme_async.integrations.media.Media() or None, not {media!r}")
    if proxy is not None:
        check_proxy(proxy)
        if media is not None:
            raise ValueError("media cannot be fetched through a proxy: give either media or proxy")


class UrlSource:
    """A submitted URL as a source of the downloader. Redirects are followed one by one, each checked.

    Args:
        url: The checked URL.
        transport: Sends requests of role `public`, behind a guard.
        allow: Hosts that may be private.
    """

    def __init__(self, url: str, *, transport: Transport, allow: Iterable[str]) -> None:
        self.url = url
        self.final_url: str = url
        self.disposition: str | None = None
        self._transport = transport
        self._allow = frozenset(allow)
        # Of this job alone. Some servers set a cookie and redirect to the same address, to see whether it comes back.
        self._cookies = aiohttp.CookieJar(unsafe=True)
        self._info: FileInfo | None = None
        self._used = False

    @property
    def identity(self) -> str:
        """The submitted URL, wherever it redirects to."""
        return self.url

    async def head(self) -> FileInfo:
        """Request the first byte: unlike HEAD, this works with every server, and shows whether ranges do.

        Raises:
            StatusError: The server responded with an error.
            DataError: It redirects too often, or to an address that is not allowed.
            TransportError: It did not respond.
        """
        # A second call after the first bytes means that the downloader has found another version.
        if self._info is None or self._used:
            self._info = await self._probe()
            self._used = False
        return self._info

    async def sign(self) -> SignedUrl:
        """Return the URL after redirects. It may expire, so a second call follows the redirects again."""
        await self.head()
        self._used = True
        return SignedUrl(url=self.final_url, role="public", headers=self._cookie_header(self.final_url))

    def _cookie_header(self, url: str) -> dict[str, str]:
        cookies = self._cookies.filter_cookies(URL(url, encoded=True))
        text = "; ".join(f"{name}={cookie.coded_value}" for name, cookie in cookies.items())
        return {"Cookie": text} if text else {}

    def _save_cookies(self, url: str, body: Body) -> None:
        headers = body.headers.getall("Set-Cookie", [])[:_MAX_COOKIES]
        self._cookies.update_cookies_from_headers(
            [text for text in headers if len(text) <= _MAX_COOKIE and _COOKIE.fullmatch(text)], URL(url, encoded=True)
        )

    async def checksum(self) -> Checksum | None:
        """Return None: plain servers do not promise one."""
        return None

    async def _probe(self) -> FileInfo:
        url = self.url
        for _ in range(_MAX_REDIRECTS):
            try:
                response = await self._first_byte(url, ranged=True)
            except StatusError as error:
                if error.status not in _RANGE_REJECTED:
                    raise
                # An empty file has no first byte, and some servers reject ranges.
                response = await self._first_byte(url, ranged=False)
            if isinstance(response, FileInfo):
                self.final_url = url
                return response
            try:
                url = redirect_target(url, response, allow=self._allow)
            except ValueError as error:
                raise DataError(f"redirected to where it must not be followed: {error}") from None
        raise DataError(f"redirected more than {_MAX_REDIRECTS} times")

    async def _first_byte(self, url: str, *, ranged: bool) -> FileInfo | str:
        """Return the metadata of the file, or the `Location` of a redirect."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", **self._cookie_header(url)}
        if ranged:
            headers["Range"] = "bytes=0-0"
        async with self._transport.open(Request(role="public", path=url, headers=headers, accepts="any")) as body:
            self._save_cookies(url, body)
            if body.status in REDIRECTS:
                location = body.headers.get("Location")
                if not location:
                    raise DataError(f"redirected nowhere (HTTP {body.status} without Location)")
                return location
            if body.status >= 300:
                raise DataError(f"answered with HTTP {body.status} instead of a file")
            self.disposition = body.headers.get("Content-Disposition")
            return _info_of(body, received=self._transport.now())


def _info_of(body: Body, *, received: float) -> FileInfo:
    ranged = parse_content_range(body.headers.get("Content-Range")) if body.status == 206 else None
    encoded = content_coding(body.headers) is not None
    length = body.headers.get("Content-Length", "")
    # A response without a date has the one on which it was received (RFC 9110, section 6.6.1).
    headers = {name.title(): text for name, text in body.headers.items()}
    headers.setdefault("Date", formatdate(received, usegmt=True))
    complete = int(length) if body.status == 200 and length.isascii() and length.isdigit() else None
    return FileInfo(
        # The ranges of an encoded body are those of an encoding that may differ from one response to the next.
        size=None if encoded else ranged.size if ranged else complete,
        etag=_etag(body.headers.get("ETag")),
        last_modified=http_date(body.headers.get("Last-Modified")),
        content_type=body.headers.get("Content-Type"),
        accept_ranges=ranged is not None and ranged.size is not None and not encoded,
        headers=headers,
    )


def _etag(value: str | None) -> str | None:
    """Return an ETag that can be stored and sent back; one whose bytes are not text counts as None."""
    return value if value is None or value.encode("utf-8", "replace").decode() == value else None


def _files_of(client: Client, parts: WmeUrl) -> Files[Any, Any]:
    """Return the collection that a `wme:` URL names.

    Raises:
        ValueError: This client has no such collection.
    """
    owner: Any = client
    collection = parts.collection
    if collection.startswith("wikidata/"):
        owner, collection = getattr(client, "wikidata", None), collection.removeprefix("wikidata/")
        if owner is None:
            raise ValueError("this client has no Wikidata resources")
    if collection == "batches":
        files = owner.batches(parts.scope)
    elif collection == "chunks":
        files = owner.snapshots.chunks(parts.scope)
    else:
        files = getattr(owner, collection.replace("-", "_"))
    assert isinstance(files, Files)
    return files


class Fetcher:
    """Downloads one URL of any kind.

    Args:
        transport: For submitted URLs, behind a guard.
        client: For `wme:` URLs; None rejects them.
        media: For the media of pages; None downloads the pages themselves.
        allow: Hosts that may be private.
        limits: Connections, bandwidth and sizes.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        client: Client | None,
        media: MediaFetcher | None,
        allow: Iterable[str],
        limits: JobLimits,
    ) -> None:
        self._transport = transport
        self._client = client
        self._media = media
        self._allow = frozenset(allow)
        self._limits = limits
        connections = limits.connections
        self._budget = Budget(connections, start=min(8, connections), max_rate=limits.bandwidth)

    async def expand(self, urls: Iterable[str]) -> list[str]:
        """Return URLs with the archives that `wme:` lists stand for in place of the lists.

        Raises:
            InvalidBatch: The client is missing, a filter is wrong, or a list is empty or too long.
            WMEError: A list could not be fetched.
        """
        expanded: dict[str, None] = {}
        problems: list[Problem] = []
        for url in urls:
            try:
                archives = await self._expand(url)
            except ValueError as error:
                problems.append(Problem(url, f"Invalid URL: {error}"))
                continue
            if not archives:
                problems.append(Problem(url, "the list is empty: nothing has these properties"))
            expanded.update(dict.fromkeys(archives))
        if len(expanded) > (limit := self._limits.expanded):
            reason = f"they stand for {len(expanded)} archives, and {limit} are allowed: add filters"
            problems.append(Problem("urls", reason))
        if problems:
            raise InvalidBatch(problems)
        return list(expanded)

    async def _expand(self, url: str) -> list[str]:
        if not url.startswith("wme:"):
            return [url]
        if self._client is None:
            raise ValueError("wme: URLs need a client: BatchManager(directory, client=...)")
        parts = parse_wme(url)
        files = _files_of(self._client, parts)
        if parts.identifier is not None:
            return [url]
        records = await files.list(fields=["identifier"], filters=dict(parts.filters))
        return [f"{url.partition('?')[0]}/{record.identifier}" for record in records]

    async def fetch(self, url: str, folder: Path, *, options: Options, moved: Moved, titled: Titled) -> Fetched:
        """Download a URL into a folder of its own, resuming an earlier attempt, within the timeout of the options.

        Args:
            url: The checked URL.
            folder: An existing folder for this job alone.
            options: The options of the batch.
            moved: Receives the progress.
            titled: Receives title and size as soon as they are known.

        Raises:
            WMEError: It could not be downloaded.
            OSError: It could not be written.
        """
        timeout = asyncio.timeout(options.timeout)
        try:
            async with timeout:
                for attempt in itertools.count(1):
                    try:
                        return await self._fetch(url, folder, options=options, moved=moved, titled=titled)
                    except Exception as error:
                        if not is_passing(error):
                            raise
                        logger.warning("the download of %s waits for a free file descriptor (%s)", origin(url), error)
                    await asyncio.sleep(retry_pause(self._transport, attempt))
        except TimeoutError as error:
            if timeout.expired():
                raise DataError(f"timed out after {options.timeout:g} s") from error
            raise
        raise AssertionError("unreachable")

    async def _fetch(self, url: str, folder: Path, *, options: Options, moved: Moved, titled: Titled) -> Fetched:
        if url.startswith("wme:"):
            return await self._fetch_archive(url, folder, moved=moved, titled=titled)
        source = UrlSource(url, transport=self._transport, allow=self._allow)
        info = await source.head()
        kind = (info.content_type or "").partition(";")[0].strip().lower()
        if kind in _PAGES:
            if self._media is not None:
                return await self._media.fetch(
                    source.final_url,
                    folder,
                    options=options,
                    moved=self._bounded(moved),
                    titled=titled,
                    allow=self._allow,
                )
            if options.quality or options.video_format or options.download_subtitles:
                raise DataError(
                    "this is a web page, and media of pages are not downloaded here: that needs the extra `media` and"
                    " BatchManager(media=...)"
                )
        name = name_file(
            source.final_url,
            disposition=source.disposition,
            content_type=info.content_type,
            upload_date=_day(info.last_modified),
        )
        titled(name.title, info.size)
        await self._check_space(folder, info.size)
        # The last attempt may have been stopped between the last byte and the name of the file.
        settings = DownloadSettings(if_changed=True, progress=_hook(self._bounded(moved)), budget=self._budget)
        done = await download(source, folder / DATA, settings, transport=self._transport)
        return Fetched(path=done.path, name=name, size=done.size, etag=done.etag)

    async def _fetch_archive(self, url: str, folder: Path, *, moved: Moved, titled: Titled) -> Fetched:
        if self._client is None:
            raise DataError("wme: URLs need a client: BatchManager(directory, client=...)")
        parts = parse_wme(url)
        assert parts.identifier is not None
        files = _files_of(self._client, parts)
        info = await files.head(parts.identifier)
        titled(parts.identifier, info.size)
        await self._check_space(folder, info.size)
        done = await files.download(
            parts.identifier,
            folder / DATA,
            if_changed=True,
            progress=_hook(moved),
            budget=self._budget,
        )
        name = FileName(
            title=parts.identifier,
            ext="tar.gz",
            id=(parts.scope or "").replace("-", "").replace(":", "") or done.version or parts.identifier,
            uploader="wikimedia-enterprise",
            upload_date=_day(info.last_modified),
            path=str(_archive_name(parts).path()),
        )
        return Fetched(path=done.path, name=name, size=done.size, etag=done.etag)

    def _bounded(self, moved: Moved) -> Moved:
        limit = self._limits.job_size

        def check(done: int, total: int | None, rate: float | None, eta: float | None) -> None:
            if limit is not None and max(done, total or 0) > limit:
                raise DataError(f"the file is larger than the {limit} bytes that are allowed")
            moved(done, total, rate, eta)

        return check

    async def _check_space(self, folder: Path, size: int | None) -> None:
        allocated, free = await in_thread(_space, folder)
        # The bytes of an earlier attempt need no further space.
        need = max(0, (size or 0) - allocated) + self._limits.free_space
        if free is not None and free < need:
            reason = f"the server says that the file has {size:,} bytes" if size else os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, reason)


def _archive_name(parts: WmeUrl) -> ArchiveName:
    """Return the name of an archive's file, as `download` names it in a folder."""
    kind = parts.collection.replace("-", "_").replace("/", ".").replace("chunks", "snapshots.chunks")
    scope = (parts.scope or "").replace("T", "/") if kind.endswith("batches") else parts.scope or ""
    return ArchiveName(kind=kind, identifier=parts.identifier or "", place=scope)


def _space(folder: Path) -> tuple[int, int | None]:
    """Return the bytes that a download uses on the disk, and the free ones, if the file system reports them."""
    allocated = 0
    for name in (DATA, f"{DATA}.part"):
        with contextlib.suppress(FileNotFoundError):
            allocated += _platform.allocated_bytes((folder / name).stat())
    return allocated, free_space(folder)


def _hook(moved: Moved) -> Callable[[Progress], None]:
    return lambda progress: moved(progress.done, progress.total, progress.rate, progress.eta)


def _day(modified: datetime | None) -> str:
    """Return the date of a file as `YYYYMMDD`; empty if the server does not send it."""
    return modified.strftime("%Y%m%d") if modified else ""


def reason_of(error: WMEError | OSError, *, silence: float) -> str:
    """Return why a job failed, so that a person can act on it.

    Args:
        error: The exception that ended it.
        silence: Seconds after which a silent server counts as stalled.
    """
    if isinstance(error, TimedOut):
        return f"stalled: nothing arrived for {silence:g} s ({error})"
    if isinstance(error, IntegrityError) and error.got is not None:
        return f"the file is damaged: {error}"
    if isinstance(error, WMEError):
        message, status = str(error) or type(error).__name__, getattr(error, "status", 0)
        return f"HTTP {status}: {message}" if status and not message.startswith("HTTP ") else message
    if isinstance(error, TimeoutError):
        return f"timed out: {error}" if str(error) else "timed out"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        own_message = error.strerror not in {None, os.strerror(error.errno)}
        return f"the disk is full: {error.strerror}" if own_message else "the disk is full"
    return f"the file cannot be written: {error.strerror or error}"


def is_passing(error: BaseException) -> bool:
    """Return whether a failure comes from a lack of file descriptors, a trouble of this process that passes.

    Name resolution reports that as errors of its own, so a descriptor is also opened to see.

    Args:
        error: The exception; its causes are looked at too.
    """
    if any(isinstance(cause, OSError) and cause.errno in _NO_DESCRIPTOR for cause in _causes(error)):
        return True
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as failure:
        return failure.errno in _NO_DESCRIPTOR
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    pending, visited = [error], set[int]()
    while pending:
        cause = pending.pop()
        if id(cause) not in visited:
            visited.add(id(cause))
            yield cause
            linked = (cause.__cause__, cause.__context__, getattr(cause, "os_error", None))
            pending += [other for other in linked if isinstance(other, BaseException)]
