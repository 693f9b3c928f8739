"""The records of an archive, as an async iterator."""

import asyncio
import inspect
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

import msgspec

from wme_async._archive.feed import Feed, FileFeed, WindowFeed
from wme_async._archive.inflater import Inflater
from wme_async._archive.tar import DEFAULT_MAX_RECORD, Lines, Run, TarScanner, TooLong
from wme_async._tasks import wait_done
from wme_async.errors import ArchiveError, DecodeError
from wme_async.models.decoding import Buffer, key_names, make_decoder

__all__ = ["ArchiveReader", "ArchiveStatistics", "Block", "OnBadRecord"]

T = TypeVar("T")

OnBadRecord: TypeAlias = Literal["raise", "skip"] | Callable[[DecodeError], Awaitable[object] | object]
"""What to do with a record that cannot be decoded: raise its error, count it and go on, or hand the error over."""

_SLICE: Final = 0.002  # seconds that decoding may keep the loop without letting others in
_ROUNDS: Final = 3  # turns of the loop until a task has run that waited for a timer which is due
_CREDIT: Final = 64 * 1024  # bytes decoded between two looks at the clock
_EACH: Final = 64  # bytes that a record counts for beside its own
_EMPTY_LINES: Final = 1_000_000  # that an archive may have,
_EMPTY_SHARE: Final = 10  # and how many more for each record
_BATCH: Final = 1024 * 1024
_BLOCK: Final = 16 * 1024 * 1024
_WINDOW: Final = 2 * 1024 * 1024


class ArchiveStatistics(msgspec.Struct, frozen=True):
    """How far the reading of an archive is.

    Attributes:
        records: Records given out.
        bad_records: Records that could not be decoded, whatever was done with them.
        bytes: Bytes of the uncompressed tar that were looked through.
        compressed_bytes: Bytes of the archive that were taken from its source.
        members: Members begun.
        member: Name of the member that the last record is from.
    """

    records: int
    bad_records: int
    bytes: int
    compressed_bytes: int
    members: int
    member: str | None


class Block(msgspec.Struct, frozen=True):
    """Whole lines of NDJSON that follow each other in one member of an archive.

    Attributes:
        member: Name of the member.
        line: Number of the first line, counted from 1.
        offset: Byte offset of the first line in the uncompressed member.
        data: The lines, each ended by a line feed.
        lines: Number of lines.
    """

    member: str
    line: int
    offset: int
    data: bytes
    lines: int


