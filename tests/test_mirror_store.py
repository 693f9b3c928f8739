"""The SQLite store of a mirror: the conformance suite, files that are damaged, deleted, or of another version."""

import asyncio
import contextlib
import errno
import multiprocessing
import sqlite3
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from random import Random

import msgspec
import pytest
from failing_sqlite import Trouble

from wme_async import DataError, DecodeError
from wme_async.mirror import Marks, MirrorReader, SQLiteStore
from wme_async.mirror.codecs import Compressor
from wme_async.mirror.conformance import CHECKS, check_all
from wme_async.mirror.rule import Mask, Page, Picture


def page(title="A", page_id=1, revision=1, created=5, record=b'{"name":"A"}'):
    return Page(
        project="testwiki", title=title, page_id=page_id, revision=revision, created=created, published=created,
        digest=b"12345678", record=record,
    )  # fmt: skip


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_sqlite_store_conforms(check, codec, tmp_path):
    if codec == "zstd":
        pytest.importorskip("zstandard")
    # Those with zlib keep an index as well, which must not matter.
    await check(lambda: SQLiteStore(tmp_path / "mirror.db", codec=codec, search=codec == "zlib"))


async def test_all_checks_run_over_stores_of_their_own(tmp_path):
    count = iter(range(100))

    def storage():
        path = tmp_path / f"{next(count)}.db"
        return lambda: SQLiteStore(path)

    await check_all(storage)
    assert next(count) == len(CHECKS)


async def test_the_path_and_the_codec_are_checked(tmp_path):
    with pytest.raises(ValueError, match="memory"):
        SQLiteStore(":memory:")
    with pytest.raises(ValueError, match="codec"):
        SQLiteStore("mirror.db", codec="lz4")
    with pytest.raises(TypeError):
        SQLiteStore(5)  # type: ignore[arg-type]
    assert str(tmp_path) in repr(SQLiteStore(tmp_path / "mirror.db"))


async def test_a_store_is_used_between_open_and_close(tmp_path):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.close()
    with pytest.raises(RuntimeError, match="not open"):
        await store.changes(0, 1)
    with pytest.raises(RuntimeError, match="not open"):
        await store.apply(Picture(), Marks())
    await store.open()
    with pytest.raises(RuntimeError, match="open already"):
        await store.open()
    await store.close()
    with pytest.raises(RuntimeError, match="not open"):
        await store.get("testwiki", title="A")


def hold(path, started, done):
    import asyncio

    async def main():
        store = SQLiteStore(path)
        await store.open()
        started.set()
        done.wait(60)
        await store.close()

    asyncio.run(main())


async def test_an_opening_that_is_cancelled_leaves_the_store_closed_and_unlocked(tmp_path):
    store = SQLiteStore(tmp_path / "mirror.db")
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)  # a thread opens it now
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    other = SQLiteStore(tmp_path / "mirror.db")
    await other.open()
    await other.close()


async def test_a_status_at_the_same_time_keeps_no_mirror_from_its_start(tmp_path):
    reader, ended = SQLiteStore(tmp_path / "mirror.db"), asyncio.Event()
    await reader.open()
    await reader.close()
    await reader.open(writing=False)

    async def ask() -> None:
        while not ended.is_set():
            assert await reader.has_writer() in {True, False}

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        for _ in range(20):
            store = SQLiteStore(tmp_path / "mirror.db")
            await store.open()
            await store.close()
        ended.set()
    await reader.close()


async def test_a_second_process_that_writes_is_refused_in_words(tmp_path):
    context = multiprocessing.get_context("spawn")
    started, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "mirror.db", started, done))
    process.start()
    try:
        assert started.wait(60)
        with pytest.raises(BlockingIOError, match=f"process {process.pid} on .*: stop it"):
            await SQLiteStore(tmp_path / "mirror.db").open()
    finally:
        done.set()
        process.join(60)
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    await store.close()


