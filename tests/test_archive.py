"""Reading archives: what comes out, what is refused, and what is left behind (nothing)."""

import asyncio
import contextlib
import gc
import gzip
import importlib.util
import io
import os
import pickle
import sys
import tarfile
import threading
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wme_async import ArchiveReader, read_archive
from wme_async.errors import ArchiveError, DecodeError, Interrupted
from wme_async.models import Article


class Page(msgspec.Struct):
    name: str = ""
    identifier: int = 0
    body: str = ""


Member = tuple[str, bytes]


def lines(*pages: Page) -> bytes:
    return b"".join(msgspec.json.encode(page) + b"\n" for page in pages)


def pages(count: int, start: int = 0, size: int = 10) -> list[Page]:
    return [Page(f"p{number}", number, chr(97 + number % 26) * size) for number in range(start, start + count)]


def packed(members: Iterable[Member]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    data = sink.getvalue()
    return data[: len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024]


def archive(members: Iterable[Member], pieces: int = 1) -> bytes:
    """Make a `.tar.gz` of as many gzip members as asked."""
    data = packed(members)
    step = -(-len(data) // pieces)
    return b"".join(gzip.compress(data[at : at + step]) for at in range(0, len(data), step))


def one(*found: Page) -> bytes:
    return archive([("a.ndjson", lines(*found))])


class Source:
    """An async source that says what was done with it.

    Args:
        data: What to give.
        size: Bytes a chunk.
        error: What to raise at the end.
        hang: Wait for ever at the end.
    """

    def __init__(self, data: bytes, size: int = 1000, error: Exception | None = None, *, hang: bool = False) -> None:
        self.data = data
        self.size = size
        self.error = error
        self.hang = hang
        self.at = 0
        self.closed_in: asyncio.Task[Any] | None = None
        self.read_in: set[asyncio.Task[Any] | None] = set()
        self.hanging = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self.read_in.add(asyncio.current_task())
        await asyncio.sleep(0)
        if self.at >= len(self.data):
            if self.error is not None:
                raise self.error
            if self.hang:
                self.hanging.set()
                await asyncio.get_running_loop().create_future()
            raise StopAsyncIteration
        chunk = self.data[self.at : self.at + self.size]
        self.at += len(chunk)
        return chunk

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed_in = asyncio.current_task()

    def assert_closed(self) -> None:
        assert self.closed_in is not None
        assert {self.closed_in} == self.read_in or not self.read_in


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("wme_async archive")]


def assert_nothing_is_left() -> None:
    assert not threads()
    assert asyncio.all_tasks() == {asyncio.current_task()}


ENGINES = [pytest.param(True, id="isal"), pytest.param(False, id="zlib")]


@pytest.fixture(params=ENGINES)
def use_isal(request: pytest.FixtureRequest) -> bool:
    if request.param and importlib.util.find_spec("isal") is None:
        pytest.skip("the extra `fast` is not installed")
    return bool(request.param)


@contextlib.contextmanager
def module_missing(name: str) -> Iterator[None]:
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


async def outcome(source: Any, **options: Any) -> tuple[list[Page], type[Exception] | None]:
    """Read all there is; return it with the type of the error that ended it."""
    records: list[Page] = []
    try:
        async with ArchiveReader(source, type=Page, **options) as reader:
            async for page in reader:
                records.append(page)  # noqa: PERF401 - what came before an error counts
    except (ArchiveError, DecodeError) as error:
        return records, type(error)
    finally:
        assert not threads()
    return records, None


async def collect(source: Any, **options: Any) -> list[Page]:
    async with ArchiveReader(source, type=Page, **options) as reader:
        return [page async for page in reader]


async def failure(source: Any, **options: Any) -> Any:
    with pytest.raises((ArchiveError, DecodeError)) as caught:
        await collect(source, **options)
    assert_nothing_is_left()
    return caught.value


# What comes out


@given(
    sizes=st.lists(st.integers(0, 30), max_size=5),
    pieces=st.integers(1, 4),
    chunk=st.integers(1, 4000),
    isal=st.booleans(),
    way=st.sampled_from(["records", "batches", "lines"]),
)
def test_all_records_come_out_in_order_however_the_bytes_arrive(
    sizes: list[int], pieces: int, chunk: int, isal: bool, way: str
) -> None:
    members = [pages(size, 100 * number, 50) for number, size in enumerate(sizes)]
    data = archive([(f"m_{number}.ndjson", lines(*each)) for number, each in enumerate(members)], pieces)

    async def run() -> list[Page]:
        source = Source(data, chunk)
        async with ArchiveReader(source, type=Page, use_isal=isal) as reader:
            if way == "batches":
                got = [page async for batch in reader.batches(max_bytes=200) for page in batch]
            elif way == "lines":
                got = [msgspec.json.decode(line, type=Page) async for batch in reader.lines() for line in batch]
            else:
                got = [page async for page in reader]
            assert reader.statistics().records == len(got)
        source.assert_closed()
        assert_nothing_is_left()
        return got

    assert asyncio.run(run()) == [page for record in members for page in record]


async def test_a_local_file_is_read_alike(tmp_path: Path, use_isal: bool) -> None:
    records = pages(2000, size=3000)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(archive([("a", lines(*records[:1500])), ("b", lines(*records[1500:]))]))
    async with read_archive(path, type=Page, use_isal=use_isal) as reader:
        assert [page async for page in reader] == records
        facts = reader.statistics()
    assert (facts.records, facts.bad_records, facts.members, facts.member) == (2000, 0, 2, "b")
    assert facts.compressed_bytes == path.stat().st_size
    assert facts.bytes == len(gzip.decompress(path.read_bytes()))
    assert_nothing_is_left()


async def test_real_articles_come_out_as_they_went_in(shared_data: Path, tmp_path: Path, use_isal: bool) -> None:
    raw = (shared_data / "articles.ndjson").read_bytes()
    path = tmp_path / "real.tar.gz"
    path.write_bytes(archive([("enwiki_namespace_0_0.ndjson", raw * 3)]))
    async with read_archive(str(path), use_isal=use_isal) as articles:
        records = [article async for article in articles]
    assert records == [msgspec.json.decode(line, type=Article) for line in raw.splitlines()] * 3


async def test_an_archive_without_members_is_whole(use_isal: bool) -> None:
    assert await collect(Source(gzip.compress(bytes(1024))), use_isal=use_isal) == []


async def test_zeros_after_a_gzip_member_are_padding(use_isal: bool) -> None:
    data = packed([("a", lines(*pages(3)))])
    whole = gzip.compress(data[:700]) + bytes(1000) + gzip.compress(data[700:]) + bytes(512)
    for size in (1, 700, 10**6):
        assert await collect(Source(whole, size), use_isal=use_isal) == pages(3)


async def test_a_line_of_20_mib_comes_out_whole(use_isal: bool) -> None:
    big = Page("big", 1, "x" * (20 << 20))
    assert await collect(Source(one(*pages(1), big, *pages(1)), 100_000), use_isal=use_isal) == [
        *pages(1),
        big,
        *pages(1),
    ]


async def test_a_small_struct_takes_only_what_it_names() -> None:
    class Name(msgspec.Struct):
        name: str

    async with ArchiveReader(Source(one(*pages(2))), type=Name) as reader:
        assert [item async for item in reader] == [Name("p0"), Name("p1")]


async def test_members_can_be_selected() -> None:
    data = archive([(f"m{number}", lines(*pages(2, number))) for number in range(3)])
    assert await collect(Source(data), select=lambda name: name != "m1") == [*pages(2), *pages(2, 2)]


async def test_lists_never_span_members_and_are_bounded() -> None:
    data = archive([("a", lines(*pages(50))), ("b", lines(*pages(50)))])
    async with ArchiveReader(Source(data), type=Page) as reader:
        seen = [(len(batch), reader.statistics().member) async for batch in reader.batches(max_bytes=1000)]
    assert sum(size for size, _ in seen) == 100
    assert max(size for size, _ in seen) < 50
    assert [member for _, member in seen] == sorted(str(member) for _, member in seen)


async def test_records_of_a_slow_source_do_not_wait_for_more_bytes(use_isal: bool) -> None:
    """Three records come in one piece; the source goes on only when the consumer has them."""
    engine = zlib.compressobj(wbits=31)
    data = packed([("a", lines(*pages(6, size=20_000)))])
    half = 512 + len(lines(*pages(3, size=20_000)))
    first = engine.compress(data[:half]) + engine.flush(zlib.Z_SYNC_FLUSH)
    tail = engine.compress(data[half:]) + engine.flush()
    seen = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield first
        await asyncio.wait_for(seen.wait(), 10)
        yield tail

    records = []
    async with ArchiveReader(source(), type=Page, use_isal=use_isal) as reader:
        async for page in reader:
            records.append(page)
            if len(records) == 3:
                seen.set()
    assert records == pages(6, size=20_000)


def test_it_works_on_uvloop(use_isal: bool) -> None:
    uvloop = pytest.importorskip("uvloop", reason="the extra `fast` is not installed")

    async def run() -> list[Page]:
        records = await collect(Source(one(*pages(100))), use_isal=use_isal)
        assert_nothing_is_left()
        return records

    assert uvloop.run(run()) == pages(100)


def test_it_works_without_isal_installed() -> None:
    with module_missing("isal.igzip_lib"):
        assert asyncio.run(collect(Source(one(*pages(10))))) == pages(10)


# What is refused


@given(cut=st.integers(0, 10**6), isal=st.booleans(), pieces=st.integers(1, 3))
def test_an_archive_cut_anywhere_is_an_error_after_the_records_before_it(cut: int, isal: bool, pieces: int) -> None:
    records = pages(60, size=40)
    data = archive([("a", lines(*records[:40])), ("b", lines(*records[40:]))], pieces)
    got, error = asyncio.run(outcome(Source(data[: cut % len(data)]), use_isal=isal))
    assert error is ArchiveError
    assert got == records[: len(got)]


def standard(data: bytes) -> list[Page] | None:
    """Return what the standard library reads of an archive; None where it finds it damaged."""
    records: list[Page] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data)), mode="r:") as archive:
            for member in archive:
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
                if len(content) < member.size:
                    return None
                records += [msgspec.json.decode(line, type=Page) for line in content.split(b"\n") if line.strip()]
    except (OSError, EOFError, zlib.error, tarfile.TarError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return records


@given(
    inside=st.booleans(),
    at=st.integers(0, 10**6),
    start=st.integers(0, 10**6),
    size=st.integers(0, 1200),
    gone=st.integers(0, 1200),
    isal=st.booleans(),
)
def test_bytes_moved_about_give_what_the_standard_library_reads_or_an_error(
    inside: bool, at: int, start: int, size: int, gone: int, isal: bool
) -> None:
    """A run of the bytes is put over another one: headers, members, ends of gzip files in places they do not belong."""
    whole = packed([("a", lines(*pages(20, size=40))), ("b", lines(*pages(5)))])
    data = bytearray(whole if inside else gzip.compress(whole[:1500], 0) + gzip.compress(whole[1500:], 0))
    at, start = at % len(data), start % len(data)
    data[at : at + gone] = data[start : start + size]
    spliced = gzip.compress(bytes(data), 1) if inside else bytes(data)

    async def read() -> list[Page]:
        async with ArchiveReader(Source(spliced, 700), type=Page, use_isal=isal) as reader:
            return [page async for page in reader]

    try:
        records = asyncio.run(read())
    except (ArchiveError, DecodeError):
        return
    assert records == standard(spliced)


@given(at=st.integers(10, 10**6), value=st.integers(1, 255), isal=st.booleans())
def test_a_changed_byte_never_passes_for_whole(at: int, value: int, isal: bool) -> None:
    records = pages(60, size=40)
    data = bytearray(archive([("a", lines(*records))]))
    data[10 + at % (len(data) - 10)] ^= value
    got, error = asyncio.run(outcome(Source(bytes(data)), use_isal=isal))
    assert error is not None or got == records


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "x: not a gzip file but nothing at all"),
        (b"<html><body>Sign in", "not a gzip file but an HTML page"),
        (b"<?xml?><Error><Code>NoSuchKey</Code>", "not a gzip file but an XML error of the object store .NoSuchKey"),
        (b'{"status":403}', "not a gzip file but JSON"),
        (packed([("a", b"")]), "not a gzip file but a tar"),
        (b"\x1f", "x: cut short"),
        (one(*pages(9))[:-1], "cut short"),
        (one(*pages(9))[:-8] + bytes(8), "damaged"),
        (one(*pages(9)) + b"garbage that goes on and on", "damaged"),
        (one(*pages(9)) + b"\x1f\x8b\x07" + bytes(20), "damaged"),
        (one(*pages(9))[:60] + b"\xff" * 60, "damaged|cut short"),
        (gzip.compress(b""), "contains no tar"),
        (gzip.compress(b"hello world" * 100), "damaged header"),
        (gzip.compress(packed([("a", lines(*pages(9)))])[:-1024]), "no end marker"),
        (gzip.compress(packed([("a", lines(*pages(9)))])[:700]), "the tar inside is cut short"),
        (one() + one(), "more after the end of the tar"),
        (gzip.compress(bytes(3 << 20)), "padding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # compressed bytes hold the time
)
async def test_what_is_no_whole_archive_is_an_error_that_says_so(data: bytes, words: str, use_isal: bool) -> None:
    for size in (3, 10**6):
        with pytest.raises(ArchiveError, match=words) as caught:
            await collect(Source(data, size), label="x", use_isal=use_isal)
        assert caught.value.offset is not None
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        chain: list[BaseException] = [caught.value]
        for error in chain:
            assert type(pickle.loads(pickle.dumps(error))) is type(error)
            chain += [link for link in (error.__cause__, error.__context__) if link is not None]
        assert_nothing_is_left()