class ArchiveReader(Generic[T]):
    """Read the records of a `.tar.gz` of NDJSON while its bytes arrive.

    An async context manager and an async iterator of records, for one task at a time:

        async with ArchiveReader("enwiki_namespace_0.tar.gz", type=Article) as articles:
            async for article in articles:
                ...

    A thread inflates ahead, within a bound; records are decoded when they are asked for, in the task that asks, and the
    event loop gets a turn every few milliseconds. Memory is a few MiB beside the longest line, whatever the size of the
    archive. A consumer that stops asking stops the reading of the source. Leaving the block early closes the source, in
    the task that read it, and ends the thread.

    The end of the iteration means that the archive is whole: every gzip checksum fits, the tar has its end marker and
    nothing comes after it. The records before a damage are given before its error is raised, but for those in the last
    2.5 MiB before it, which the inflater may have taken with it.

    Args:
        source: A path, or what gives the bytes of the archive in order. If it has `aclose`, that is called.
        type: What to decode each record into. Of a small Struct only the fields that it names are decoded, and of a
            very long line the texts that it does not name are not even kept; should such a line turn out to be bad,
            the `record` of its error lacks them.
        max_record: Bytes that a record may have; a longer one is a bad record and is dropped as it arrives.
        on_bad_record: `raise` a `DecodeError`, after which the iteration can go on with the next record; `skip` and
            count it; or a function, sync or async, that is called with the `DecodeError`.
        select: Called with the name of each member, says whether to read it. To go on where an earlier run stopped.
        window: Bytes that may be taken from an async source before they are inflated.
        label: What the archive is called in errors; a path's name by default.
        use_isal: Inflate with isal where it is installed.
        use_orjson: Decode long records with orjson where it is installed and quicker.

    Attributes:
        type: What each record is decoded into.

    Raises:
        ValueError: A bad argument.
        TypeError: A bad argument, or a type that msgspec cannot decode into.
    """

    def __init__(
        self,
        source: "str | os.PathLike[str] | AsyncIterable[bytes]",
        *,
        type: type[T],
        max_record: int = DEFAULT_MAX_RECORD,
        on_bad_record: OnBadRecord = "raise",
        select: Callable[[str], bool] | None = None,
        window: int = _WINDOW,
        label: str | None = None,
        use_isal: bool = True,
        use_orjson: bool = True,
    ) -> None:
        if not isinstance(source, str | os.PathLike | AsyncIterable):
            raise TypeError(f"source must be a path or an async iterator of bytes, not {source!r}")
        if source == "" and label is None:
            raise ValueError("source is an empty path")
        for name, number in (("max_record", max_record), ("window", window)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be a whole number of bytes, not {number!r}")
        if select is not None and not callable(select):
            raise TypeError(f"select must be a function of a member's name, not {select!r}")
        if max_record < 1 or window < 1:
            raise ValueError("max_record and window are numbers of bytes above 0")
        # No set: what is given may be a list.
        if on_bad_record not in ("raise", "skip") and not callable(on_bad_record):
            raise ValueError(f"on_bad_record must be 'raise', 'skip' or a function, not {on_bad_record!r}")
        self.type = type
        self._source = source
        self._label = label or (Path(source).name if isinstance(source, str | os.PathLike) else "the archive")
        self._decode = make_decoder(type, use_orjson=use_orjson)
        self._scanner = TarScanner(max_record=max_record, select=select, names=key_names(type))
        self._max_record = max_record
        self._on_bad_record = on_bad_record
        self._window = window
        self._use_isal = use_isal
        self._inflater: Inflater | None = None
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._over: BaseException | None = None  # the end, or why there is none: raised from then on
        self._items: Iterator[Lines | Run | TooLong] = iter(())
        self._lines = Lines("", 1, 0, [])
        self._records: Iterator[Buffer] = iter(())
        self._index = -1  # of the last record taken, in `_lines`
        self._gathered: Run | None = None  # of the block in the making
        self._next_run: Run | None = None  # of the block after it
        self._bad: DecodeError | None = None  # found, not yet dealt with
        self._given = 0
        self._bad_count = 0
        self._empty_lines = 0
        self._credit = _CREDIT
        self._since = 0.0
        self._now: Callable[[], float] = float

    async def __aenter__(self) -> Self:
        """Open the source and start reading ahead.

        Raises:
            OSError: A path cannot be opened.
            RuntimeError: It was entered before.
        """
        if self._inflater is not None or self._closed:
            raise RuntimeError("an archive can be opened once: make another reader to read it again")
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._since = loop.time()
        source = self._source
        feed: Feed = FileFeed(Path(source)) if isinstance(source, str | os.PathLike) else WindowFeed(self._window)
        self._inflater = Inflater(feed, self._label, use_isal=self._use_isal)
        try:
            await self._inflater.start()
        except BaseException:
            self._closed = True
            raise
        if isinstance(feed, WindowFeed):
            assert isinstance(source, AsyncIterable)
            self._pump = loop.create_task(_pump(source, feed), name=f"read {self._label}")
        return self

    async def __aexit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source, if it was not read to its end, and wait for the thread."""
        await self.aclose()

    async def aclose(self) -> None:
        """Do what leaving the block does. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._records = iter(())
        self._items = iter(())
        self._over = None
        if self._inflater is None:
            return
        self._inflater.abandon()
        try:
            if self._pump is not None:
                self._pump.cancel()
                await wait_done(self._pump, on_cancel=self._pump.cancel)
                if not self._pump.cancelled():
                    self._pump.exception()  # the consumer left before the source failed: not its concern
        finally:
            await self._inflater.stop()

    def __del__(self) -> None:
        """Stop the thread of a reader that was never closed, and say so."""
        inflater = getattr(self, "_inflater", None)
        if inflater is not None and not self._closed and not inflater.ended:
            warnings.warn(f"{self!r} was not closed: use `async with`", ResourceWarning, stacklevel=1, source=self)
            inflater.abandon()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._inflater is None else "open"
        return f"<ArchiveReader {self._label} {state}, {self._given} records>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next record.

        Raises:
            ArchiveError: The archive is damaged, cut short, or no archive.
            DecodeError: A bad record, if `on_bad_record` is `raise`.
            OSError: A file cannot be read or written.
            RuntimeError: The reader is not open.
            WMEError: The source failed: all that comes out of it is raised here.
        """
        while True:
            if self._credit < 0 or self._bad is not None:
                await self._settle()
            record = next(self._records, None)
            if record is None:
                await self._more()
                continue
            self._index += 1
            self._credit -= len(record) + _EACH
            try:
                value = self._decode(record)
            except DecodeError as error:
                self._bad = self._judge(record, error)
                continue
            self._given += 1
            return value

    def batches(self, *, max_bytes: int = _BATCH) -> AsyncIterator[list[T]]:
        """Iterate over lists of records: the same records, with less of Python for each.

        Lists are never empty, never span members and hold at most about 1 MiB of JSON or one record.

        Args:
            max_bytes: Bytes of JSON after which a list is given.
        """
        return _Batches(self, max_bytes)

    def blocks(self, *, max_bytes: int = _BLOCK) -> AsyncIterator[Block]:
        """Iterate over blocks of whole lines instead of records, for callers that parse NDJSON themselves.

        Blocks hold `max_bytes` or somewhat more, never span members, and leave out lines above `max_record`, which
        are dealt with as `on_bad_record` says. Records of a block count as given out. `decode` turns a block into
        records.

        Args:
            max_bytes: Bytes of lines after which a block is given.

        Raises:
            RuntimeError: Records were already taken from this reader.
        """
        if self._scanner.position and not self._scanner.runs:
            raise RuntimeError("blocks and records of one archive cannot be mixed: open it again")
        self._scanner.runs = True
        return _Blocks(self, max_bytes)

    async def decode(self, block: Block, *, max_bytes: int = _BATCH) -> AsyncGenerator[list[T], None]:
        """Decode the lines of a block, as iterating over the archive does.

        Args:
            block: A block of this archive.
            max_bytes: Bytes of JSON after which a list is given.

        Yields:
            Lists of records, never empty.

        Raises:
            DecodeError: A bad record, if `on_bad_record` is `raise`.
        """
        self._lines = Lines(block.member, block.line, block.offset, list(block.data.split(b"\n")[:-1]))
        self._records = iter(self._lines.records)
        self._index = -1
        self._given -= block.lines
        while True:
            if self._credit < 0 or self._bad is not None:
                await self._settle()
            records = self._fill(max_bytes)
            if records:
                yield records
            elif self._bad is None:
                return

    def statistics(self) -> ArchiveStatistics:
        """Return how far the reading is."""
        return ArchiveStatistics(
            records=self._given,
            bad_records=self._bad_count,
            bytes=self._scanner.position,
            compressed_bytes=0 if self._inflater is None else self._inflater.feed.taken,
            members=self._scanner.members,
            member=self._lines.member or None,
        )

    async def _next_batch(self, max_bytes: int) -> list[T]:
        while True:
            if self._credit < 0 or self._bad is not None:
                await self._settle()
            found = self._fill(max_bytes)
            if found:
                return found
            if self._bad is None:
                await self._more()

    def _fill(self, max_bytes: int) -> list[T]:
        """Decode until there is enough, the lines end, or a record is bad; without awaiting, so that none is lost."""
        found: list[T] = []
        size = 0
        first = self._index
        decode = self._decode
        for record in self._records:
            self._index += 1
            size += len(record)
            try:
                found.append(decode(record))
            except DecodeError as error:
                self._bad = self._judge(record, error)
                if self._bad is not None:
                    break
            if size >= max_bytes:
                break
        self._credit -= size + _EACH * (self._index - first)
        self._given += len(found)
        return found

    def _judge(self, record: Buffer, error: DecodeError) -> DecodeError | None:
        """Return the error of a bad record, or nothing for an empty line."""
        raw = bytes(record)
        if not raw.strip():
            self._count_empty_lines(1)
            return None
        lines = self._lines
        line, offset = lines.line + self._index, lines.offset_of(self._index)
        return DecodeError(
            f"line {line} of {lines.member} in {self._label}, at byte {offset}: {error.message}",
            member=lines.member,
            line=line,
            offset=offset,
            record=raw,
        )

    def _count_empty_lines(self, count: int) -> None:
        """End the reading if there are too many: half a megabyte may inflate to half a billion of them."""
        self._empty_lines += count
        if self._empty_lines <= _EMPTY_LINES + _EMPTY_SHARE * self._given or self._over is not None:
            return
        self._records = iter(())
        self._over = ArchiveError(
            f"{self._label} has {self._empty_lines} empty lines and {self._given} records so far: remove the empty "
            "lines if it is yours",
            member=self._scanner.member,
            offset=self._scanner.position,
        )

    async def _settle(self) -> None:
        """Let others have the loop if it is time, and deal with a bad record."""
        if self._credit < 0:
            self._credit = _CREDIT
            if self._now() - self._since >= _SLICE:
                for _ in range(_ROUNDS):
                    await asyncio.sleep(0)
                self._since = self._now()
        if self._bad is not None:
            bad = self._bad
            self._credit -= 1024
            if callable(self._on_bad_record):
                # It stays until that has worked: a function may fail, or be cancelled.
                answer = self._on_bad_record(bad)
                if inspect.isawaitable(answer):
                    await answer
            self._bad = None
            self._bad_count += 1
            if self._on_bad_record == "raise":
                raise bad

    async def _more(self) -> None:
        """Get the next lines, or raise what there is in their place."""
        item = await self._next_item()
        if isinstance(item, Lines):
            if not any(item.records):  # nothing but line feeds; true records end the search at the first
                self._credit -= _EACH * len(item.records)
                self._count_empty_lines(len(item.records))
                return
            self._lines = item
            self._records = iter(item.records)
            self._index = -1
        elif isinstance(item, TooLong):
            self._bad = self._too_long(item)

    async def _next_item(self) -> Lines | Run | TooLong | None:
        """Return what the tar gives next; None where another block of it had to be fetched first."""
        if self._over is not None:
            raise self._over
        if self._inflater is None:
            raise RuntimeError("the archive is not open: use `async with`")
        if self._closed:
            raise RuntimeError("the archive is closed")
        try:
            item = next(self._items, None)
            if item is None:
                await self._next_block(self._inflater)
        except ArchiveError as error:
            self._over = ArchiveError(
                f"{self._label}: {error.message}", member=error.member or self._scanner.member, offset=error.offset
            )
            raise self._over from error
        return item

    async def _next_lines(self, max_bytes: int) -> Block:
        while self._next_run is None and (self._gathered is None or self._gathered.size < max_bytes):
            if self._bad is not None and self._gathered is not None:
                break
            if self._credit < 0 or self._bad is not None:
                await self._settle()
            try:
                item = await self._next_item()
            except (ArchiveError, StopAsyncIteration):
                if self._gathered is None:
                    raise
                break  # what is whole comes first; the reason is raised from now on
            if isinstance(item, TooLong):
                self._bad = self._too_long(item)
            elif item is not None:
                self._gather(item if isinstance(item, Run) else _as_run(item))
        run, self._gathered, self._next_run = self._gathered, self._next_run, None
        assert run is not None
        self._given += run.lines
        self._lines = Lines(run.member, run.line, run.offset, [])
        return Block(run.member, run.line, run.offset, b"".join(run.parts), run.lines)

    def _gather(self, run: Run) -> None:
        if self._gathered is None:
            self._gathered = run
        elif self._gathered.member != run.member:
            self._next_run = run
        else:
            self._gathered.parts += run.parts
            self._gathered.lines += run.lines
            self._gathered.size += run.size

    async def _next_block(self, inflater: Inflater) -> None:
        block = inflater.take()
        if block is None:
            if not inflater.ended:
                await inflater.wait()
                self._since = self._now()
                self._credit = _CREDIT
            elif (block := inflater.take()) is None:  # the last block may have come before the end was seen
                self._finish(inflater)
        if block is not None:
            self._items = self._scanner.feed(block)
            self._credit -= len(block) // 16  # bytes that are passed over cost little, but not nothing

    def _finish(self, inflater: Inflater) -> None:
        if inflater.error is not None:
            self._over = inflater.error
            raise self._over
        self._scanner.close()
        self._over = StopAsyncIteration()
        raise self._over

    def _too_long(self, item: TooLong) -> DecodeError:
        return DecodeError(
            f"line {item.line} of {item.member} in {self._label}, at byte {item.offset}: "
            f"longer than max_record ({self._max_record} bytes)",
            member=item.member,
            line=item.line,
            offset=item.offset,
            record=item.head,
        )


class _Batches(Generic[T]):
    """An iterator that is no generator: nothing is left behind where it is not used up."""

    def __init__(self, reader: ArchiveReader[T], max_bytes: int) -> None:
        self._reader = reader
        self._max_bytes = max_bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[T]:
        return await self._reader._next_batch(self._max_bytes)  # noqa: SLF001 - one class in two parts


class _Blocks:
    """As `_Batches`, for blocks."""

    def __init__(self, reader: ArchiveReader[Any], max_bytes: int) -> None:
        self._reader = reader
        self._max_bytes = max_bytes

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Block:
        return await self._reader._next_lines(self._max_bytes)  # noqa: SLF001 - one class in two parts


def _as_run(lines: Lines) -> Run:
    parts: list[Buffer] = [part for record in lines.records for part in (record, b"\n")]
    return Run(lines.member, lines.line, lines.offset, parts, len(lines.records), sum(map(len, parts)))


async def _pump(source: AsyncIterable[bytes], window: WindowFeed) -> None:
    """Bring the bytes from the source to the window; the source is used and closed in this one task."""
    chunks = aiter(source)
    try:
        try:
            async for chunk in chunks:
                await window.put(chunk)
        finally:
            close: Any = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
    except BaseException as error:
        window.end(error)
        raise
    window.end()