async def test_a_file_that_is_not_a_mirror_is_not_touched(tmp_path):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    content = other.read_bytes()
    with pytest.raises(DataError, match="another program"):
        await SQLiteStore(other).open()
    assert other.read_bytes() == content
    text = tmp_path / "text.db"
    text.write_bytes(b"no database at all" * 100)
    with pytest.raises(DataError, match="mirror"):
        await SQLiteStore(text).open()
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(DataError, match="empty"):
        await SQLiteStore(empty).open()
    with pytest.raises(OSError, match="folder"):
        await SQLiteStore(tmp_path).open()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        await SQLiteStore(tmp_path / "none.db").open(writing=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "other.db", "text.db"]


@pytest.mark.parametrize(("version", "words"), [(99, "newer version.*upgrade"), (0, "format 0.*load the mirror anew")])
async def test_other_versions_are_refused_in_words(tmp_path, version, words):
    path = tmp_path / "mirror.db"
    store = SQLiteStore(path)
    await store.open()
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with pytest.raises(DataError, match=words):
        await SQLiteStore(path).open()


@pytest.mark.posix
async def test_a_store_that_is_deleted_under_work_is_an_error(tmp_path):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    await store.apply(Picture([page()]), Marks())
    (tmp_path / "mirror.db").unlink()
    for _ in range(2):
        with pytest.raises(DataError, match="deleted or replaced"):
            await store.apply(Picture([page("B", 2)]), Marks())
    await store.close()


async def test_a_full_disk_stops_it_and_it_goes_on_later(tmp_path, monkeypatch):
    Trouble(monkeypatch, "INTO records", value=None, times=1)
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    news = [page(f"{number}", number) for number in range(1, 6)]
    with pytest.raises(OSError, match="free some space") as caught:
        await store.apply(Picture(news), Marks(values={"positions": {"0": "2"}}))
    assert caught.value.errno == errno.ENOSPC
    counts = await store.counts()
    assert (counts.pages, counts.seq, await store.value("positions", "0")) == (0, 0, None)
    assert (await store.apply(Picture(news), Marks(values={"positions": {"0": "2"}}))).seq == 5
    await store.close()
    store = SQLiteStore(tmp_path / "mirror.db")
    assert (await store.open()).values["positions"] == {"0": "2"}
    assert (await store.counts()).pages == 5
    await store.close()


async def test_a_damaged_record_is_an_error_that_names_the_page(tmp_path):
    path = tmp_path / "mirror.db"
    store = SQLiteStore(path, codec="zlib")
    await store.open()
    await store.apply(Picture([page(record=b"x" * 500)]), Marks())
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET record = x'00'")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="the record of 'A'"):
        await store.get("testwiki", title="A")
    await store.close()


@pytest.mark.parametrize("codec", ["zstd", "zlib", "zlib without isal"])
async def test_records_of_any_size_and_number_are_stored_whole(tmp_path, monkeypatch, codec):
    if codec == "zlib without isal":
        monkeypatch.setitem(sys.modules, "isal", None)
    elif codec == "zstd":
        pytest.importorskip("zstandard")
    name = codec.split()[0]
    random = Random(1)
    records = [random.choice([b"x" * size, random.randbytes(size)]) for size in (1, 99, 100, 101, 5000, 300_000) * 17]
    records = [b'"%s"' % record for record in records]
    path = tmp_path / "mirror.db"
    store = SQLiteStore(path, codec=name)
    await store.open()
    for start, stop in ((0, 1), (1, 10), (10, len(records))):
        rows = [page(str(number), number, record=memoryview(records[number])) for number in range(start, stop)]
        await store.apply(Picture(rows), Marks())
    entries = [entry async for batch in store.entries() for entry in batch]
    assert [(entry.page_id, entry.record) for entry in entries] == list(enumerate(records))
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT codec, record FROM records ORDER BY id").fetchall()
    if name == "zlib":
        # Any reader of the documented format can read them.
        assert [zlib.decompress(data) if codec == 1 else data for codec, data in rows] == records
    assert [codec for codec, _ in rows] == [
        0 if len(record) < 100 else {"zlib": 1, "zstd": 2}[name] for record in records
    ]
    assert sum(len(data) for _, data in rows) < 0.7 * sum(map(len, records))