async def test_an_error_stays_however_often_it_is_asked_for() -> None:
    async with ArchiveReader(Source(one(*pages(3))[:-5]), type=Page, use_isal=False) as reader:
        for _ in range(2):
            with pytest.raises(ArchiveError) as caught:
                [page async for page in reader]
    assert (caught.value.member, caught.value.url) == ("a.ndjson", None)


async def test_the_end_stays_the_end() -> None:
    async with ArchiveReader(Source(one(*pages(3))), type=Page) as reader:
        assert len([page async for page in reader]) == 3
        assert [page async for page in reader] == []
        assert [page async for page in reader.batches()] == []


async def test_a_bomb_is_bounded_in_memory_and_told_early(use_isal: bool) -> None:
    bomb = gzip.compress(packed([("a", b" " * (64 << 20))]), 9)
    assert len(bomb) < 100_000
    async with ArchiveReader(Source(bomb, 10**6), type=Page, max_record=100_000, use_isal=use_isal) as reader:
        with pytest.raises(DecodeError):
            await anext(reader)
        assert reader.statistics().bytes < 32 << 20
    assert_nothing_is_left()


async def test_a_file_of_which_nothing_more_comes_can_be_closed_at_once(tmp_path: Path, use_isal: bool) -> None:
    """Zeros behind the end are padding; here it would take minutes to pass over them."""
    path = tmp_path / "a.tar.gz"
    path.write_bytes(one(*pages(3)))
    os.truncate(path, 1 << 40)
    async with asyncio.timeout(10):
        async with read_archive(path, type=Page, use_isal=use_isal) as reader:
            assert await anext(reader) == pages(1)[0]
        assert_nothing_is_left()


