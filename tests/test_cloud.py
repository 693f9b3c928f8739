"""Uploads: whole objects or none, at the pace of the store."""

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

obstore = pytest.importorskip("obstore", reason="the extra `cloud` is not installed")
pytest.importorskip("obstore.exceptions")

from wme_async.integrations import cloud  # noqa: E402 - not importable without the extra
from wme_async.integrations.cloud import upload  # noqa: E402

MIB = 1024 * 1024


class Source:
    """An async source that says in which task it was used."""

    def __init__(self, chunks: int, error: Exception | None = None, *, hang: bool = False) -> None:
        self.left = chunks
        self.error = error
        self.hang = hang
        self.begun = asyncio.Event()
        self.hanging = asyncio.Event()
        self.tasks: set[Any] = set()
        self.closed = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.tasks.add(asyncio.current_task())
        await asyncio.sleep(0)
        if self.left:
            self.left -= 1
            self.begun.set()
            return bytes([self.left % 256]) * MIB
        if self.hang:
            self.hanging.set()
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.tasks.add(asyncio.current_task())
        self.closed += 1


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names(store: Any) -> list[str]:
    return [entry["path"] for page in obstore.list(store) for entry in page]


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return obstore.store.MemoryStore() if request.param == "memory" else obstore.store.LocalStore(tmp_path)


def expected(chunks: int) -> bytes:
    return b"".join(bytes([number % 256]) * MIB for number in reversed(range(chunks)))


@pytest.mark.parametrize("chunks", [0, 1, 13])
async def test_an_object_has_all_the_bytes_in_order(store: Any, chunks: int) -> None:
    source = Source(chunks)
    result = await upload(source, "a/b.bin", store=store, part_size=5 * MIB, connections=2)
    assert (result.url, result.size) == ("a/b.bin", chunks * MIB)
    assert result.etag
    assert bytes(obstore.get(store, "a/b.bin").bytes()) == expected(chunks)
    assert source.tasks == {asyncio.current_task()}
    assert source.closed == 1


async def test_a_source_that_fails_leaves_no_object(store: Any) -> None:
    error = LookupError("gone")
    source = Source(13, error)
    with pytest.raises(LookupError) as caught:
        await upload(source, "a.bin", store=store, part_size=5 * MIB)
    assert caught.value is error
    assert names(store) == []
    assert source.closed == 1


async def test_a_cancelled_upload_leaves_no_object_and_no_task(store: Any, tmp_path: Path) -> None:
    source = Source(7, hang=True)
    task = asyncio.create_task(upload(source, "a.bin", store=store, part_size=5 * MIB))
    await asyncio.wait_for(source.hanging.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(store) == []
    assert contents(tmp_path) == []
    assert source.closed == 1
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (obstore.exceptions.PermissionDeniedError("no\n\ndebug"), PermissionError),
        (obstore.exceptions.UnauthenticatedError("no\n\ndebug"), PermissionError),
        (obstore.exceptions.NotFoundError("no\n\ndebug"), FileNotFoundError),
        (obstore.exceptions.GenericError("no\n\ndebug"), OSError),
    ],
)
async def test_an_error_of_the_store_is_an_os_error_at_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception]
) -> None:
    async def refuse(_store: Any, _key: str, taken: Any, **_options: Any) -> None:
        await anext(taken)
        raise error

    monkeypatch.setattr(obstore, "put_async", refuse)
    source = Source(1000)
    with pytest.raises(kind, match=r"^no$"):
        await upload(source, "a.bin", store=obstore.store.MemoryStore())
    assert source.left > 900
    assert source.closed == 1