async def test_pictures_that_wait_for_each_other_are_all_stored(tmp_path):
    random = Random(2)
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()

    def picture(numbers, created):
        records = {number: b'"%s"' % random.randbytes(50_000) for number in numbers}
        rows = [page(str(number), number, created=created, record=record) for number, record in records.items()]
        return Picture(rows), records

    first, records = picture(range(3), 1)
    await store.apply(first, Marks())  # most of it is new, so the store compresses ahead from now on
    pictures = [picture(range(start, start + 60), start) for start in (10, 40, 70, 20)]
    await asyncio.gather(*(store.apply(rows, Marks()) for rows, _ in pictures))
    for _, part in (pictures[0], pictures[3], pictures[1], pictures[2]):  # by time
        records |= part
    entries = {entry.page_id: entry.record async for batch in store.entries() for entry in batch}
    assert entries == records
    await store.close()


async def test_a_picture_that_could_not_be_compressed_ahead_leaves_nothing_to_later_ones(tmp_path, monkeypatch):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    buffers = [bytearray(b"%d" % number * 1_500_000) for number in range(4)]
    views = [memoryview(buffer) for buffer in buffers]

    def picture(created):
        rows = [page(str(number), number, created=created, record=view) for number, view in enumerate(views)]
        return Picture(rows)

    await store.apply(Picture([page("first", 9, created=1, record=b"x")]), Marks())
    begin = ThreadPoolExecutor.submit
    calls = iter(range(100))

    def submit(self, function, *arguments):
        of_loop = threading.current_thread() is threading.main_thread()
        if of_loop and isinstance(getattr(function, "__self__", None), Compressor) and next(calls) == 1:
            raise RuntimeError("can't start new thread")
        return begin(self, function, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", submit)
        other = Picture([page("other", 10, created=1, record=b"y")])
        results = await asyncio.gather(
            store.apply(other, Marks()), store.apply(picture(2), Marks()), return_exceptions=True
        )
        assert isinstance(results[1], RuntimeError)
    for buffer in buffers:
        buffer[:] = bytes(reversed(buffer[:-1])) + b"!"
    await store.apply(picture(3), Marks())
    entries = {entry.page_id: entry.record async for batch in store.entries() for entry in batch}
    assert [entries[number] for number in range(4)] == [bytes(buffer) for buffer in buffers]
    await store.close()


async def test_records_of_both_codecs_live_in_one_store_and_the_missing_one_is_named(tmp_path, monkeypatch):
    pytest.importorskip("zstandard")
    path = tmp_path / "mirror.db"
    for number, codec in ((1, "zstd"), (2, "zlib")):
        store = SQLiteStore(path, codec=codec)
        await store.open()
        await store.apply(Picture([page(codec, number, record=codec.encode() * 200)]), Marks())
        await store.close()
    store = SQLiteStore(path)
    await store.open(writing=False)
    for number, codec in ((1, "zstd"), (2, "zlib")):
        entry = await store.get("testwiki", page_id=number)
        assert entry is not None
        assert entry.record == codec.encode() * 200
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"wme-async\[mirror\]"):
        await store.get("testwiki", page_id=1)
    with pytest.raises(ImportError, match=r"wme-async\[mirror\]"):
        SQLiteStore(path, codec="zstd")
    assert await store.get("testwiki", page_id=2)
    await store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET codec = 9")
    connection.commit()
    connection.close()
    await store.open(writing=False)
    with pytest.raises(DataError, match="codec 9 is not known"):
        await store.get("testwiki", page_id=2)
    await store.close()


async def test_a_backup_is_a_store_of_the_same_pages(tmp_path):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    await store.apply(Picture([page()]), Marks(values={"positions": {"0": "1"}}))
    await store.backup(tmp_path / "copy.db")
    await store.apply(Picture([page("B", 2)]), Marks())
    copy = SQLiteStore(tmp_path / "copy.db")
    state = await copy.open()
    assert state.values["positions"] == {"0": "1"}
    assert (await copy.counts()).pages == 1
    await copy.close()
    with pytest.raises(FileNotFoundError):
        await store.backup(tmp_path / "no" / "copy.db")
    await store.close()