# Bad records

BAD = b'{"name":"a"}\n{"name":1}\n\n\r\n{"name":"b"}\nnull\n[1]\n{"name":"\xff"}\n{"name":"c"'


async def test_a_bad_record_is_an_error_with_its_place_and_the_next_can_be_read() -> None:
    errors: list[DecodeError] = []
    names: list[str] = []
    async with ArchiveReader(Source(archive([("m_0", b""), ("m_1", BAD)])), type=Page, label="x") as reader:
        while True:
            try:
                names.append((await anext(reader)).name)
            except DecodeError as error:
                errors.append(error)
            except StopAsyncIteration:
                break
        assert reader.statistics().bad_records == len(errors)
    assert names == ["a", "b"]
    assert [(error.member, error.line, error.offset, error.record) for error in errors] == [
        ("m_1", 2, 13, b'{"name":1}'),
        ("m_1", 6, 40, b"null"),
        ("m_1", 7, 45, b"[1]"),
        ("m_1", 8, 49, b'{"name":"\xff"}'),
        ("m_1", 9, 62, b'{"name":"c"'),
    ]
    with pytest.raises(msgspec.ValidationError) as reason:
        msgspec.json.decode(b'{"name":1}', type=Page)
    assert str(errors[0]) == f"line 2 of m_1 in x, at byte 13: {reason.value}"
    assert str(errors[4]).startswith("line 9 of m_1 in x, at byte 62: ")


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("kind", ["skip", "function", "coroutine"])
async def test_bad_records_go_where_they_are_told_to(kind: str, batches: bool) -> None:
    seen: list[Any] = []
    order: list[Any] = []

    async def later(error: DecodeError) -> None:
        await asyncio.sleep(0)
        order.append(error.line)
        seen.append(error.line)

    def now(error: DecodeError) -> None:
        order.append(error.line)
        seen.append(error.line)

    on_bad_record: Any = {"skip": "skip", "function": now, "coroutine": later}[kind]
    async with ArchiveReader(Source(archive([("m", BAD)])), type=Page, on_bad_record=on_bad_record) as reader:
        if batches:
            async for batch in reader.batches():
                order.extend(page.name for page in batch)
        else:
            async for page in reader:
                order.append(page.name)  # noqa: PERF401 - the order between both is the point
        assert reader.statistics().bad_records == 5
    assert [entry for entry in order if isinstance(entry, str)] == ["a", "b"]
    if kind != "skip":
        assert order == ["a", 2, "b", 6, 7, 8, 9]


