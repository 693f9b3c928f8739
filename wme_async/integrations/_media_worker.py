"""The process in which yt-dlp works for `Media`. It is started by its path and imports nothing of this package.

A separate process can be killed at any time, and can be confined before it reads a page: an audit hook
(https://docs.python.org/3/library/audit_events.html) allows connections to the guarding proxy alone and starts no other
program. So neither the environment nor the installed HTTP libraries change where a page can lead.

Standard input holds one line of JSON, the task, and stays open: its end means that the parent process has ended.
Standard output holds one JSON object a line: `log`, `title`, `progress`, and at the end `result` or `error`.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__: list[str] = []

# Protocols that yt-dlp downloads by itself, over HTTP alone (`yt_dlp.downloader.PROTOCOL_MAP`).
_PROTOCOLS = frozenset({"http", "https", "m3u8", "m3u8_native", "http_dash_segments"})
# HTTP clients with sockets of their own, which no audit hook sees.
_OTHER_CLIENTS = ("curl_cffi", "requests", "websockets")
_PROGRAM_EVENTS = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
)
_CONNECTION_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
# Seconds for yt-dlp to end by itself once the parent process has gone.
_ORPHAN_GRACE = 5.0


class _UnsupportedProtocol(Exception):
    """The media of a page need another program or another protocol."""


class _Output:
    """Sends messages to the parent process. Nothing else may write to standard output."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, kind: str, value: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({kind: value}) + "\n")
            self._stream.flush()


class _Log:
    """The logger of yt-dlp."""

    def __init__(self, output: _Output) -> None:
        self._output = output

    def debug(self, message: str) -> None:
        self._output.send("log", str(message)[:2000])

    info = warning = error = debug


def confine(proxy: tuple[str, int]) -> None:
    """Restrict this process to connections to one address, without other programs.

    Args:
        proxy: Address and port of the guarding proxy.
    """
    for name in _OTHER_CLIENTS:
        sys.modules[name] = None  # type: ignore[assignment]  # `import` raises ImportError for None
    # The settings of this system cannot bypass the proxy.
    urllib.request.proxy_bypass = lambda *_: False

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _PROGRAM_EVENTS:
            raise PermissionError("no other program is started for media")
        if event in _CONNECTION_EVENTS:
            address = arguments[-1]
            if not isinstance(address, tuple) or address[:2] != proxy:
                raise PermissionError("only the guarding proxy may open connections")
        elif event == "socket.getaddrinfo" and arguments[0] != proxy[0]:
            raise PermissionError("names are resolved by the guarding proxy only")

    sys.addaudithook(check)


def check_protocol(info: dict[str, Any]) -> bool:
    """Return whether a format is downloaded over HTTP by yt-dlp itself.

    Args:
        info: A format, or the information of a page, of yt-dlp.
    """
    from yt_dlp.utils import determine_protocol  # noqa: PLC0415  # only the confined process loads yt-dlp

    protocol = determine_protocol(info)
    if protocol not in _PROTOCOLS:
        return False
    # For live streams yt-dlp starts ffmpeg.
    return protocol in {"http", "https"} or not info.get("is_live")


def _check_formats(info: dict[str, Any]) -> None:
    """Remove the formats with a protocol that is not supported; raise without any other format."""
    formats = info.get("formats")
    if formats is None:
        formats = [info] if info.get("url") else []
    if not formats:
        return
    allowed = [entry for entry in formats if check_protocol({"is_live": info.get("is_live"), **entry})]
    if not allowed:
        from yt_dlp.utils import determine_protocol  # noqa: PLC0415  # as above

        protocols = ", ".join(sorted({str(determine_protocol(entry)) for entry in formats}))
        source = "a live stream" if info.get("is_live") else "its media"
        raise _UnsupportedProtocol(
            f"the page offers {source} by {protocols[:100]} alone; http, https and recorded HLS and DASH are supported"
        )
    if "formats" in info:
        info["formats"] = allowed


