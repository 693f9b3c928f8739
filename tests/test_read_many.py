"""Many archives in worker processes: the same records, the same errors, and no process left."""

import asyncio
import gzip
import io
import multiprocessing
import os
import pickle
import signal
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wme_async import read_many
from wme_async._archive import parallel as many  # the worker's side runs in threads here, for its coverage
from wme_async.errors import ArchiveError, DecodeError, WMEError
from wme_async.models import Article


class Page(msgspec.Struct):
    """Stands at the top of the module, since worker processes look it up by name."""

    name: str = ""
    identifier: int = 0


class Loose(msgspec.Struct):
    name: Any = None


def even_names(pages: list[Page]) -> list[str]:
    return [page.name for page in pages if page.identifier % 2 == 0]


def nothing(_pages: list[Page]) -> list[Page]:
    return []


def die(_pages: list[Page]) -> list[Page]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


class Unpicklable(Exception):
    def __reduce__(self) -> str | tuple[Any, ...]:  # other libraries teach `pickle` what it cannot do by itself
        raise TypeError("not to be pickled")


def fail_oddly(_pages: list[Page]) -> list[Page]:
    raise Unpicklable(1)


def fail_to_connect(_pages: list[Page]) -> list[Page]:
    raise ConnectionRefusedError("no database")


def archive(path: Path, name: str, data: bytes) -> Path:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    path.write_bytes(sink.getvalue())
    return path


def long_lines(count: int) -> bytes:
    """Return 1 KB for each record, more together than may wait between two processes."""
    return b"".join(b'{"name":"%s%d","identifier":%d}\n' % (b"p" * 1000, number, number) for number in range(count))


def lines(numbers: range) -> bytes:
    return b"".join(b'{"name":"p%d","identifier":%d}\n' % (number, number) for number in numbers)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [
        archive(tmp_path / f"{number}.tar.gz", f"m{number}", lines(range(1000 * number, 1000 * number + 500)))
        for number in range(3)
    ]


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


async def drain(reader: Any) -> list[Any]:
    async with reader as results:
        found = [result async for result in results]
    assert asyncio.all_tasks() == {asyncio.current_task()}
    return found


async def test_all_records_come_with_their_archive_in_its_order(paths: list[Path]) -> None:
    found = await drain(read_many(paths, type=Page, workers=2))
    for number, path in enumerate(paths):
        results = [result for result in found if result.path == str(path)]
        records = [record for result in results for record in result.records]
        assert records == [Page(f"p{item}", item) for item in range(1000 * number, 1000 * number + 500)]
        assert results[-1].records == []
        assert results[-1].statistics is not None
        assert (results[-1].statistics.records, results[-1].statistics.member) == (500, f"m{number}")
        assert all(result.statistics is None for result in results[:-1])


@pytest.mark.servers
async def test_counts_alone(paths: list[Path]) -> None:
    results = await drain(read_many([str(path) for path in paths], type=Page, count_only=True, workers=1))
    assert [result.path for result in results] == [str(path) for path in paths]
    assert [result.statistics.records for result in results] == [500, 500, 500]


async def test_no_archives_give_nothing() -> None:
    assert await drain(read_many([], type=Page)) == []


async def test_a_worker_that_dies_is_an_error(paths: list[Path]) -> None:
    with pytest.raises(WMEError, match=r"died \(exit code -9\) while it read .*0.tar.gz"):
        await drain(read_many(paths[:1], type=Page, each=die))


async def test_a_connection_of_the_users_own_that_fails_is_the_error(paths: list[Path]) -> None:
    with pytest.raises(ConnectionRefusedError, match="no database"):
        await drain(read_many(paths[:1], type=Page, each=fail_to_connect))


@pytest.mark.servers
async def test_a_connection_that_fails_where_bad_records_go_is_the_error(paths: list[Path]) -> None:
    def tell(_error: DecodeError) -> None:
        raise ConnectionResetError("no log")

    archive(paths[0], "m", b"bad\n")
    with pytest.raises(ConnectionResetError, match="no log"):
        await drain(read_many(paths[:1], type=Page, on_bad_record=tell))


@pytest.mark.servers
async def test_several_tasks_share_the_results_and_all_see_the_end(paths: list[Path]) -> None:
    async with read_many(paths, type=Page, workers=2) as results:

        async def consume() -> int:
            return sum([len(result.records) async for result in results])

        async with asyncio.timeout(30):
            assert sum(await asyncio.gather(*(consume() for _ in range(4)))) == 1500


async def test_a_task_that_waits_for_results_when_others_close_them_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    async with read_many([tmp_path / "never"], type=Page) as results:
        waiting = [asyncio.create_task(anext(results)) for _ in range(2)]
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        for waiter in waiting:
            with pytest.raises(RuntimeError, match="not open"):
                await waiter


