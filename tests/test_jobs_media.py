"""Media behind pages: yt-dlp on loopback, kept in its folder and behind the guard."""

import asyncio
import base64
import contextlib
import gc
from importlib.util import find_spec
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from jobs_server import FileServer
from raw_server import RawServer, reset

from wme_async.errors import DataError
from wme_async.integrations.media import GuardedProxy, Media, format_selector
from wme_async.jobs import BatchManager, JobLimits, Options
from wme_async.settings import Retry

# yt-dlp leaves a connection that failed to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    # It is imported by processes of its own alone.
    pytest.mark.skipif(find_spec("yt_dlp") is None, reason="yt-dlp is not installed (the extra `media`)"),
]


@pytest.fixture(autouse=True)
def collected():
    """Let the collector complain of that here, where it is not listened to, and not after the last test."""
    yield
    gc.collect()


PAGE = """<!doctype html><html><head><title>A film / about "things"</title></head><body>
<video src="{video}" type="video/mp4"><track kind="subtitles" srclang="en" src="{subtitle}"></video></body></html>"""
MASTER = """#EXTM3U
#EXT-X-STREAM-INF:BANDWIDTH=800000,RESOLUTION=1280x720
{base}/hls/720.m3u8
#EXT-X-STREAM-INF:BANDWIDTH=2000000,RESOLUTION=1920x1080
{base}/hls/1080.m3u8
"""
PLAYLIST = (
    "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{base}/f/{name}-0\n#EXTINF:4,\n{base}/f/{name}-1\n#EXT-X-ENDLIST\n"
)


@contextlib.asynccontextmanager
async def site():
    """The file server, and pages that show its files."""
    async with FileServer().running() as files:
        app = web.Application()

        async def page(request):
            names = request.match_info["name"]
            video = request.query.get("video", f"{files.url}/f/{names}.mp4")
            text = PAGE.format(video=video, subtitle=f"{files.url}/f/{names}.vtt")
            return web.Response(text=text, content_type="text/html")

        async def playlist(request):
            name = request.match_info["name"]
            text = MASTER.format(base=base) if name == "master" else PLAYLIST.format(base=files.url, name=name)
            return web.Response(text=text, content_type="application/vnd.apple.mpegurl")

        app.router.add_get("/page/{name}", page)
        app.router.add_get("/hls/{name}.m3u8", playlist)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield files, base
        finally:
            await runner.cleanup()


def open_manager(directory, **options):
    return BatchManager(
        directory,
        **{"allow_hosts": ["127.0.0.1"], "media": Media(extractors=["generic", "html5"]), **options},
        retry=Retry(attempts=1),
        limits=JobLimits(free_space=0),
    )


async def done(manager, url, **options):
    return await manager.wait((await manager.submit([url], **options)).batch_id, timeout=20)


async def test_the_film_of_a_page_is_downloaded_with_its_title_and_subtitles(tmp_path):
    async with site() as (files, base), open_manager(tmp_path) as manager:
        files.add("film.mp4", 200_000, Content_Type="video/mp4")
        files.files["film.vtt"] = b"WEBVTT\n\n00:00.000 --> 00:01.000\nHello\n"
        files.heads["film.vtt"] = {"Content-Type": "text/vtt"}
        template = "{uploader}/{upload_date}/{safe_title}-{id}.{ext}"
        batch = await done(
            manager, f"{base}/page/film", quality="1080p", download_subtitles=True, path_template=template
        )
        [job] = batch.jobs
        assert job.error is None
        assert "film" in job.title.lower()
        path = manager.directory / job.file_info.filepath
        assert path.read_bytes() == files.files["film.mp4"]
        assert path.suffix == ".mp4"
        assert "/" not in path.name
        assert len(path.relative_to(manager.directory).parts) == 3
        [subtitle] = job.file_info.subtitles
        assert (manager.directory / subtitle).read_bytes() == files.files["film.vtt"]
        assert subtitle == f"{job.file_info.filepath.removesuffix('.mp4')}.en.vtt"
        assert await manager.finished_file(subtitle) == manager.directory / subtitle
        assert not list((manager.directory / ".wme-jobs" / "parts").glob("*"))
        await manager.delete(batch.batch_id, files=True)
        assert not path.exists()
        assert not (manager.directory / subtitle).exists()


