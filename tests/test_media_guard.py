"""Media jobs cannot bypass the guard, whatever the environment, the protocol of a source, or the installed programs."""

import asyncio
import contextlib
import os
import stat
from importlib.util import find_spec

import pytest
from aiohttp import web
from jobs_server import FileServer

from wme_async import Retry
from wme_async.errors import DataError
from wme_async.integrations.media import Media
from wme_async.jobs import BatchManager, JobLimits, Options

# It is imported by processes of its own alone.
pytestmark = pytest.mark.skipif(find_spec("yt_dlp") is None, reason="yt-dlp is not installed (the extra `media`)")

PROGRAMS = ("ffmpeg", "ffprobe", "avconv", "rtmpdump", "mplayer", "mpv", "aria2c", "curl", "wget", "deno", "node")


class Victim:
    """A server of the private network: it counts connections, whatever is spoken on them."""

    def __init__(self):
        self.connections = 0

    @contextlib.asynccontextmanager
    async def running(self):
        async def serve(_, writer):
            self.connections += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: 6\r\n\r\nSECRET")
            writer.close()

        # Not the address that the tests allow.
        server = await asyncio.start_server(serve, "127.0.0.2", 0)
        self.address = f"127.0.0.2:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()


@contextlib.asynccontextmanager
async def site(pages):
    """Pages by name: their text, and the type if it is not HTML."""

    async def serve(request):
        text, content_type = pages[request.match_info["name"]]
        return web.Response(text=text, content_type=content_type)

    app = web.Application()
    app.router.add_get("/{name}", serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def page(source, media_type="video/mp4"):
    text = f'<html><head><title>T</title></head><body><video><source src="{source}" type="{media_type}"></video></body>'
    return text, "text/html"


def playlist(lines):
    return "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n" + lines, "application/vnd.apple.mpegurl"


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that yt-dlp would use, first in the path; each leaves a file when it is started."""
    folder, started = tmp_path / "bin", tmp_path / "started"
    folder.mkdir()
    started.mkdir()
    for name in PROGRAMS:
        program = folder / name
        program.write_text(f"#!/bin/sh\necho \"$@\" > '{started}/{name}'\necho '{name} version 7.0'\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return started


def open_manager(directory):
    return BatchManager(
        directory,
        allow_hosts=["127.0.0.1"],
        # The other extractors take half a second of each process, and none of them is for these pages.
        media=Media(extractors=["generic", "html5"]),
        retry=Retry(attempts=1),
        limits=JobLimits(free_space=0),
    )


async def jobs_of(manager, urls):
    batch = await manager.submit(urls, concurrent_limit=4, download_subtitles=True)
    batch = await manager.wait(batch.batch_id, timeout=60)
    return {job.url.rpartition("/")[2]: job for job in batch.jobs}


def pages_that_lead_to(secret, film):
    """Pages by name that make a downloader connect to another address, each in its own way."""
    return {
        "video": page(f"{secret}/film.mp4"),
        "refresh": (f'<html><head><meta http-equiv="refresh" content="0; url={secret}/a"></head></html>', "text/html"),
        "hls": playlist(f"#EXTINF:10,\n{secret}/a.ts\n#EXT-X-ENDLIST\n"),
        "subtitle": (
            f"""<html><head><title>T</title></head><body><video src="{film}">
            <track kind="subtitles" srclang="en" src="{secret}/a.vtt"></video></body></html>""",
            "text/html",
        ),
    }


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        pytest.param({"no_proxy": "*"}, ["video", "refresh", "hls", "subtitle"], marks=pytest.mark.servers),
        pytest.param({"NO_PROXY": "*", "no_proxy": "127.0.0.2,127.0.0.0/8"}, ["video"], marks=pytest.mark.servers),
        pytest.param(
            {
                "http_proxy": "http://127.0.0.2:1",
                "HTTPS_PROXY": "http://127.0.0.2:1",
                "all_proxy": "socks5://127.0.0.2:1",
            },
            ["video"],
            marks=pytest.mark.servers,
        ),
    ],
)
async def test_the_environment_does_not_lead_past_the_guard(tmp_path, monkeypatch, environment, names):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with Victim().running() as victim, FileServer().running() as files, open_manager(tmp_path / "a") as manager:
        film = files.add("film.mp4", 5000, Content_Type="video/mp4")
        pages = pages_that_lead_to(f"http://{victim.address}", film)
        pages = {"good": page(film), **{name: pages[name] for name in names}}
        async with site(pages) as base:
            jobs = await jobs_of(manager, [f"{base}/{name}" for name in pages])
        assert jobs["good"].error is None
        assert {name for name in jobs if jobs[name].status == "failed"} >= {*names} - {"subtitle"}
        assert victim.connections == 0


@pytest.mark.servers
async def test_sources_of_other_protocols_are_not_fetched_and_no_program_is_started(tmp_path, programs):
    async with Victim().running() as victim, open_manager(tmp_path / "a") as manager:
        schemes = ("ftp", "ftps", "rtmp", "rtsp", "mms", "ws", "file")
        sources = "".join(f'<source src="{name}://{victim.address}/film.mp4" type="video/mp4">' for name in schemes)
        pages = {
            "all": (f"<html><head><title>T</title></head><body><video>{sources}</video></body></html>", "text/html"),
            "rtmpe": page(f"rtmpe://{victim.address}/app/film.mp4"),
            "f4m": page(f"http://{victim.address}/a.f4m", "application/f4m+xml"),
            "live": playlist("#EXT-X-MEDIA-SEQUENCE:7\n#EXTINF:10,\n/a.ts\n"),
        }
        key = f'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="http://{victim.address}/key"\n'
        pages["encrypted"] = playlist(f"{key}#EXTINF:10,\n/a.ts\n#EXT-X-ENDLIST\n")
        async with site(pages) as base:
            jobs = await jobs_of(manager, [f"{base}/{name}" for name in pages])
        assert {name: job.status for name, job in jobs.items()} == dict.fromkeys(pages, "failed")
        # The error names the protocol of each source: none was left for yt-dlp to choose.
        assert f"by {', '.join(sorted(schemes))} alone" in jobs["all"].error
        assert "by rtmp alone" in jobs["rtmpe"].error
        assert victim.connections == 0
        assert list(programs.iterdir()) == []


async def fetch(url, folder, **options):
    await Media(extractors=["generic", "html5"], **options).fetch(
        url, folder, options=Options(), moved=lambda *_: None, titled=lambda *_: None, allow=["127.0.0.1"]
    )


async def test_a_download_that_does_not_answer_ends_with_its_task(tmp_path):
    async with FileServer().running() as files, site({"film": page("")}) as base:
        del base
        files.add("film.mp4", 50_000, "hang", Content_Type="video/mp4")
        task = asyncio.create_task(fetch(f"{files.url}/f/film.mp4", tmp_path))
        async with asyncio.timeout(30):
            await files.hanging.wait()
            task.cancel()
            await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.parametrize("options", [{"progress_hooks": [print]}, {"match_filter": object()}])
def test_options_that_are_not_json_are_an_error_at_once(options):
    with pytest.raises(TypeError, match="JSON"):
        Media(options=options)


async def test_options_cannot_disable_the_guard(tmp_path, programs):
    options = {
        "proxy": "",
        "external_downloader": "curl",
        "postprocessors": [{"key": "Exec", "exec_cmd": "ffmpeg"}],
        "enable_file_urls": True,
        "js_runtimes": {"node": {}},
        "geo_verification_proxy": "http://127.0.0.2:1",
    }
    async with Victim().running() as victim, site({"film": page(f"http://{victim.address}/film.mp4")}) as base:
        with pytest.raises(Exception, match="refused"):
            await fetch(f"{base}/film", tmp_path, options=options)
        assert victim.connections == 0
        assert list(programs.iterdir()) == []


async def test_a_worker_that_exits_is_an_error_of_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(DataError, match="ended with status 1"):
        await fetch("http://127.0.0.1:1/", tmp_path)
