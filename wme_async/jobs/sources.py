"""What the URLs of a batch lead to: web servers, WME archives, pages with media; each downloaded to a folder."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol

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
from wme_async.errors import DataError, StatusError
from wme_async.jobs.job_files import DATA
from wme_async.jobs.naming import FileName, name_file
from wme_async.jobs.urls import redirect_target
from wme_async.jobs.validation import JobLimits, Options, WmeUrl, parse_wme

__all__ = ["Fetched", "Fetcher", "MediaFetcher", "UrlSource", "check_media", "wme_files"]

_MAX_HOPS = 10
# What servers answer to a range that they do not know, or that an empty file does not have.
_RANGE_REFUSED = frozenset({400, 405, 406, 416, 417, 501})
_MAX_COOKIES = 50
_MAX_COOKIE = 4096
# What can be sent back in a header.
_COOKIE = re.compile(r"[\x20-\x7e]+")
# Content types of pages and playlists: what is meant is the medium behind them.
_PAGES = frozenset(
    {
        "text/html",
        "application/xhtml+xml",
        "application/vnd.apple.mpegurl",
        "application/x-mpegurl",
        "application/dash+xml",
    }
)


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file in its staging folder.

    Args:
        path: Where it is.
        name: What it may be called.
        size: Bytes.
        etag: Its version, as its server named it.
        extras: Files that belong to it, such as subtitles; they are named after it.
    """

    path: Path
    name: FileName
    size: int
    etag: str | None = None
    extras: tuple[Path, ...] = ()


Moved = Callable[[int, int | None, float | None, float | None], None]
"""Told done and total bytes, bytes per second, seconds left. What it raises ends the download."""


class MediaFetcher(Protocol):
    """Gets the medium behind a page. `wme_async.integrations.media.Media` does."""

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        options: Options,
        moved: Moved,
        titled: Callable[[str, int | None], None],
        allow: Iterable[str],
    ) -> Fetched:
        """Download what a page shows into a folder, going on with what is there."""
        ...


def check_media(media: object, proxy: str | None) -> None:
    """Raise if media cannot be got out of pages in this way.

    Raises:
        TypeError: It does not get media, or the proxy is not text.
        ValueError: The proxy cannot be used, or media would go past it.
    """
    if media is not None and (isinstance(media, type) or not hasattr(media, "fetch")):
        raise TypeError(f"media is wme_async.integrations.media.Media() or None, not {media!r}")
    if proxy is not None:
        check_proxy(proxy)
        if media is not None:
            raise ValueError("media cannot be fetched through a proxy: give either media or proxy")


