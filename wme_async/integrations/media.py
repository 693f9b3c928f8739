"""Media behind web pages and playlists, through yt-dlp (extra `media`): for batches whose URLs are pages.

    from wme_async.integrations.media import Media

    async with BatchManager("downloads", media=Media()) as manager:
        await manager.submit(["https://example.com/watch?v=1"], quality="720p", download_subtitles=True)

yt-dlp runs in a separate process for each URL. Its connections go through a small proxy on loopback, which checks
every address by the guard of all other downloads. The process can connect to that proxy alone and starts no other
program, whatever its environment contains, so that a page cannot lead it to a private address. A process that does not
end in time is killed.
"""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wme_async._arguments import check_numbers, texts_of
from wme_async._tasks import wait_done
from wme_async.errors import DataError
from wme_async.integrations._media_proxy import GuardedProxy

if TYPE_CHECKING:
    from wme_async.jobs import Fetched, Options

__all__ = ["GuardedProxy", "Media", "format_selector"]

logger: logging.Logger = logging.getLogger("wme_async.media")

_WORKER = Path(__file__).with_name("_media_worker.py")
# Bytes of one message of a worker; it truncates its texts to far less.
_MAX_MESSAGE = 1 << 20
# Seconds for a worker to end by itself.
_GRACE = 3.0

Moved = Callable[[int, int | None, float | None, float | None], None]


def format_selector(quality: str | None, video_format: str | None) -> str:
    """Return yt-dlp's expression for the format options of a batch, with alternatives down to any format.

    Only formats that hold picture and sound together are chosen: joining two needs ffmpeg.

    Args:
        quality: `best`, `worst`, or a maximal height such as `1080p`.
        video_format: The preferred container.
    """
    container = f"[ext={video_format}]" if video_format else ""
    if quality == "worst":
        return f"worst{container}/worst" if container else "worst"
    if not quality or quality == "best":
        return f"best{container}/best" if container else "best"
    # A format of unknown height may be low enough. Where all are higher, the lowest is nearest.
    height = f"[height<=?{quality.removesuffix('p')}]"
    return "/".join(dict.fromkeys((f"best{height}{container}", f"best{height}", "worst")))


class Media:
    """Downloads the media of pages, for `BatchManager(media=...)`.

    Media come over `http`, `https`, and recorded HLS and DASH. A page that offers its media by other protocols alone,
    or as a live stream, is an error: those need other programs, which would bypass the guard.

    Args:
        concurrent: Processes of yt-dlp at once.
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
        check_numbers(whole=True, optional=False, minimum=1, unit="processes", concurrent=concurrent)
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
        """Download the media of a page, and resume with the files of an earlier attempt in the folder.

        Args:
            url: The page or playlist.
            folder: An existing folder for this download alone.
            options: The options of the batch.
            moved: Called with progress: done and total bytes, bytes per second, seconds left. An exception ends the
                download and is raised.
            titled: Called with the title and the size in bytes. An exception ends the download and is raised.
            allow: Hosts that may be private.

        Raises:
            DataError: The page has no media, several, or none of a supported kind or protocol.
            WMEError: The media cannot be fetched.
            OSError: The media cannot be written.
        """
        async with self._limiter, GuardedProxy(allow).running() as proxy:
            task = {"url": url, "settings": self._settings(folder, options, proxy.url)}
            async with _Worker.running(task, folder) as worker:
                try:
                    result = await worker.result(moved, titled)
                except DataError as error:
                    if proxy.refusals:
                        raise proxy.refusals[0] from error
                    raise
                finally:
                    # Reads of the worker fail now, and it ends.
                    proxy.cut()
        return _fetched(result, folder)

    def _settings(self, folder: Path, options: "Options", proxy: str) -> dict[str, Any]:
        enforced: dict[str, Any] = {
            # Without configuration, cache, cookies and plugins of this machine.
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
            # Other programs would not use the proxy.
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
            enforced["allowed_extractors"] = self._extractors
        return {**self._options, **enforced}


class _Worker:
    """The process of one download."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, task: dict[str, Any], folder: Path) -> AsyncIterator["_Worker"]:
        """Start a process with a task; end it with the block.

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
            # Signals of the terminal are for this process, which ends the worker.
            start_new_session=True,
            limit=_MAX_MESSAGE,
        )
        assert process.stdin is not None
        # Where the process has ended already, uvloop raises here and asyncio does not; `result` reports its status.
        with contextlib.suppress(OSError, RuntimeError):
            process.stdin.write(json.dumps(task).encode() + b"\n")
        worker = cls(process, folder)
        try:
            yield worker
        finally:
            await wait_done(asyncio.ensure_future(worker._end()))

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

    async def _end(self) -> None:
        """Terminate the process, and kill it if that takes too long."""
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
                # A download that is killed between writing and recording a fragment would repeat it.
                await asyncio.to_thread(_forget_fragments, self._folder)

    async def _drain(self) -> None:
        """Read the output of the process until its end: a full pipe would block it."""
        assert self._process.stdout is not None
        while await self._process.stdout.read(_MAX_MESSAGE):
            pass
        await self._process.wait()


def _forget_fragments(folder: Path) -> None:
    for state in folder.glob("*.ytdl"):
        state.with_suffix(".part").unlink(missing_ok=True)
        state.with_name(f"{state.name.removesuffix('.ytdl')}.part").unlink(missing_ok=True)
        state.unlink(missing_ok=True)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the worker: without proxies, secrets and settings of this process."""
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
    from wme_async.jobs import Fetched, FileName  # noqa: PLC0415  # `jobs` is in the same row

    root = folder.resolve()
    path = Path(result["path"])
    if not path.is_file() or not path.resolve().is_relative_to(root):
        raise DataError("yt-dlp reported success but left no file")
    # `media.en.vtt` becomes `en.vtt`; the batch prepends the name of the file.
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