async def test_other_programs_read_the_live_pages_by_sql(tmp_path):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    gone = page("B", 2, 2, 9)
    gone.gone, gone.record = True, b""
    await store.apply(Picture([page(), page("B", 2), gone]), Marks())
    connection = sqlite3.connect(tmp_path / "mirror.db")
    assert connection.execute("SELECT project, title, page_id FROM live").fetchall() == [("testwiki", "A", 1)]
    connection.close()
    await store.close()
    if sys.platform != "win32":
        assert (tmp_path / "mirror.db").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("abstract", [b"null", b"7", b'["a"]', b"1e99999999999999999999"])
async def test_an_abstract_that_is_not_text_is_not_searched_and_does_not_end_the_mirror(tmp_path, abstract):
    store = SQLiteStore(tmp_path / "mirror.db", search=True)
    await store.open()
    await store.apply(Picture([page("Rhine", record=b'{"name":"Rhine","abstract":' + abstract + b"}")]), Marks())
    assert [key[1] for key in await store.search("rhine")] == ["Rhine"]
    await store.close()


@pytest.mark.parametrize("bad", [b'{"name":5}', b'{"name":"B","z":1e99999999999999999999}'])
async def test_a_page_that_does_not_fit_its_type_does_not_keep_the_others_from_being_read(tmp_path, bad):
    store = SQLiteStore(tmp_path / "mirror.db")
    await store.open()
    await store.apply(Picture([page("A", 1), page("B", 2, record=bad), page("C", 3, record=b'{"name":"C"}')]), Marks())
    # Its hidden parts are taken out of the document, which must be decoded for that.
    await store.apply(Picture([Mask(project="testwiki", page_id=2, revision=1, created=9, hidden=1)]), Marks())
    await store.close()
    async with MirrorReader(SQLiteStore(tmp_path / "mirror.db")) as reader:
        with pytest.raises(DecodeError):
            [article async for article in reader.pages()]
        assert [article.name async for article in reader.pages(on_bad_record="skip")] == ["A", "C"]
        errors: list[DecodeError] = []
        assert len([article async for article in reader.pages(on_bad_record=errors.append)]) == 2
        assert len(errors) == 1
        with pytest.raises(ValueError, match="on_bad_record"):
            [article async for article in reader.pages(on_bad_record="hide")]  # type: ignore[call-overload]


async def test_titles_and_abstracts_are_searched(tmp_path):
    def about(title, page_id, abstract, revision=1, created=5):
        record = msgspec.json.encode({"name": title, "abstract": abstract})
        return page(title, page_id, revision, created, record)

    path = tmp_path / "mirror.db"
    store = SQLiteStore(path)
    await store.open()
    await store.apply(Picture([about("Rhine", 1, "a river in Europe"), about("Nile", 2, "a river in Africa")]), Marks())
    with pytest.raises(ValueError, match="search=True"):
        await store.search("river")
    await store.close()
    store = SQLiteStore(path, search=True)
    await store.open()
    assert sorted(key[1] for key in await store.search("river")) == ["Nile", "Rhine"]
    assert [key[1:3] for key in await store.search('river "eur*')] == [("Rhine", 1)]
    assert len(await store.search("river", limit=1)) == 1
    assert await store.search("* ") == []
    assert await store.search("in AND") == [], "words are words"
    gone = page("Nile", 2, 1, 9)
    gone.gone, gone.record = True, b""
    hidden = Mask(project="testwiki", page_id=1, revision=1, created=9, hidden=1)
    await store.apply(Picture([gone, hidden, about("Rhône", 3, "another river")]), Marks())
    assert [key[1] for key in await store.search("river")] == ["Rhône"]
    shown = Mask(project="testwiki", page_id=1, revision=1, created=10, hidden=0)
    await store.apply(Picture([shown]), Marks())
    assert sorted(key[1] for key in await store.search("river")) == ["Rhine", "Rhône"]
    await store.apply(Picture(), Marks(forget=[("testwiki", 1)]))
    await store.close()
    store = SQLiteStore(path)  # it keeps its index
    await store.open()
    await store.apply(Picture([about("Rhône", 3, "no longer", revision=2, created=11)]), Marks())
    assert await store.search("river") == []
    assert [key[1] for key in await store.search("rhone longer")] == ["Rhône"]
    await store.close()