@pytest.mark.parametrize(
    ("quality", "kept"),
    [
        ("720p", "720"),
        pytest.param("1080p", "1080", marks=pytest.mark.servers),
        pytest.param("best", "1080", marks=pytest.mark.servers),
        pytest.param("480p", "720", marks=pytest.mark.servers),
    ],
)
async def test_the_quality_of_a_playlist_is_the_one_that_was_asked_for(tmp_path, quality, kept):
    async with site() as (files, base), open_manager(tmp_path) as manager:
        for name in ("720", "1080"):
            for part in (0, 1):
                files.add(f"{name}-{part}", 3000 + part)
        batch = await done(manager, f"{base}/hls/master.m3u8", quality=quality)
        [job] = batch.jobs
        assert job.error is None
        data = (manager.directory / job.file_info.filepath).read_bytes()
        # Where nothing is small enough, the smallest beats nothing.
        assert data == files.files[f"{kept}-0"] + files.files[f"{kept}-1"]


async def test_a_plain_file_does_not_go_through_it(tmp_path):
    async with site() as (files, _), open_manager(tmp_path) as manager:
        batch = await done(manager, files.add("film.mp4", 9000, Content_Type="video/mp4"), quality="720p")
        assert batch.jobs[0].file_info.filename == "film.mp4"
        assert batch.jobs[0].file_info.etag


@pytest.mark.servers
async def test_what_cannot_be_found_is_said_in_words(tmp_path):
    async with site() as (files, base), open_manager(tmp_path) as manager:
        nothing = await done(manager, f"{base}/page/none")
        files.add("empty", Content_Type="text/html")
        files.files["empty"] = b"<!doctype html><html><head><title>Words</title></head><body>No film</body></html>"
        empty = await done(manager, f"{files.url}/f/empty", quality="best")
    assert "404" in nothing.jobs[0].error
    assert empty.jobs[0].status == "failed"
    assert "report" not in empty.jobs[0].error


@pytest.mark.servers
async def test_a_paused_film_goes_on_where_it_was_and_a_cancelled_one_stops_at_once(tmp_path):
    async with site() as (files, base), open_manager(tmp_path) as manager:
        files.add("film.mp4", 3_000_000, "slow", Content_Type="video/mp4")
        batch = await manager.submit([f"{base}/page/film"])
        async with asyncio.timeout(20):
            async for event in manager.watch(batch.batch_id):
                if event.kind == "progress" and event.progress.done > 300_000:
                    break
        await manager.pause(batch.batch_id)
        files.rules.clear()
        sent = files.sent
        await manager.resume(batch.batch_id)
        finished = await manager.wait(batch.batch_id, timeout=20)
        assert finished.jobs[0].error is None
        assert files.sent - sent < 2_900_000
        assert (manager.directory / finished.jobs[0].file_info.filepath).read_bytes() == files.files["film.mp4"]

        files.rules["film.mp4"] = "hang"
        files.hanging.clear()
        second = await manager.submit([f"{base}/page/film"])
        async with asyncio.timeout(10):
            await files.hanging.wait()
        assert (await manager.cancel(second.batch_id)).status == "cancelled"


@pytest.mark.servers
async def test_what_is_wrong_with_the_last_bytes_is_raised_too(tmp_path):
    events = []

    def moved(done, *_):
        events.append(done)
        if events[-2:] == [4000, 4000]:
            # It says once more that all is there. Nothing comes after that, by which it could be stopped.
            raise DataError("too large")

    async with site() as (files, base):
        files.add("film.mp4", 4000, "chunked", Content_Type="video/mp4")
        with pytest.raises(DataError, match="too large"):
            await Media().fetch(
                f"{base}/page/film",
                tmp_path,
                options=Options(),
                moved=moved,
                titled=lambda *_: None,
                allow=["127.0.0.1"],
            )
    assert events[-2:] == [4000, 4000]