async def test_a_store_that_hangs_does_not_block_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **__: Any) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(obstore, "put_async", hang)
    monkeypatch.setattr(cloud, "_GRACE", 0.05)
    source = Source(5, LookupError())
    task = asyncio.create_task(upload(source, "a.bin", store=obstore.store.MemoryStore()))
    await asyncio.wait_for(source.begun.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed == 1


async def test_a_slow_store_slows_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    reached = asyncio.Event()
    go = asyncio.Event()

    async def slow(_store: Any, _key: str, taken: Any, **_options: Any) -> dict[str, Any]:
        await anext(taken)
        reached.set()
        await go.wait()
        async for _ in taken:
            pass
        return {}

    monkeypatch.setattr(obstore, "put_async", slow)
    source = Source(100)
    task = asyncio.create_task(upload(source, "a.bin", store=obstore.store.MemoryStore()))
    await asyncio.wait_for(reached.wait(), 10)
    for _ in range(50):
        await asyncio.sleep(0)
    assert source.left >= 97
    go.set()
    assert (await task).size == 100 * MIB


async def test_a_file_url_makes_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "x y.bin"
    result = await upload(Source(1), target.as_uri())
    assert result.url == target.as_uri()
    assert target.read_bytes() == expected(1)


async def test_a_url_is_a_bucket_and_a_key() -> None:
    paths = []

    async def forbid(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.Response(status=403)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forbid)
    async with TestServer(app) as server:
        account: Any = {"access_key_id": "a", "secret_access_key": "b", "region": "eu-west-1"}
        options: Any = {"endpoint": str(server.make_url("")).rstrip("/"), "client_options": {"allow_http": True}}
        with pytest.raises(PermissionError):
            await upload(Source(1), "s3://bucket/a/b%20c.parquet", **account, **options)
    assert paths[0].partition("?")[0] == "/bucket/a/b%20c.parquet"


@pytest.mark.parametrize(
    "url", ["x.parquet", "ftp://h/x", "s3://bucket", "s3://bucket/", "s3:///x", "s3://b/x?y", "s3://b/x#y", "file:///"]
)
async def test_a_url_without_an_object_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        await upload(Source(1), url)


async def test_invalid_arguments_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = obstore.store.MemoryStore()
    for options in ({"part_size": 0}, {"connections": 0}, {"region": "x"}):
        with pytest.raises(ValueError, match=r"must be at least 1|has its own options"):
            await upload(Source(1), "x", store=memory, **options)
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OSError, match="Account"):
        await upload(Source(1), "az://container/x")


class Row(msgspec.Struct):
    number: int = 0


async def test_parquet_goes_to_an_object_without_a_local_copy(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra `arrow` is not installed")
    from wme_async.integrations.arrow import parquet_chunks, write_parquet

    async def rows() -> AsyncIterator[Row]:
        for number in range(3000):
            yield Row(number)

    target = tmp_path / "x.parquet"
    result = await write_parquet(rows(), target.as_uri(), type=Row, row_group_bytes=10_000)
    assert (result.rows, result.bytes, result.files) == (3000, target.stat().st_size, (target.as_uri(),))
    assert pq.read_table(target).column("number").to_pylist() == list(range(3000))
    memory = obstore.store.MemoryStore()
    await upload(parquet_chunks(rows(), Row), "x.parquet", store=memory)
    assert pq.read_table(io.BytesIO(bytes(obstore.get(memory, "x.parquet").bytes()))).num_rows == 3000


def test_without_the_extra_the_import_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "try: import wme_async.integrations.cloud\n"
        "except ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'wme-async[cloud]'" in result.stdout


async def test_a_source_that_is_not_iterable_starts_no_upload(tmp_path: Path) -> None:
    chunks: Any = [b"not asynchronous"]
    before = asyncio.all_tasks()
    with pytest.raises(TypeError):
        await upload(chunks, (tmp_path / "x").as_uri())
    assert asyncio.all_tasks() == before


class Sized(Source):
    """A source that knows its size once its first bytes are there, as an archive does."""

    size: int | None = None

    async def __anext__(self) -> bytes:
        chunk = await super().__anext__()
        self.size = 300_000_000_000
        return chunk


def s3() -> Any:
    return obstore.store.S3Store("bucket", region="us-east-1", access_key_id="a", secret_access_key="b")


@pytest.mark.parametrize(
    ("source", "size", "part"),
    [
        (Source(3), None, 8 * MIB),
        (Source(3), 80_000_000_000, 8 * MIB),
        (Source(3), 84_000_000_000, 9 * MIB),
        (Sized(3), None, 29 * MIB),
        (Sized(3), 1_000_000_000_000, 96 * MIB),
        (Sized(0), None, 8 * MIB),
    ],
)
async def test_parts_are_large_enough_for_the_whole_object(
    monkeypatch: pytest.MonkeyPatch, source: Source, size: int | None, part: int
) -> None:
    sizes = []

    async def put(_store: Any, _key: str, taken: Any, *, chunk_size: int, **_options: Any) -> dict[str, Any]:
        sizes.append(chunk_size)
        async for _ in taken:
            pass
        return {}

    monkeypatch.setattr(obstore, "put_async", put)
    await upload(source, "a.bin", store=s3(), size=size)
    assert sizes == [part]
    assert max(size or 0, getattr(source, "size", None) or 0) <= 10_000 * part


async def test_more_bytes_than_a_store_takes_are_an_error_before_they_are_all_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def put(_store: Any, _key: str, taken: Any, **_options: Any) -> dict[str, Any]:
        async for _ in taken:
            pass
        return {}

    monkeypatch.setattr(obstore, "put_async", put)
    source = Source(100)
    with pytest.raises(OSError, match="10,000 parts"):
        await upload(source, "a.bin", store=s3(), part_size=1000)
    assert source.left == 90
    assert source.closed == 1
    assert (await upload(Source(20), "a.bin", store=obstore.store.MemoryStore(), part_size=1000)).size == 20 * MIB