def _downloader(settings: dict[str, Any]) -> Any:
    """Return a `YoutubeDL` with one HTTP client and the allowed protocols."""
    import yt_dlp  # noqa: PLC0415  # as above
    from yt_dlp.networking._urllib import UrllibRH  # noqa: PLC0415  # as above

    class ProxiedHandler(UrllibRH):  # type: ignore[misc]  # yt-dlp is not typed
        """Sends all requests through the guarding proxy, whatever a request or the environment says."""

        _SUPPORTED_URL_SCHEMES = ("http", "https", "data")
        RH_KEY = "Urllib"

        def _get_proxies(self, _request: Any) -> dict[str, str]:
            return {"all": settings["proxy"]}

    class Downloader(yt_dlp.YoutubeDL):  # type: ignore[misc]  # as above
        def build_request_director(self, *_: Any) -> Any:
            return super().build_request_director([ProxiedHandler], [])

        def process_video_result(self, info_dict: dict[str, Any], download: bool = True) -> Any:
            _check_formats(info_dict)
            return super().process_video_result(info_dict, download)

        def dl(self, name: str, info: dict[str, Any], subtitle: bool = False, test: bool = False) -> Any:
            if not check_protocol(info):
                raise _UnsupportedProtocol("the page offers a file by a protocol other than http and https")
            return super().dl(name, info, subtitle, test)

    return Downloader(settings)


def _first(info: Any) -> dict[str, Any]:
    """Return the one medium of a page; the first, if it lists several."""
    while isinstance(info, dict) and "entries" in info:
        info = next((entry for entry in info["entries"] if entry), None)
    if not isinstance(info, dict):
        raise _UnsupportedProtocol("no media were found on the page")
    return info


def download(task: dict[str, Any], output: _Output, stop: threading.Event) -> dict[str, Any]:
    """Find the medium of a page, and download it.

    Args:
        task: `url` and `settings`.
        output: Receives title and progress.
        stop: Ends the download at the next progress.

    Returns:
        The facts about the file that the parent process needs.
    """
    from yt_dlp.utils import DownloadCancelled  # noqa: PLC0415  # as above

    def progress(status: dict[str, Any]) -> None:
        if stop.is_set():
            raise DownloadCancelled("stopped")
        total = status.get("total_bytes") or status.get("total_bytes_estimate")
        output.send(
            "progress",
            [
                int(status.get("downloaded_bytes") or 0),
                None if total is None else int(total),
                status.get("speed"),
                status.get("eta"),
            ],
        )

    settings = {**task["settings"], "progress_hooks": [progress], "logger": _Log(output)}
    with _downloader(settings) as downloader:
        info = _first(downloader.extract_info(task["url"], download=False))
        output.send("title", [_text(info.get("title")), info.get("filesize")])
        if stop.is_set():
            raise DownloadCancelled("stopped")
        info = _first(downloader.process_ie_result(info, download=True))
    downloads = info.get("requested_downloads") or [{}]
    subtitles = (info.get("requested_subtitles") or {}).values()
    facts = {name: _text(info.get(name)) for name in ("title", "id", "ext", "uploader", "channel", "upload_date")}
    return {
        **facts,
        "path": str(downloads[0].get("filepath") or ""),
        "subtitles": [str(subtitle["filepath"]) for subtitle in subtitles if subtitle.get("filepath")],
        "host": urlsplit(task["url"]).hostname or "",
    }


def _text(value: Any) -> str:
    return str(value or "")[:4096]


def _message(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    text = re.sub(r"^(ERROR:\s*)+", "", text)
    # The advice to report bugs to yt-dlp would mislead.
    return text.partition("; please report this issue")[0][:500] or type(error).__name__


def _watch_parent(stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        # Not `sys.stdin`: its lock would hold up the end of the interpreter.
        while os.read(0, 1024):
            pass
    stop.set()
    threading.Event().wait(_ORPHAN_GRACE)
    os._exit(1)


def _read_task() -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            raise SystemExit(1)
        line += chunk
    task: dict[str, Any] = json.loads(line)
    return task


def main() -> None:
    """Run the task of standard input."""
    output = _Output()
    stop = threading.Event()
    # The first signal ends the download between two writes, so that it can be resumed.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    task = _read_task()
    threading.Thread(target=_watch_parent, args=[stop], daemon=True).start()
    os.chdir(Path(task["settings"]["paths"]["home"]))
    proxy = urlsplit(task["settings"]["proxy"])
    confine((str(proxy.hostname), int(proxy.port or 0)))
    try:
        output.send("result", download(task, output, stop))
    except Exception as error:  # noqa: BLE001  # the parent process raises it
        output.send("error", _message(error))


if __name__ == "__main__":
    main()
