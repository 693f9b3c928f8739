"""Many archives in worker processes: the same records, the same errors, and no process left."""

import asyncio
import gzip
import io
import multiprocessing
import os
import pickle
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wme_async._archive import _many as many
from wme_async._archive import read_many
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
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one)


def fail_oddly(_pages: list[Page]) -> list[Page]:
    raise Unpicklable(1, 2)


def archive(path: Path, name: str, data: bytes) -> Path:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    path.write_bytes(sink.getvalue())
    return path


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
        assert records == [Page(f"p{each}", each) for each in range(1000 * number, 1000 * number + 500)]
        assert results[-1].records == []
        assert results[-1].statistics is not None
        assert (results[-1].statistics.records, results[-1].statistics.member) == (500, f"m{number}")
        assert all(result.statistics is None for result in results[:-1])


async def test_articles_come_over_whole(tmp_path: Path, shared_data: Path) -> None:
    raw = (shared_data / "articles.ndjson").read_bytes()
    path = archive(tmp_path / "x.tar.gz", "a", raw)
    [result, last] = await drain(read_many([path]))
    assert result.records == [msgspec.json.decode(line, type=Article) for line in raw.splitlines()]
    assert last.statistics.records == len(result.records)


async def test_a_function_in_the_worker_leaves_out_what_is_not_wanted(paths: list[Path]) -> None:
    found = await drain(read_many(paths[:1], type=Page, each=even_names))
    assert [name for result in found for name in result.records] == [f"p{number}" for number in range(0, 500, 2)]
    assert len(await drain(read_many(paths[:1], type=Page, each=nothing))) == 1


async def test_counts_alone(paths: list[Path]) -> None:
    found = await drain(read_many([str(path) for path in paths], type=Page, count_only=True, workers=1))
    assert [result.path for result in found] == [str(path) for path in paths]
    assert [result.statistics.records for result in found] == [500, 500, 500]


async def test_types_that_only_python_knows_come_over_too(paths: list[Path]) -> None:
    found = await drain(read_many(paths[:1], type=Loose))
    assert found[0].records[:1] == [Loose("p0")]


async def test_no_archives_give_nothing() -> None:
    assert await drain(read_many([], type=Page)) == []


async def test_a_damaged_archive_is_the_same_error_as_in_one_process(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:-10])
    with pytest.raises(ArchiveError, match=r"1.tar.gz: cut short"):
        await drain(read_many(paths, type=Page, workers=1))
    with pytest.raises(FileNotFoundError):
        await drain(read_many([paths[0].with_name("missing")], type=Page))


async def test_bad_records_go_where_they_are_told_to(paths: list[Path]) -> None:
    archive(paths[0], "m", b'{"name":1}\n{"name":"a"}\nbad\n')
    with pytest.raises(DecodeError) as caught:
        await drain(read_many(paths[:1], type=Page))
    assert (caught.value.member, caught.value.line, caught.value.record) == ("m", 1, b'{"name":1}')
    found = await drain(read_many(paths[:1], type=Page, on_bad_record="skip"))
    assert found[-1].statistics.bad_records == 2
    seen: list[Any] = []
    await drain(read_many(paths[:1], type=Page, on_bad_record=lambda error: seen.append(error.line)))

    async def later(error: DecodeError) -> None:
        seen.append(error.line)

    await drain(read_many(paths[:1], type=Page, on_bad_record=later))
    assert seen == [1, 3, 1, 3]


async def test_a_worker_that_dies_is_an_error(paths: list[Path]) -> None:
    with pytest.raises(WMEError, match=r"died \(exit code -9\) while it read .*0.tar.gz"):
        await drain(read_many(paths[:1], type=Page, each=die))


async def test_an_error_that_cannot_come_over_is_told_in_words(paths: list[Path]) -> None:
    with pytest.raises(WMEError, match="Unpicklable in a worker process: 1"):
        await drain(read_many(paths[:1], type=Page, each=fail_oddly))


async def test_leaving_early_kills_the_workers(tmp_path: Path) -> None:
    path = archive(tmp_path / "big.tar.gz", "m", lines(range(300_000)))
    async with read_many([path, path], type=Page, workers=2) as results:
        async for _ in results:
            break
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancelled_consumer_leaves_no_worker(tmp_path: Path) -> None:
    path = archive(tmp_path / "big.tar.gz", "m", lines(range(300_000)))
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


async def test_misuse_is_told_in_a_sentence(paths: list[Path]) -> None:
    reader = read_many(paths[:1], type=Page, count_only=True)
    with pytest.raises(RuntimeError, match="use `async with`"):
        await anext(reader)
    assert len(await drain(reader)) == 1
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


def test_the_worker_in_this_process(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's side of the talk, without a process around it."""
    import socket

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ours, theirs = socket.socketpair()
    paths[1].write_bytes(gzip.compress(b""))
    ours.sendall(b"".join(str(path).encode() + b"\0" for path in paths[:2]))
    ours.shutdown(socket.SHUT_WR)
    many._work(theirs, many._Job(Page, None, False, False, {}))
    frames = []
    with ours, ours.makefile("rb") as file:
        while head := file.read(many._HEAD.size):
            kind, length = many._HEAD.unpack(head)
            frames.append((kind, file.read(length)))
    assert [kind for kind, _ in frames] == [many._PACKED, many._DONE, many._FAILED]
    assert isinstance(pickle.loads(frames[2][1]), ArchiveError)