async def test_a_task_that_waits_for_results_is_told_though_who_closes_them_is_cancelled(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    waiting: list[asyncio.Task[Any]] = []
    leaving = asyncio.Event()

    async def leave() -> None:
        async with read_many([tmp_path / "never"], type=Page) as results:
            waiting.extend(asyncio.create_task(anext(results)) for _ in range(2))
            await asyncio.sleep(0)
            leaving.set()

    task = asyncio.create_task(leave())
    await leaving.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    async with asyncio.timeout(30):
        for waiter in waiting:
            with pytest.raises(RuntimeError, match="not open"):
                await waiter


async def test_leaving_early_kills_the_workers(tmp_path: Path) -> None:
    path = archive(tmp_path / "big.tar.gz", "m", long_lines(8_000))
    async with read_many([path, path], type=Page, workers=1) as results:
        async for _ in results:
            break
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.servers
async def test_a_cancelled_consumer_leaves_no_worker(tmp_path: Path) -> None:
    path = archive(tmp_path / "big.tar.gz", "m", long_lines(8_000))
    begun = asyncio.Event()

    async def consume() -> None:
        async with read_many([path], type=Page) as results:
            async for _ in results:
                begun.set()
                await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_bad_records_and_errors_come_over(paths: list[Path]) -> None:
    archive(paths[0], "m", b'{"name":1}\n{"name":"a"}\nbad\n')
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    seen: list[Any] = []

    async def later(error: DecodeError) -> None:
        seen.append((error.member, error.line, error.record))

    found: list[Any] = []

    async def read() -> None:
        async with read_many(paths, type=Page, workers=1, on_bad_record=later) as results:
            async for result in results:
                found.append(result)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(ArchiveError, match=r"1.tar.gz: cut short"):
        await read()
    assert seen == [("m", 1, b'{"name":1}'), ("m", 3, b"bad")]
    assert found[0].records == [Page("a")]
    assert found[1].statistics.bad_records == 2


async def test_misuse_is_told_in_a_sentence(paths: list[Path]) -> None:
    reader = read_many([], type=Page, count_only=True)
    with pytest.raises(RuntimeError, match="use `async with`"):
        await anext(reader)
    assert await drain(reader) == []
    for call in (reader.__anext__, reader.__aenter__):
        with pytest.raises(RuntimeError):
            await call()
    with pytest.raises(TypeError, match="list of paths"):
        read_many("x.tar.gz", type=Page)
    with pytest.raises(ValueError, match="workers"):
        read_many(["x"], type=Page, workers=0)
    with pytest.raises(ValueError, match="count_only"):
        many.ManyReader(["x"], type=Page, each=even_names, count_only=True, workers=1, on_bad_record="raise")
    with pytest.raises(ValueError, match="max_record"):
        read_many(["x"], type=Page, max_record=0)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[bytes, Any]]]:
    """Run the worker's side of the talk without a process around it, and return what it says."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(paths: list[Path], type_: Any, **facts: Any) -> list[tuple[bytes, Any]]:
        ours, theirs = socket.socketpair()
        ours.sendall(b"".join(str(path).encode() + b"\0" for path in paths))
        ours.shutdown(socket.SHUT_WR)
        job = {"each": None, "count_only": False, "report_bad": False, "options": {}} | facts
        thread = threading.Thread(target=many.run_worker, args=(theirs, many.WorkerTask(type=type_, **job)))
        thread.start()
        frames = []
        with ours, ours.makefile("rb") as file:
            while head := file.read(many.FRAME_HEADER.size):
                kind, length = many.FRAME_HEADER.unpack(head)
                data = file.read(length)
                frames.append((kind, data if kind == many.PACKED else pickle.loads(data)))
        thread.join()
        return frames

    return run


def test_a_worker_packs_what_is_plain_data(work: Any, tmp_path: Path, shared_data: Path) -> None:
    raw = (shared_data / "articles.ndjson").read_bytes()
    path = archive(tmp_path / "x.tar.gz", "a", raw)
    *lists, (end, facts) = work([path], Article)
    assert {kind for kind, _ in lists} == {many.PACKED}
    assert end == many.DONE
    articles = [article for _, data in lists for article in msgspec.msgpack.decode(data, type=list[Article])]
    assert articles == [msgspec.json.decode(line, type=Article) for line in raw.splitlines()]
    assert facts.records == len(raw.splitlines())


def test_a_worker_pickles_types_that_only_python_knows(work: Any, paths: list[Path]) -> None:
    [(kind, found), _] = work(paths[:1], Loose)
    assert kind == many.PICKLED
    assert found[:1] == [Loose("p0")]


def test_a_function_in_the_worker_leaves_out_what_is_not_wanted(work: Any, paths: list[Path]) -> None:
    [(kind, found), _] = work(paths[:1], Page, each=even_names)
    assert kind == many.PICKLED
    assert found == [f"p{number}" for number in range(0, 500, 2)]
    assert [kind for kind, _ in work(paths, Page, each=nothing)] == [many.DONE] * 3


def test_a_worker_goes_on_after_an_error(work: Any, paths: list[Path]) -> None:
    paths[0].write_bytes(gzip.compress(b""))
    missing = paths[0].with_name("missing")
    frames = work([paths[0], missing, paths[1]], Page, count_only=True)
    assert [kind for kind, _ in frames] == [many.FAILED, many.FAILED, many.DONE]
    assert isinstance(frames[0][1], ArchiveError)
    assert isinstance(frames[1][1], FileNotFoundError)


def test_an_error_that_cannot_come_over_is_told_in_words(work: Any, paths: list[Path]) -> None:
    [(kind, error)] = work(paths[:1], Page, each=fail_oddly)
    assert kind == many.FAILED
    assert isinstance(error, WMEError)
    assert str(error) == "Unpicklable in a worker process: 1"


def test_a_worker_ends_when_nobody_listens(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ours, theirs = socket.socketpair()
    ours.sendall(str(paths[0]).encode() + b"\0")
    ours.close()
    many.run_worker(theirs, many.WorkerTask(Page, None, count_only=False, report_bad=False, options={}))
