"""Media behind web pages and playlists, through yt-dlp (extra `media`): for batches whose URLs are pages.

    from wme_async.integrations.media import Media

    async with BatchManager("downloads", media=Media()) as manager:
        await manager.submit(["https://example.com/watch?v=1"], quality="720p", download_subtitles=True)

yt-dlp works in worker threads of its own. It makes its own connections, so all of them are led through a small proxy on
loopback which asks the same guard as everything else: a page cannot send it to where a URL must not lead.
"""

import asyncio
import base64
import contextlib
import hmac
import importlib.util
import logging
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from wme_async._protocol.arguments import texts_of
from wme_async._protocol.pace import check_numbers
from wme_async._tasks import wait_done
from wme_async.errors import DataError, WMEError

if TYPE_CHECKING:
    from wme_async.jobs import Fetched, Options

__all__ = ["GuardedProxy", "Media", "format_selector"]

logger: logging.Logger = logging.getLogger("wme_async.media")

_HOP_BY_HOP = {"proxy-connection", "proxy-authorization", "connection", "keep-alive"}
_MAX_HEAD = 64 * 1024
_PIECE = 64 * 1024

Moved = Callable[[int, int | None, float | None, float | None], None]


def format_selector(quality: str | None, video_format: str | None) -> str:
    """Return yt-dlp's expression for what a batch asks for, best first, down to whatever there is.

    Only formats that hold picture and sound together are chosen: joining two needs ffmpeg.

    Args:
        quality: `best`, `worst`, or a height such as `1080p` which is not to be exceeded.
        video_format: The container that is preferred.
    """
    container = f"[ext={video_format}]" if video_format else ""
    if quality == "worst":
        return f"worst{container}/worst" if container else "worst"
    if not quality or quality == "best":
        return f"best{container}/best" if container else "best"
    # A format of unknown height may be it. Where all are higher, the lowest is nearest.
    height = f"[height<=?{quality.removesuffix('p')}]"
    return "/".join(dict.fromkeys((f"best{height}{container}", f"best{height}", "worst")))


class _Quiet:
    """Takes what yt-dlp says: most of it is of interest only to who looks for a fault."""

    def debug(self, message: str) -> None:
        logger.debug("%s", message)

    info = warning = error = debug


