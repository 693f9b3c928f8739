"""Media behind web pages and playlists, through yt-dlp (extra `media`): for batches whose URLs are pages.

    from wme_async.integrations.media import Media

    async with BatchManager("downloads", media=Media()) as manager:
        await manager.submit(["https://example.com/watch?v=1"], quality="720p", download_subtitles=True)

yt-dlp works in a process of its own for each URL. Its connections go through a small proxy on loopback, which asks the
same guard as everything else. The process can connect to that proxy alone and starts no other program, whatever its
environment says, so a page cannot send it to where a URL must not lead. A process that does not end in time is killed.
"""

import asyncio
import base64
import contextlib
import hmac
import importlib.util
import json
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

from wme_async._arguments import check_numbers, texts_of
from wme_async._tasks import wait_done
from wme_async.errors import DataError, WMEError

if TYPE_CHECKING:
    from wme_async.jobs import Fetched, Options

__all__ = ["GuardedProxy", "Media", "format_selector"]

logger: logging.Logger = logging.getLogger("wme_async.media")

_HOP_BY_HOP = {"proxy-connection", "proxy-authorization", "connection", "keep-alive"}
_MAX_HEAD = 64 * 1024
_PIECE = 64 * 1024
_WORKER = Path(__file__).with_name("_media_worker.py")
# Bytes of one message of a worker; it cuts its texts to far less.
_MAX_MESSAGE = 1 << 20
# Seconds for a worker to end by itself.
_GRACE = 3.0

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


class Media:
    """Gets media out of pages, for `BatchManager(media=...)`.

    Media come over `http`, `https`, and recorded HLS and DASH. A page that offers its media by other protocols alone,
    or as a live stream, is an error: those need other programs, which would connect past the guard.

    Args:
        concurrent: Processes in which yt-dlp works at once.
        subtitle_languages: Languages of subtitles to download, for batches that ask for subtitles; patterns of yt-dlp.
        extractors: Names of yt-dlp's extractors that may be used, as patterns; all by default. Fewer are safer.
        options: Further options of `yt_dlp.YoutubeDL`, as JSON values. They cannot replace the options that keep
            downloads in their folder and behind the guard.

    Raises:
        ImportError: yt-dlp is not installed.
        TypeError: An argument has another type, such as one string for a list, or an option is not a JSON value.
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
            raise ValueError(f"concurrent must be a number of processes above 0, not {concurrent}")
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict of options of yt-dlp, not {options!r}")
        try:
            self._options: dict[str, Any] = json.loads(json.dumps(dict(options or {})))
        except (TypeError, ValueError) as error:
            raise TypeError(f"options go to another process, so they must be JSON values: {error}") from None
        self._limiter = asyncio.Semaphore(concurrent)
        self._languages = list(texts_of("subtitle_languages", subtitle_languages, "languages"))
        self._extractors = None if extractors is None else list(texts_of("extractors", extractors, "names"))

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
        """Download the media of a page, going on with the files that an earlier attempt left in the folder.

        Args:
            url: The page or playlist.
            folder: Exists, and is used for nothing else.
            options: The options of the batch.
            moved: Called with progress: done and total bytes, bytes per second, seconds left. An exception ends the
                download and is raised.
            titled: Called with the title and the size in bytes. An exception ends the download and is raised.
            allow: Hosts that may be private.

        Raises:
            DataError: There are no media, several, or none of that kind or protocol.
            WMEError: The media cannot be fetched.
            OSError: The media cannot be written.
        """
        async with self._limiter, GuardedProxy(allow).running() as proxy:
            task = {"url": url, "settings": self._settings(folder, options, proxy.url)}
            worker = await _Worker.start(task, folder)
            try:
                result = await worker.result(moved, titled)
            except DataError as error:
                if proxy.refusals:
                    raise proxy.refusals[0] from error
                raise
            finally:
                # Its reads end at once without the proxy.
                proxy.cut()
                await wait_done(asyncio.ensure_future(worker.end()))
        return _fetched(result, folder)

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
            # No other program: it would not use the proxy.
            "external_downloader": {"default": "native"},
            "hls_prefer_native": True,
            "postprocessors": [],
            "fixup": "never",
            "js_runtimes": {},
            "cookiesfrombrowser": None,
            "netrc_cmd": None,
            "wait_for_video": None,
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


class _Worker:
    """The process of one download."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder

    @classmethod
    async def start(cls, task: dict[str, Any], folder: Path) -> "_Worker":
        """Start a process and give it its task.

        Raises:
            OSError: The process cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            # Without `-P` modules beside the script would hide others of the same name.
            *(sys.executable, "-P", str(_WORKER)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(folder),
            # Signals of the terminal are for this process, which ends the other one.
            start_new_session=True,
            limit=_MAX_MESSAGE,
        )
        assert process.stdin is not None
        # A process that has ended already is reported with its status; uvloop raises at the write, asyncio does not.
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(json.dumps(task).encode() + b"\n")
        return cls(process, folder)

    async def result(self, moved: Moved, titled: Callable[[str, int | None], None]) -> dict[str, Any]:
        """Return the facts about the finished file, and report title and progress until then.

        Raises:
            DataError: yt-dlp could not download the media, or its process ended.
        """
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            message = json.loads(line)
            if "progress" in message:
                moved(*message["progress"])
            elif "title" in message:
                titled(*message["title"])
            elif "log" in message:
                logger.debug("%s", message["log"])
            elif "error" in message:
                raise DataError(message["error"])
            else:
                result: dict[str, Any] = message["result"]
                return result
        status = await self._process.wait()
        raise DataError(f"the process of yt-dlp ended with status {status}, without an answer")

    async def end(self) -> None:
        """End the process: ask it to end, and kill it if it does not."""
        process = self._process
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            assert process.stdin is not None
            process.stdin.close()
            try:
                async with asyncio.timeout(_GRACE):
                    await self._drain()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await self._drain()
                # Killed between writing a fragment and noting it, a download would repeat that fragment.
                await asyncio.to_thread(_forget_fragments, self._folder)

    async def _drain(self) -> None:
        """Wait for the end of the process; it may be waiting for its output to be read."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(_PIECE):
            pass
        await self._process.wait()