class UrlSource:
    """A URL that a user named, as the downloader wants it. Redirects are followed one by one, each checked.

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
        # Of this job alone. Servers set a cookie and redirect to the same address, to see whether it comes back.
        self._cookies = aiohttp.CookieJar(unsafe=True)
        self._info: FileInfo | None = None
        self._used = False

    @property
    def identity(self) -> str:
        """The URL that was asked for, wherever it leads."""
        return self.url

    async def head(self) -> FileInfo:
        """Ask for the first byte: unlike HEAD that works with every server, and shows whether ranges do.

        Raises:
            StatusError: The server answered with an error.
            DataError: It redirects for ever, or to where it must not.
            TransportError: It did not answer.
        """
        if self._info is None or self._used:
            # Whoever asks again after the bytes were begun has met another version.
            self._info = await self._ask()
            self._used = False
        return self._info

    async def sign(self) -> SignedUrl:
        """Return where the URL leads now. That may expire, so a second call finds it out anew."""
        if self._info is None or self._used:
            self._info = await self._ask()
        self._used = True
        return SignedUrl(url=self.final_url, role="public", headers=self._cookie_header(self.final_url))

    def _cookie_header(self, url: str) -> dict[str, str]:
        cookies = self._cookies.filter_cookies(URL(url, encoded=True))
        text = "; ".join(f"{name}={cookie.coded_value}" for name, cookie in cookies.items())
        return {"Cookie": text} if text else {}

    def _keep_cookies(self, url: str, body: Body) -> None:
        headers = body.headers.getall("Set-Cookie", [])[:_MAX_COOKIES]
        self._cookies.update_cookies_from_headers(
            [text for text in headers if len(text) <= _MAX_COOKIE and _COOKIE.fullmatch(text)], URL(url, encoded=True)
        )

    async def checksum(self) -> Checksum | None:
        """Return None: plain servers promise none."""
        return None

    async def _ask(self) -> FileInfo:
        url = self.url
        for _ in range(_MAX_HOPS):
            try:
                answer = await self._first_byte(url, ranged=True)
            except StatusError as error:
                if error.status not in _RANGE_REFUSED:
                    raise
                # An empty file has no first byte, and some servers refuse what they do not know.
                answer = await self._first_byte(url, ranged=False)
            if isinstance(answer, FileInfo):
                self.final_url = url
                return answer
            try:
                url = redirect_target(url, answer, allow=self._allow)
            except ValueError as error:
                raise DataError(f"redirected to where it must not be followed: {error}") from None
        raise DataError(f"redirected more than {_MAX_HOPS} times")

    async def _first_byte(self, url: str, *, ranged: bool) -> FileInfo | str:
        """Return what the server says about the file, or where it sends us."""
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", **self._cookie_header(url)}
        if ranged:
            headers["Range"] = "bytes=0-0"
        async with self._transport.open(Request(role="public", path=url, headers=headers, accepts="any")) as body:
            self._keep_cookies(url, body)
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
    coded = content_coding(body.headers) is not None
    length = body.headers.get("Content-Length", "")
    # Without a date an answer has the one on which it was received (RFC 9110, section 6.6.1).
    headers = {name.title(): text for name, text in body.headers.items()}
    headers.setdefault("Date", formatdate(received, usegmt=True))
    whole = int(length) if body.status == 200 and length.isascii() and length.isdigit() else None
    return FileInfo(
        # Ranges of an encoded answer are those of an encoding that need not be made twice in the same way.
        size=None if coded else ranged.size if ranged else whole,
        etag=_etag(body.headers.get("ETag")),
        last_modified=http_date(body.headers.get("Last-Modified")),
        content_type=body.headers.get("Content-Type"),
        accept_ranges=ranged is not None and ranged.size is not None and not coded,
        headers=headers,
    )


def _etag(value: str | None) -> str | None:
    """Return an ETag that can be kept and sent back; one whose bytes are no text counts as none."""
    return value if value is None or value.encode("utf-8", "replace").decode() == value else None


def wme_files(client: Client, parts: WmeUrl) -> Files[Any, Any]:
    """Return the collection that a `wme:` URL names.

    Raises:
        ValueError: This client knows no such collection.
    """
    owner: Any = client
    collection = parts.collection
    if collection.startswith("wikidata/"):
        owner, collection = getattr(client, "wikidata", None), collection.removeprefix("wikidata/")
        if owner is None:
            raise ValueError("this client knows nothing of Wikidata")
    if collection == "batches":
        found = owner.batches(parts.scope)
    elif collection == "chunks":
        found = owner.snapshots.chunks(parts.scope)
    else:
        found = getattr(owner, collection.replace("-", "_"))
    assert isinstance(found, Files)
    return found


class Fetcher:
    """Downloads one URL of any kind.

    Args:
        transport: For URLs that users named, behind a guard.
        client: For `wme:` URLs, if there are to be any.
        media: For pages, if media are to be got out of them.
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
        most = limits.connections
        self._budget = Budget(most, start=min(8, most), max_rate=limits.bandwidth)

    async def expand(self, url: str) -> list[str]:
        """Return the archives that a `wme:` list stands for; any other URL stands for itself.

        Raises:
            ValueError: There is no client, or the filters are wrong.
            WMEError: The list could not be had.
        """
        if not url.startswith("wme:"):
            return [url]
        if self._client is None:
            raise ValueError("wme: URLs need a client: BatchManager(directory, client=...)")
        parts = parse_wme(url)
        files = wme_files(self._client, parts)
        if parts.identifier is not None:
            return [url]
        records = await files.list(fields=["identifier"], filters=dict(parts.filters))
        return [f"{url.partition('?')[0]}/{record.identifier}" for record in records]

    async def fetch(
        self, url: str, folder: Path, *, options: Options, moved: Moved, titled: Callable[[str, int | None], None]
    ) -> Fetched:
        """Download a URL into a folder of its own, going on with what an earlier attempt left there.

        Args:
            url: The checked URL.
            folder: Exists, and is used for nothing else.
            options: What the batch asked for.
            moved: Told of progress.
            titled: Told the title and size as soon as they are known.

        Raises:
            WMEError: It could not be had.
            OSError: It could not be written.
        """
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
                    "this is a web page, and media are not taken out of pages here: that needs the extra `media` and"
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
        # The file is there whole if the last attempt was stopped before it got its name.
        settings = DownloadSettings(if_changed=True, progress=_hook(self._bounded(moved)), budget=self._budget)
        done = await download(source, folder / DATA, settings, transport=self._transport)
        return Fetched(path=done.path, name=name, size=done.size, etag=done.etag)

    async def _fetch_archive(
        self, url: str, folder: Path, *, moved: Moved, titled: Callable[[str, int | None], None]
    ) -> Fetched:
        if self._client is None:
            raise DataError("wme: URLs need a client: BatchManager(directory, client=...)")
        parts = parse_wme(url)
        assert parts.identifier is not None
        files = wme_files(self._client, parts)
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
        most = self._limits.job_size

        def check(done: int, total: int | None, rate: float | None, eta: float | None) -> None:
            if most is not None and max(done, total or 0) > most:
                raise DataError(f"the file is larger than the {most} bytes that are allowed")
            moved(done, total, rate, eta)

        return check

    async def _check_space(self, folder: Path, size: int | None) -> None:
        there, free = await in_thread(_space, folder)
        # What an earlier attempt has left takes no more room.
        need = max(0, (size or 0) - there) + self._limits.free_space
        if free is not None and free < need:
            reason = f"the server says that the file has {size:,} bytes" if size else os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, reason)


def _archive_name(parts: WmeUrl) -> ArchiveName:
    """Return what names the file of an archive, as `download` names it in a folder."""
    kind = parts.collection.replace("-", "_").replace("/", ".").replace("chunks", "snapshots.chunks")
    place = (parts.scope or "").replace("T", "/") if kind.endswith("batches") else parts.scope or ""
    return ArchiveName(kind=kind, identifier=parts.identifier or "", place=place)


def _space(folder: Path) -> tuple[int, int | None]:
    """Return how many bytes a download takes up on the disk, and how many are free, if the file system says so."""
    there = 0
    for name in (DATA, f"{DATA}.part"):
        with contextlib.suppress(FileNotFoundError):
            there += _platform.allocated_bytes((folder / name).stat())
    return there, free_space(folder)


def _hook(moved: Moved) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        moved(progress.done, progress.total, progress.rate, progress.eta)

    return told


def _day(modified: datetime | None) -> str:
    """Return the date of a file as `YYYYMMDD`; empty where the server does not send it."""
    return modified.strftime("%Y%m%d") if modified else ""