class Media:
    """Gets media out of pages, for `BatchManager(media=...)`.

    Args:
        concurrent: Threads in which yt-dlp works at once.
        subtitle_languages: Which subtitles are kept where a batch wants subtitles; patterns of yt-dlp.
        extractors: Names of yt-dlp's extractors that may be used, as patterns; all by default. Fewer are safer.
        options: Further options of `yt_dlp.YoutubeDL`, for those who know them. They cannot replace what keeps
            downloads in their folder and behind the guard.

    Raises:
        ImportError: yt-dlp is not installed.
        TypeError: An argument of another type, such as one string for a list.
        ValueError: `concurrent` is below 1.
    """

    def __init__(
        self,
        *,
        concurrent: int = 3,
        subtitle_languages: Sequence[str] = ("en.*", "en"),
        extractors: Sequence[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("yt_dlp") is None:
            raise ImportError("media need yt-dlp: pip install 'wme-async[media]'")
        check_numbers(whole=True, optional=False, concurrent=concurrent)
        if concurrent < 1:
            raise ValueError(f"concurrent is a number of threads above 0, not {concurrent}")
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options is a dict of options of yt-dlp, not {options!r}")
        self._limiter = asyncio.Semaphore(concurrent)
        self._executor = ThreadPoolExecutor(max_workers=concurrent, thread_name_prefix="wme-media")
        self._languages = list(texts_of("subtitle_languages", subtitle_languages, "languages"))
        self._extractors = None if extractors is None else list(texts_of("extractors", extractors, "names"))
        self._options = dict(options or {})

    async def fetch(
        self,
        url: str,
        folder: Path,
        *,
        options: "Options",
        moved: Moved,
        titled: Callable[[str, int | None], None],
        allow: Iterable[str] = (),
    ) -> "Fetched":
        """Download what a page shows, going on with what an earlier attempt left in the folder.

        Args:
            url: The page or playlist.
            folder: Exists, and is used for nothing else.
            options: What the batch asked for.
            moved: Told of progress: done and total bytes, bytes per second, seconds left. What it raises ends it.
            titled: Told the title and size.
            allow: Hosts that may be private.

        Raises:
            DataError: There are no media, several, or none of that kind.
            WMEError: They could not be had.
            OSError: They could not be written.
        """
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        failures: list[Exception] = []

        def tell(work: Callable[..., None], *facts: Any) -> None:
            """Hand a fact over to the event loop, and what goes wrong there back to yt-dlp."""

            def run() -> None:
                try:
                    work(*facts)
                except Exception as error:  # noqa: BLE001  # it ends the download, and is raised below
                    failures.append(error)
                    stop.set()

            if not stop.is_set():
                loop.call_soon_threadsafe(run)

        async with self._limiter, GuardedProxy(allow).running() as proxy:
            work = _Work(folder, self._settings(folder, options, proxy.url), stop, tell, moved, titled)
            done = loop.run_in_executor(self._executor, work.run, url)

            def end() -> None:
                stop.set()
                proxy.cut()

            try:
                # A thread cannot be cancelled, and this one writes to the folder: make it end, and wait until it has.
                await wait_done(done, on_cancel=end)
                fetched = done.result()
            except Exception as error:
                if failures:
                    raise failures[0] from error
                if proxy.refusals:
                    raise proxy.refusals[0] from error
                raise
        if failures:
            # It had nothing more to do that could have been stopped.
            raise failures[0]
        return fetched

    def _settings(self, folder: Path, options: "Options", proxy: str) -> dict[str, Any]:
        mine: dict[str, Any] = {
            # Nothing of the machine's own configuration, cache, cookies or plugins.
            "ignoreconfig": True,
            "cachedir": False,
            "proxy": proxy,
            "paths": {"home": str(folder), "temp": str(folder)},
            "outtmpl": {"default": "media.%(ext)s"},
            "restrictfilenames": True,
            "noplaylist": True,
            "playlist_items": "1",
            "continuedl": True,
            "overwrites": False,
            "quiet": True,
            "no_warnings": True,
            "noprogress": True,
            "color": "never",
            "logger": _Quiet(),
            # A program of its own would not go through the proxy.
            "external_downloader": {"default": "native"},
            "hls_prefer_native": True,
            "enable_file_urls": False,
            "format": format_selector(options.quality, options.video_format),
            "writesubtitles": options.download_subtitles,
            "subtitleslangs": self._languages,
            "retries": 3,
            "fragment_retries": 3,
            "socket_timeout": 60.0,
        }
        if self._extractors is not None:
            mine["allowed_extractors"] = self._extractors
        return {**self._options, **mine}


class _Work:
    """One call of yt-dlp, in its thread."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        stop: threading.Event,
        tell: Callable[..., None],
        moved: Moved,
        titled: Callable[[str, int | None], None],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._stop = stop
        self._tell = tell
        self._moved = moved
        self._titled = titled

    def run(self, url: str) -> "Fetched":
        """Find the medium and download it."""
        import yt_dlp  # noqa: PLC0415  # an extra, and slow to load: in the thread it delays nobody
        from yt_dlp.utils import DownloadCancelled, YoutubeDLError  # noqa: PLC0415  # as above

        def hook(status: dict[str, Any]) -> None:
            if self._stop.is_set():
                raise DownloadCancelled("stopped")
            done = status.get("downloaded_bytes") or 0
            total = status.get("total_bytes") or status.get("total_bytes_estimate")
            self._tell(
                self._moved, int(done), None if total is None else int(total), status.get("speed"), status.get("eta")
            )

        settings = {**self._settings, "progress_hooks": [hook]}
        try:
            # Its own annotations are private to it.
            maker: Any = yt_dlp.YoutubeDL
            with maker(settings) as downloader:
                info = downloader.extract_info(url, download=False)
                info = _only(info)
                self._tell(self._titled, str(info.get("title") or ""), info.get("filesize"))
                if self._stop.is_set():
                    raise DownloadCancelled("stopped")
                info = _only(downloader.process_ie_result(info, download=True))
                info = downloader.sanitize_info(info)
        except YoutubeDLError as error:
            raise DataError(_words(error)) from None
        return self._fetched(info, url)

    def _fetched(self, info: dict[str, Any], url: str) -> "Fetched":
        from wme_async.jobs import Fetched, FileName  # noqa: PLC0415  # jobs stand on integrations, not the reverse

        downloads = info.get("requested_downloads") or [{}]
        path = Path(downloads[0].get("filepath") or "")
        if not path.is_file() or not path.resolve().is_relative_to(self._folder.resolve()):
            raise DataError("yt-dlp said that it was done, and left no file")
        subtitles = [
            Path(each["filepath"]) for each in (info.get("requested_subtitles") or {}).values() if "filepath" in each
        ]
        # `media.en.vtt` becomes `en.vtt`, and gets the name of the file in front of it later.
        extras = tuple(
            each.rename(each.with_name(each.name.removeprefix("media.")))
            for each in subtitles
            if each.is_file() and each.resolve().is_relative_to(self._folder.resolve())
        )
        name = FileName(
            title=str(info.get("title") or info.get("id") or "media"),
            ext=str(info.get("ext") or path.suffix.lstrip(".") or "bin"),
            id=str(info.get("id") or "media"),
            uploader=str(info.get("uploader") or info.get("channel") or urlsplit(url).hostname or "unknown"),
            upload_date=str(info.get("upload_date") or datetime.now(UTC).strftime("%Y%m%d")),
        )
        return Fetched(path=path, name=name, size=path.stat().st_size, extras=extras)


def _only(info: Any) -> dict[str, Any]:
    """Return the one medium of a page; the first, where it lists several."""
    while isinstance(info, dict) and "entries" in info:
        info = next((each for each in info["entries"] if each), None)
    if not isinstance(info, dict):
        raise DataError("the page has no media that could be found")
    return info


def _words(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    text = re.sub(r"^(ERROR:\s*)+", "", text)
    # Advice to report bugs to another project would lead people astray.
    return text.partition("; please report this issue")[0][:500] or type(error).__name__


class GuardedProxy:
    """An HTTP proxy on loopback, for one user who knows its password, that connects only where a guard allows it.

    Args:
        allow: Hosts that may be private.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self.url: str = ""
        self.refusals: list[WMEError] = []
        self._allow = tuple(allow)
        self._token = secrets.token_hex(16)
        self._writers: set[asyncio.StreamWriter] = set()
        self._connecting: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["GuardedProxy"]:
        """Listen until the end of the block."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_MAX_HEAD)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://wme:{self._token}@127.0.0.1:{port}"
        try:
            yield self
        finally:
            self.cut()

    def cut(self) -> None:
        """End every connection, and take no more."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for connecting in self._connecting:
            connecting.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            logger.debug("a connection of the media proxy ended: %s", type(error).__name__)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = (*request.split(" "), "", "")[:3]
        headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        expected = base64.b64encode(f"wme:{self._token}".encode()).decode()
        given = next((value for name, value in headers if name.lower() == "proxy-authorization"), "")
        if not hmac.compare_digest(given.encode(), f"Basic {expected}".encode()):
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return
        try:
            parts = _destination(method, target)
            connecting = asyncio.create_task(self._connect(parts.hostname or "", parts.port or 80))
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)
            await asyncio.wait([connecting])
            if connecting.cancelled():
                return
            onward, out = connecting.result()
        except (WMEError, ValueError, OSError) as error:
            words = "refused" if isinstance(error, WMEError) else "not reached"
            if isinstance(error, WMEError):
                self.refusals.append(error)
            writer.write(f"HTTP/1.1 502 {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        self._writers.add(out)
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 connected\r\n\r\n")
            else:
                path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
                kept = [f"{name}: {value}" for name, value in headers if name.lower() not in _HOP_BY_HOP]
                # One request a connection: the next may be for another host.
                out.write(
                    "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""]).encode("latin-1")
                )
            async with asyncio.TaskGroup() as group:
                group.create_task(_pipe(reader, out))
                group.create_task(_pipe(onward, writer))
        finally:
            self._writers.discard(out)
            out.close()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to an address that was checked, which is not looked up again."""
        from wme_async.jobs.guard import check_host, guard  # noqa: PLC0415  # as above

        reason = check_host(host, allow=self._allow)
        if reason:
            raise DataError(reason)
        check = guard(self._allow)
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for _, _, _, _, address in found:
            check(host, str(address[0]))
        trouble: OSError | None = None
        for _, _, _, _, address in found:
            try:
                return await asyncio.open_connection(str(address[0]), port)
            except OSError as error:
                trouble = error
        raise trouble or OSError("the name has no address")


def _destination(method: str, target: str) -> SplitResult:
    parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
    if not parts.hostname or (method != "CONNECT" and parts.scheme != "http"):
        raise ValueError("not a request for a proxy")
    return parts


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()