def _forget_fragments(folder: Path) -> None:
    for state in folder.glob("*.ytdl"):
        state.with_suffix(".part").unlink(missing_ok=True)
        state.with_name(f"{state.name.removesuffix('.ytdl')}.part").unlink(missing_ok=True)
        state.unlink(missing_ok=True)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the process: no proxies, secrets or settings of this one."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("PYTHON", "WME_", "YTDLP", "XDG_"))
    }
    return environment | {
        "HOME": str(folder),
        "PATH": "",
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "YTDLP_NO_PLUGINS": "1",
    }


def _fetched(result: dict[str, Any], folder: Path) -> "Fetched":
    from wme_async.jobs import Fetched, FileName  # noqa: PLC0415  # jobs stand on integrations, not the reverse

    root = folder.resolve()
    path = Path(result["path"])
    if not path.is_file() or not path.resolve().is_relative_to(root):
        raise DataError("yt-dlp reported success but left no file")
    # `media.en.vtt` becomes `en.vtt`; the name of the file is put in front of it later.
    subtitles = tuple(
        subtitle.rename(subtitle.with_name(subtitle.name.removeprefix("media.")))
        for subtitle in map(Path, result["subtitles"])
        if subtitle.is_file() and subtitle.resolve().is_relative_to(root)
    )
    name = FileName(
        title=result["title"] or result["id"] or "media",
        ext=result["ext"] or path.suffix.lstrip(".") or "bin",
        id=result["id"] or "media",
        uploader=result["uploader"] or result["channel"] or result["host"] or "unknown",
        upload_date=result["upload_date"] or "",
    )
    return Fetched(path=path, name=name, size=path.stat().st_size, extras=subtitles)


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
        from wme_async.jobs.url_policy import check_host, guard  # noqa: PLC0415  # as above

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
    try:
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()
    except OSError:
        # A body without a length would look whole if its connection ended in good order.
        _reset(writer)
        return
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