async def test_an_error_of_the_function_for_bad_records_ends_the_reading() -> None:
    def refuse(error: DecodeError) -> None:
        raise LookupError(error.line)

    source = Source(archive([("m", BAD)]))
    with pytest.raises(LookupError):
        await collect(source, on_bad_record=refuse)
    source.assert_closed()
    assert_nothing_is_left()


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_bad_record_stays_until_the_function_for_it_has_worked(how: str, batches: bool) -> None:
    seen: list[Any] = []

    async def tell(error: DecodeError) -> None:
        seen.append(error.line)
        if len(seen) == 1:
            if how == "fails":
                raise OSError("the dead-letter disk is full")
            asking.cancel()
            await asyncio.Event().wait()

    async with ArchiveReader(Source(archive([("m", BAD)])), type=Page, on_bad_record=tell) as reader:
        pages: Any = reader.batches() if batches else reader
        await anext(pages)
        asking = asyncio.ensure_future(anext(pages))
        with pytest.raises(OSError if how == "fails" else asyncio.CancelledError):
            await asking
        assert reader.statistics().bad_records == 0
        await anext(pages)
        assert (seen, reader.statistics().bad_records) == ([2, 2], 1)


async def test_a_record_above_the_limit_is_one_bad_record(use_isal: bool) -> None:
    records = [*pages(2), Page("big", 9, "x" * 3_000_000), *pages(2)]
    seen: list[DecodeError] = []
    got = await collect(Source(one(*records), 5000), max_record=1_000_000, on_bad_record=seen.append, use_isal=use_isal)
    assert got == [*pages(2), *pages(2)]
    assert [(error.line, error.offset) for error in seen] == [(3, len(lines(*pages(2))))]
    assert seen[0].record is not None
    assert len(seen[0].record) == 4096
    assert "longer than max_record (1000000 bytes)" in str(seen[0])
    error = await failure(Source(one(*records), 5000), max_record=1_000_000, use_isal=use_isal)
    assert error.line == 3