@pytest.mark.servers
async def test_a_page_cannot_send_it_to_where_a_url_must_not_lead(tmp_path, names):
    names["innocent.example"] = "127.0.0.1"
    async with site() as (files, base), open_manager(tmp_path) as manager:
        files.add("secret")
        port = files.url.rpartition(":")[2]
        for target in (
            f"http://innocent.example:{port}/f/secret",
            f"http://localhost:{port}/f/secret",
            "http://169.254.169.254/latest/meta-data/film.mp4",
            f"http://[::1]:{port}/f/secret",
            f"http://2130706433:{port}/f/secret",
        ):
            batch = await done(manager, f"{base}/page/film?video={target}")
            assert batch.jobs[0].status == "failed", target
            assert "refused" in batch.jobs[0].error, batch.jobs[0].error
        local = await done(manager, f"{base}/page/film?video=file:///etc/passwd")
        assert local.jobs[0].status == "failed"
        assert files.asked["secret"] == 0


async def test_the_proxy_serves_only_who_knows_its_password():
    async with FileServer().running() as files, GuardedProxy(["127.0.0.1"]).running() as proxy:
        files.add("a")
        host, port = "127.0.0.1", int(proxy.url.rpartition(":")[2])
        target = files.url.removeprefix("http://")
        for request in (f"GET {files.url}/f/a HTTP/1.1", f"CONNECT {target} HTTP/1.1"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"{request}\r\nHost: x\r\nProxy-Authorization: Basic bm86bm8=\r\n\r\n".encode())
            async with asyncio.timeout(5):
                assert (await reader.read()).startswith(b"HTTP/1.1 407")
            writer.close()
            await writer.wait_closed()
        assert files.asked["a"] == 0


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
@pytest.mark.parametrize("broken", [True, False])
async def test_the_proxy_ends_a_connection_as_the_server_did(method, broken):
    read = asyncio.Event()

    async def answer(request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbeginning")
        await writer.drain()
        # A reset throws away what has not arrived.
        await read.wait()
        if broken:
            reset(writer)
        return False

    async with RawServer(answer) as server, GuardedProxy(["127.0.0.1"]).running() as proxy, asyncio.timeout(10):
        where = urlsplit(proxy.url)
        password = base64.b64encode(f"{where.username}:{where.password}".encode()).decode()
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        target = server.url.removeprefix("http://") if method == "CONNECT" else f"{server.url}/a"
        writer.write(f"{method} {target} HTTP/1.1\r\nProxy-Authorization: Basic {password}\r\n\r\n".encode())
        if method == "CONNECT":
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET /a HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"beginning")
        read.set()
        if broken:
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_the_proxy_makes_no_connection_after_its_end(monkeypatch, caplog):
    connect, connecting = asyncio.open_connection, asyncio.Event()

    async def never(*_):
        connecting.set()
        await asyncio.get_running_loop().create_future()

    before = asyncio.all_tasks()
    async with GuardedProxy(["127.0.0.1"]).running() as proxy:
        where = urlsplit(proxy.url)
        password = base64.b64encode(f"{where.username}:{where.password}".encode()).decode()
        reader, writer = await connect(where.hostname, where.port)
        monkeypatch.setattr(asyncio, "open_connection", never)
        writer.write(f"CONNECT 127.0.0.1:9 HTTP/1.1\r\nProxy-Authorization: Basic {password}\r\n\r\n".encode())
        async with asyncio.timeout(5):
            await connecting.wait()
        serving = asyncio.all_tasks() - before
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        await asyncio.wait(serving)
    assert [entry for entry in caplog.records if entry.name == "asyncio" and entry.levelname != "DEBUG"] == []


@pytest.mark.parametrize(
    ("quality", "container", "selector"),
    [
        (None, None, "best"),
        ("best", "mp4", "best[ext=mp4]/best"),
        ("720p", None, "best[height<=?720]/worst"),
        ("1080", "mp4", "best[height<=?1080][ext=mp4]/best[height<=?1080]/worst"),
        ("worst", None, "worst"),
        ("worst", "webm", "worst[ext=webm]/worst"),
    ],
)
def test_what_is_asked_for_becomes_a_selector(quality, container, selector):
    assert format_selector(quality, container) == selector