async def test_lists_before_a_bad_record_are_given_first() -> None:
    data = archive([("m", lines(*pages(3)) + b"bad\n" + lines(*pages(2)))])
    async with ArchiveReader(Source(data), type=Page) as reader:
        batches = reader.batches()
        assert await anext(batches) == pages(3)
        with pytest.raises(DecodeError):
            await anext(batches)
        assert await anext(batches) == pages(2)


# What is left behind


async def test_leaving_early_closes_the_source_in_the_task_that_read_it(use_isal: bool) -> None:
    # Half an archive, so that the source has more to come however far ahead it is read.
    data = one(*pages(50_000))
    source = Source(data[: len(data) // 2], 100, hang=True)
    async with ArchiveReader(source, type=Page, use_isal=use_isal) as reader:
        async for _ in reader:
            break
    source.assert_closed()
    assert_nothing_is_left()


async def test_an_exception_of_the_consumer_comes_out_and_nothing_is_left(tmp_path: Path, use_isal: bool) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(one(*pages(50_000)))

    async def consume() -> None:
        async with read_archive(path, type=Page, use_isal=use_isal) as reader:
            async for _ in reader:
                raise LookupError

    with pytest.raises(LookupError):
        await consume()
    assert_nothing_is_left()


async def test_a_consumer_that_waits_can_be_cancelled(use_isal: bool) -> None:
    source = Source(one(*pages(50))[:-20], hang=True)

    async def consume() -> None:
        async with ArchiveReader(source, type=Page, use_isal=use_isal) as reader:
            async for _ in reader:
                pass

    task = asyncio.create_task(consume())
    await asyncio.wait_for(source.hanging.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    source.assert_closed()
    assert_nothing_is_left()


async def test_a_wait_that_timed_out_loses_no_record() -> None:
    gate = asyncio.Event()
    data = archive([("a", lines(*pages(400, size=2000)))])

    async def source() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        await gate.wait()
        yield data[len(data) // 2 :]

    records: list[Page] = []
    async with ArchiveReader(source(), type=Page, use_isal=False) as reader:
        while not records:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    async for page in reader:
                        records.append(page)  # noqa: PERF401 - what came before the time ran out is kept
        assert 0 < len(records) < 400
        gate.set()
        async for page in reader:
            records.append(page)  # noqa: PERF401
    assert records == pages(400, size=2000)


async def test_a_source_that_hangs_while_it_closes_is_nudged_and_waited_for() -> None:
    reached = asyncio.Event()
    closing = asyncio.Event()
    done = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield one(*pages(3))[:50]
            reached.set()
            await asyncio.get_running_loop().create_future()
        finally:
            closing.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                done.set()

    async def consume() -> None:
        async with ArchiveReader(source(), type=Page) as reader:
            await anext(reader)

    task = asyncio.create_task(consume())
    await asyncio.wait_for(reached.wait(), 10)
    task.cancel()
    await asyncio.wait_for(closing.wait(), 10)
    task.cancel()
    await asyncio.wait_for(done.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_nothing_is_left()


async def test_an_error_of_the_source_comes_out_after_the_records_before_it(use_isal: bool) -> None:
    data = archive([("a", lines(*pages(500, size=3000)))])
    error = Interrupted("the connection broke")
    source = Source(data[:-30], error=error)
    got: list[Page] = []

    async def consume() -> None:
        async with ArchiveReader(source, type=Page, use_isal=use_isal) as reader:
            async for page in reader:
                got.append(page)  # noqa: PERF401 - the list is looked at after the error

    with pytest.raises(Interrupted) as caught:
        await consume()
    assert caught.value is error
    assert got == pages(500, size=3000)[: len(got)]
    source.assert_closed()
    assert_nothing_is_left()


async def test_an_error_of_the_source_at_its_very_end_is_not_lost() -> None:
    with pytest.raises(Interrupted):
        await collect(Source(one(*pages(3)), error=Interrupted("late")))

    class Unclosable(Source):
        async def aclose(self) -> None:
            raise Interrupted("at close")

    with pytest.raises(Interrupted, match="at close"):
        await collect(Unclosable(one(*pages(3))))
    assert_nothing_is_left()


async def test_a_consumer_that_left_is_not_told_of_errors_of_the_source() -> None:
    class Unclosable(Source):
        async def aclose(self) -> None:
            raise Interrupted("at close")

    async with ArchiveReader(Unclosable(one(*pages(9)), 10), type=Page):
        pass
    assert_nothing_is_left()


async def test_a_consumer_that_sleeps_stops_the_reading_of_the_source(use_isal: bool) -> None:
    """What was read ahead is bounded by the two windows, whatever the size of the archive."""
    data = gzip.compress(packed([("a", lines(*pages(400, size=100_000)))]), 0)
    source = Source(data, 10_000)
    async with ArchiveReader(source, type=Page, window=100_000, use_isal=use_isal) as reader:
        await anext(reader)
        position, turns = -1, 0
        while turns < 50:  # until the source has rested for a while, since both windows are full
            turns = turns + 1 if source.at == position else 0
            position = source.at
            await asyncio.sleep(0.002)
        assert source.at < len(data) // 2
        assert len([page async for page in reader]) == 399


async def test_others_have_their_turn_while_records_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it, the pauses depend on the speed of the machine.
    monkeypatch.setattr("wme_async._archive.reader._SLICE_SECONDS", 0)
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    data = archive([("a", lines(*pages(100, size=20_000)) + b"\n" * 300_000)])
    async with ArchiveReader(Source(data, 10**6), type=Page) as reader:
        task = asyncio.create_task(beside())
        await anext(reader)
        before = turns
        async for _ in reader:
            pass
        task.cancel()
    assert turns - before > (2_000_000 + 300_000 * 64) // (128 * 1024)


@pytest.mark.parametrize("blank", [b"\n", b" \n"])
async def test_empty_lines_without_end_are_told_after_the_records(
    blank: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A million lines take seconds.
    monkeypatch.setattr("wme_async._archive.reader._FREE_EMPTY_LINES", 5000)
    data = archive([("a", lines(*pages(3)) + blank * 8000)])
    async with ArchiveReader(Source(data, 10**6), type=Page) as reader:
        records = []
        with pytest.raises(ArchiveError, match=r"empty lines and 3 records .*remove"):
            while True:
                records.append(await anext(reader))
        assert records == pages(3)
    # Ten for each record are no harm, whatever the number.
    data = archive([("a", lines(*pages(1)) * 1000 + blank * 14_000)])
    async with ArchiveReader(Source(data, 10**6), type=Page) as reader:
        assert len([page async for page in reader]) == 1000


async def test_lines_come_without_empty_and_overlong_ones() -> None:
    first, last = lines(*pages(1)), lines(*pages(1, 1))
    data = archive([("a", first + b"\n \t \r\n" + b"x" * 2000 + b"\n {\n" + last + b"no line feed")])
    errors: list[DecodeError] = []
    async with ArchiveReader(Source(data, 100), type=Page, max_record=1000, on_bad_record=errors.append) as reader:
        batches = [batch async for batch in reader.lines()]
        assert reader.statistics().records == 4
    assert all(batches)
    # They are what is there, whether it is JSON or not, and outlive the archive.
    assert [bytes(line) for batch in batches for line in batch] == [
        first.strip(), b" {", last.strip(), b"no line feed",
    ]  # fmt: skip
    assert [error.line for error in errors] == [4]


async def test_a_reader_that_is_not_closed_says_so_and_its_thread_ends() -> None:
    readers = [ArchiveReader(Source(one(*pages(50_000)), 100, hang=True), type=Page)]
    await readers[0].__aenter__()
    await anext(readers[0])
    [pump] = [task for task in asyncio.all_tasks() if task.get_name() == "read the archive"]

    def drop() -> None:
        readers.clear()
        gc.collect()

    [thread] = threads()
    with pytest.warns(ResourceWarning, match="was not closed"):
        drop()
    await asyncio.to_thread(thread.join, 10)
    pump.cancel()
    await asyncio.wait([pump])
    assert_nothing_is_left()


def test_a_thread_survives_the_end_of_its_loop(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(archive([("a", lines(*pages(200, size=100_000)))]))
    loop = asyncio.new_event_loop()
    readers = [ArchiveReader(path, type=Page)]
    loop.run_until_complete(readers[0].__aenter__())
    loop.close()
    [thread] = threads()
    with pytest.warns(ResourceWarning, match="was not closed"):  # noqa: PT031  # the list holds the only reference
        readers.clear()
        gc.collect()
    thread.join(10)
    assert not threads()


# Misuse


async def test_a_path_that_cannot_be_opened_fails_on_entering(tmp_path: Path) -> None:
    for path, kind in ((tmp_path / "missing", FileNotFoundError), (tmp_path, IsADirectoryError)):
        reader = read_archive(path)
        with pytest.raises(kind):
            await reader.__aenter__()
        assert_nothing_is_left()


async def test_misuse_is_told_in_a_sentence() -> None:
    reader = ArchiveReader(Source(one(*pages(3))), type=Page)
    with pytest.raises(RuntimeError, match="use `async with`"):
        await anext(reader)
    async with reader:
        with pytest.raises(RuntimeError, match="opened once"):
            await reader.__aenter__()
        assert await anext(reader) == pages(1)[0]
        assert repr(reader) == "<ArchiveReader the archive open, 1 records>"
    with pytest.raises(RuntimeError, match="closed"):
        await anext(reader)
    with pytest.raises(RuntimeError, match="opened once"):
        await reader.__aenter__()
    await reader.aclose()
    never = ArchiveReader(Source(b""), type=Page)
    await never.aclose()
    assert repr(never) == "<ArchiveReader the archive closed, 0 records>"


async def test_two_tasks_cannot_wait_for_one_archive() -> None:
    source = Source(b"\x1f\x8b", hang=True)
    async with ArchiveReader(source, type=Page) as reader:
        first = asyncio.create_task(reader.__anext__())
        await asyncio.wait_for(source.hanging.wait(), 10)
        with pytest.raises(RuntimeError, match="one task at a time"):
            await anext(reader)
        first.cancel()
        await asyncio.wait([first])


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"source": 5}, TypeError),
        ({"source": [b"x"]}, TypeError),
        ({"max_record": 0}, ValueError),
        ({"window": 0}, ValueError),
        ({"on_bad_record": "ignore"}, ValueError),
        ({"select": "_0.ndjson"}, TypeError),
        ({"type": dict[str, int] | dict[str, str]}, TypeError),
    ],
)
def test_invalid_arguments_are_an_error(options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        ArchiveReader(**{"source": "x", "type": Page, **options})


def test_paths_may_be_strings(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(one(*pages(3)))
    assert asyncio.run(collect(str(path))) == pages(3)
