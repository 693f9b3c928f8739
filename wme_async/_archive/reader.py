"""The records of an archive, as an async iterator."""

import asyncio
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypedDict, TypeVar, overload

import msgspec

from wme_async._archive.feed import Feed, FileFeed, WindowFeed, pump
from wme_async._archive.inflater import Inflater
from wme_async._archive.tar import DEFAULT_MAX_RECORD, Block, Lines, Run, TarScanner, TooLong
from wme_async._arguments import check_choice, check_functions, check_numbers, check_type
from wme_async._tasks import call_hook, end_task
from wme_async.errors import ArchiveError, DecodeError
from wme_async.models.decoding import Buffer, key_names, make_decoder

T = TypeVar("T")
U = TypeVar("U")

OnBadRecord: TypeAlias = Literal["raise", "skip"] | Callable[[DecodeError], Awaitable[object] | object]
"""What happens to a record that cannot be decoded: raise its error, skip and count it, or call a function with it."""

_SLICE_SECONDS: Final = 0.002  # seconds for which decoding may keep the loop from other tasks
_LOOP_TURNS: Final = 3  # turns of the loop until a task has run whose timer is due
_CREDIT: Final = 64 * 1024  # bytes decoded between two readings of the clock
_RECORD_COST: Final = 64  # bytes that a record costs beside its own
_FREE_EMPTY_LINES: Final = 1_000_000  # that any archive may have,
_EMPTY_LINES_PER_RECORD: Final = 10  # and how many more for each record
_BATCH_BYTES: Final = 1024 * 1024
_BLOCK_BYTES: Final = 16 * 1024 * 1024
_SPACE: Final = b" \t\r\v\f"
_WINDOW_BYTES: Final = 2 * 1024 * 1024


class DecodingOptions(TypedDict, total=False):
    """The options of everything that decodes the records of archives."""

    max_record: int
    on_bad_record: OnBadRecord
    use_isal: bool
    use_orjson: bool


class ReaderOptions(DecodingOptions, total=False):
    """The options of `ArchiveReader` for callers that choose the source and the type themselves."""

    select: Callable[[str], bool] | None


class ArchiveStatistics(msgspec.Struct, frozen=True):
    """The progress of reading an archive.

    Attributes:
        records: Records returned.
        bad_records: Records that could not be decoded, whatever `on_bad_record` says.
        bytes: Scanned bytes of the uncompressed tar.
        compressed_bytes: Bytes of the archive read from its source.
        members: Members started.
        member: Name of the last record's member.
    """

    records: int
    bad_records: int
    bytes: int
    compressed_bytes: int
    members: int
    member: str | None


class ArchiveReader(Generic[T]):
    """Read the records of a `.tar.gz` of NDJSON while its bytes arrive.

    An async context manager and an async iterator of records, for one task at a time:

        async with ArchiveReader("enwiki_namespace_0.tar.gz", type=Article) as articles:
            async for article in articles:
                ...

    A thread inflates ahead, within a bound; records are decoded on demand in the task of the consumer, and the event
    loop gets a turn every few milliseconds. Memory is a few MiB beside the longest line, whatever the size of the
    archive. A consumer that pauses also pauses the reading of the source. Leaving the block early closes the source, in
    the task that read it, and ends the thread.

    The end of the iteration means that the archive is complete: every gzip checksum matches, the tar has its end marker
    and nothing follows it. The records before corrupt bytes are returned before the error is raised, except those in
    the last 2.5 MiB, which the inflater may lose with them.

    Args:
        source: A path, or an async iterable of the bytes of the archive in order. Its `aclose`, if any, is called.
        type: The type of the records. A small Struct decodes only the fields that it names. Of a very long line, the
            texts that it does not name are not even kept: the `record` of its error lacks them if the line is bad.
        max_record: Bytes of a record at most; a longer one is a bad record and is dropped as it arrives.
        on_bad_record: `raise` a `DecodeError`, after which the iteration can go on with the next record; `skip` and
            count it; or a function, sync or async, that is called with the `DecodeError`.
        select: Called with the name of each member; returns whether to read it. It can resume an earlier run.
        window: Bytes read from an async source ahead of the inflater.
        label: The name of the archive in errors; by default the file name of a path.
        use_isal: Inflate with isal if it is installed.
        use_orjson: Decode long records with orjson if it is installed and faster.

    Attributes:
        type: The type of the records.

    Raises:
        ValueError: An argument is out of range.
        TypeError: An argument has the wrong type, or msgspec cannot decode into `type`.
    """

    def __init__(
        self,
        source: "str | os.PathLike[str] | AsyncIterable[bytes]",
        *,
        type: type[T],
        max_record: int = DEFAULT_MAX_RECORD,
        on_bad_record: OnBadRecord = "raise",
        select: Callable[[str], bool] | None = None,
        window: int = _WINDOW_BYTES,
        label: str | None = None,
        use_isal: bool = True,
        use_orjson: bool = True,
    ) -> None:
        check_type("source", source, str | os.PathLike | AsyncIterable, "a path or an async iterator of bytes")
        if source == "" and label is None:
            raise ValueError("source is an empty path")
        check_numbers(whole=True, optional=False, minimum=1, unit="bytes", max_record=max_record, window=window)
        check_functions(select=select)
        check_choice("on_bad_record", on_bad_record, ("raise", "skip"), function=True)
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
        self._end: BaseException | None = None  # the end or the error that is raised from then on
        self._items: Iterator[Lines | Run | TooLong] = iter(())
        self._lines = Lines("", 1, 0, [])
        self._records: Iterator[Buffer] = iter(())
        self._index = -1  # of the last record of `_lines`
        self._block_run: Run | None = None  # the lines of the next block
        self._next_run: Run | None = None  # the first lines of the block after it
        self._pending_error: DecodeError | None = None  # of a bad record that is not reported yet
        self._yielded = 0
        self._bad_records = 0
        self._empty_lines = 0
        self._credit = _CREDIT
        self._slice_start = 0.0
        self._now: Callable[[], float] = float

    async def __aenter__(self) -> Self:
        """Open the source and start reading ahead.

        Raises:
            OSError: A path cannot be opened.
            RuntimeError: It was entered before.
        """
        if self._inflater is not None or self._closed:
            raise RuntimeError("an archive can be opened once: create another reader to read it again")
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._slice_start = loop.time()
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
            self._pump = loop.create_task(pump(source, feed), name=f"read {self._label}")
        return self

    async def __aexit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source unless it has ended, and wait for the thread."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the reader as leaving the block does. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._records = iter(())
        self._items = iter(())
        self._end = None
        if self._inflater is None:
            return
        self._inflater.abandon()
        try:
            if self._pump is not None:
                await end_task(self._pump, again=True)
        finally:
            await self._inflater.stop()

    def __del__(self) -> None:
        """Stop the thread of a reader that was never closed, with a warning."""
        inflater = getattr(self, "_inflater", None)
        if inflater is not None and not self._closed and not inflater.ended:
            warnings.warn(f"{self!r} was not closed: use `async with`", ResourceWarning, stacklevel=1, source=self)
            inflater.abandon()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._inflater is None else "open"
        return f"<ArchiveReader {self._label} {state}, {self._yielded} records>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next record.

        Raises:
            ArchiveError: The archive is damaged, cut short, or not an archive.
            DecodeError: A bad record, if `on_bad_record` is `raise`.
            OSError: A file cannot be read or written.
            RuntimeError: The reader is not open.
            WMEError: The source failed; any exception of it is raised here.
        """
        while True:
            if self._credit < 0 or self._pending_error is not None:
                await self._checkpoint()
            record = next(self._records, None)
            if record is None:
                await self._next_lines()
                continue
            self._index += 1
            self._credit -= len(record) + _RECORD_COST
            try:
                value = self._decode(record)
            except DecodeError as error:
                self._pending_error = self._record_error(record, error)
                continue
            self._yielded += 1
            return value

    def batches(self, *, max_bytes: int = _BATCH_BYTES) -> AsyncIterator[list[T]]:
        """Iterate over lists of records, with less overhead for each record.

        Lists are never empty, never span members and hold at most about 1 MiB of JSON or one record.

        Args:
            max_bytes: Bytes of JSON after which a list is complete.
        """
        return _Calls(partial(self._next_batch, max_bytes, self._decode))

    def lines(self) -> AsyncIterator[list[Buffer]]:
        """Iterate over lists of lines instead of records, for callers that decode them elsewhere, as in a thread.

        Lines come without their line feeds, as views of inflated blocks: a block (2.5 MiB at most) lives as long as one
        of its lines. A list is of one block. Empty lines are left out, and lines above `max_record` are handled as
        `on_bad_record` says. Lines count as records.
        """
        return _Calls(partial(self._next_batch, _BLOCK_BYTES, _undecoded))

    def blocks(self, *, max_bytes: int = _BLOCK_BYTES) -> AsyncIterator[Block]:
        """Iterate over blocks of whole lines instead of records, for callers that parse NDJSON themselves.

        Blocks hold `max_bytes` or somewhat more, never span members, and leave out lines above `max_record`, which
        are handled as `on_bad_record` says. Records of a block count as returned. `decode` turns a block into records.
        Iterating over the archive, or over `batches`, goes on with the records after the last block.

        Args:
            max_bytes: Bytes of lines after which a block is complete.

        Raises:
            RuntimeError: The reader has returned records already.
        """
        if self._scanner.position and not self._scanner.runs:
            raise RuntimeError("blocks and records of one archive cannot be mixed: open it again")
        self._scanner.runs = True
        return _Calls(partial(self._next_block, max_bytes))

    @overload
    def decode(self, block: Block, *, max_bytes: int = ...) -> AsyncGenerator[list[T], None]: ...
    @overload
    def decode(
        self, block: Block, *, max_bytes: int = ..., with_lines: Literal[True]
    ) -> AsyncGenerator[list[tuple[T, bytes]], None]: ...
    async def decode(
        self, block: Block, *, max_bytes: int = _BATCH_BYTES, with_lines: bool = False
    ) -> AsyncGenerator[list[Any], None]:
        """Decode the lines of a block, as iterating over the archive does.

        Args:
            block: A block of this archive.
            max_bytes: Bytes of JSON after which a list is complete.
            with_lines: Give each record with the line that it was decoded from.

        Yields:
            Lists of records, or of pairs of a record and its line, never empty.

        Raises:
            DecodeError: A bad record, if `on_bad_record` is `raise`.
        """
        decode: Callable[[Buffer], Any] = self._decode_with_line if with_lines else self._decode
        self._lines = Lines(block.member, block.line, block.offset, list(block.data.split(b"\n")[:-1]))
        self._records = iter(self._lines.records)
        self._index = -1
        self._yielded -= block.lines
        while True:
            if self._credit < 0 or self._pending_error is not None:
                await self._checkpoint()
            records = self._decode_batch(max_bytes, decode)
            if records:
                yield records
            elif self._pending_error is None:
                return

    async def reject(self, error: DecodeError) -> None:
        """Handle a record that was returned, and that its consumer cannot hold, as one that does not decode.

        Raises:
            DecodeError: The error, if `on_bad_record` is `raise`.
        """
        self._yielded -= 1
        self._bad_records += 1
        member = self._lines.member
        error = DecodeError(f"a record of {member} in {self._label}: {error.message}", member=member)
        if callable(self._on_bad_record):
            await call_hook(self._on_bad_record, error)
        elif self._on_bad_record == "raise":
            raise error

    def _decode_with_line(self, line: Buffer) -> tuple[T, bytes]:
        return self._decode(line), bytes(line)

    def statistics(self) -> ArchiveStatistics:
        """Return the progress so far."""
        return ArchiveStatistics(
            records=self._yielded,
            bad_records=self._bad_records,
            bytes=self._scanner.position,
            compressed_bytes=0 if self._inflater is None else self._inflater.feed.taken,
            members=self._scanner.members,
            member=self._lines.member or None,
        )

    async def _next_batch(self, max_bytes: int, decode: Callable[[Buffer], U]) -> list[U]:
        while True:
            if self._credit < 0 or self._pending_error is not None:
                await self._checkpoint()
            records = self._decode_batch(max_bytes, decode)
            if records:
                return records
            if self._pending_error is None:
                await self._next_lines()

    def _decode_batch(self, max_bytes: int, decode: Callable[[Buffer], U]) -> list[U]:
        """Decode until the batch is full, the lines end, or a record is bad; without awaiting, so that none is lost."""
        records: list[U] = []
        size = 0
        first = self._index
        for record in self._records:
            self._index += 1
            size += len(record)
            try:
                records.append(decode(record))
            except DecodeError as error:
                self._pending_error = self._record_error(record, error)
                if self._pending_error is not None:
                    break
            if size >= max_bytes:
                break
        self._credit -= size + _RECORD_COST * (self._index - first)
        self._yielded += len(records)
        return records

    def _record_error(self, record: Buffer, error: DecodeError) -> DecodeError | None:
        """Return the error of a bad record, or None for an empty line."""
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
        """End the iteration if there are too many: half a megabyte can inflate to half a billion of them."""
        self._empty_lines += count
        if self._empty_lines <= _FREE_EMPTY_LINES + _EMPTY_LINES_PER_RECORD * self._yielded or self._end is not None:
            return
        self._records = iter(())
        self._end = ArchiveError(
            f"{self._label} has {self._empty_lines} empty lines and {self._yielded} records so far: remove the empty "
            "lines if it is yours",
            member=self._scanner.member,
            offset=self._scanner.position,
        )

    async def _checkpoint(self) -> None:
        """Let other tasks run if it is time, and handle a bad record."""
        if self._credit < 0:
            self._credit = _CREDIT
            if self._now() - self._slice_start >= _SLICE_SECONDS:
                for _ in range(_LOOP_TURNS):
                    await asyncio.sleep(0)
                self._slice_start = self._now()
        if self._pending_error is not None:
            error = self._pending_error
            self._credit -= 1024
            if callable(self._on_bad_record):
                # The error stays pending until the function returns: it may fail, or be cancelled.
                await call_hook(self._on_bad_record, error)
            self._pending_error = None
            self._bad_records += 1
            if self._on_bad_record == "raise":
                raise error

    async def _next_lines(self) -> None:
        """Get the next lines, or raise the end or the error in their place."""
        self._scanner.runs = False
        run, self._block_run = self._block_run, self._next_run
        self._next_run = None
        item = await self._next_item() if run is None else run
        if isinstance(item, Run):
            item = Lines(item.member, item.line, item.offset, list(b"".join(item.parts).split(b"\n")[:-1]))
        if isinstance(item, Lines):
            if not any(item.records):  # only line feeds; a record ends the search at once
                self._credit -= _RECORD_COST * len(item.records)
                self._count_empty_lines(len(item.records))
                return
            self._lines = item
            self._records = iter(item.records)
            self._index = -1
        elif isinstance(item, TooLong):
            self._pending_error = self._too_long_error(item)

    async def _next_item(self) -> Lines | Run | TooLong | None:
        """Return the next item of the tar; None after the next block of the tar had to be fetched."""
        if self._end is not None:
            raise self._end
        if self._inflater is None:
            raise RuntimeError("the archive is not open: use `async with`")
        if self._closed:
            raise RuntimeError("the archive is closed")
        try:
            item = next(self._items, None)
            if item is None:
                await self._feed_scanner(self._inflater)
        except ArchiveError as error:
            self._end = ArchiveError(
                f"{self._label}: {error.message}", member=error.member or self._scanner.member, offset=error.offset
            )
            raise self._end from error
        return item

    async def _next_block(self, max_bytes: int) -> Block:
        while self._next_run is None and (self._block_run is None or self._block_run.size < max_bytes):
            if self._pending_error is not None and self._block_run is not None:
                break
            if self._credit < 0 or self._pending_error is not None:
                await self._checkpoint()
            try:
                item = await self._next_item()
            except (ArchiveError, StopAsyncIteration):
                if self._block_run is None:
                    raise
                break  # the complete lines come first; the next call raises the reason
            if isinstance(item, TooLong):
                self._pending_error = self._too_long_error(item)
            elif item is not None:
                self._add_run(item if isinstance(item, Run) else _as_run(item))
        run, self._block_run, self._next_run = self._block_run, self._next_run, None
        assert run is not None
        self._yielded += run.lines
        self._lines = Lines(run.member, run.line, run.offset, [])
        return Block(run.member, run.line, run.offset, b"".join(run.parts), run.lines)

    def _add_run(self, run: Run) -> None:
        if self._block_run is None:
            self._block_run = run
        elif self._block_run.member != run.member:
            self._next_run = run
        else:
            self._block_run.parts += run.parts
            self._block_run.lines += run.lines
            self._block_run.size += run.size

    async def _feed_scanner(self, inflater: Inflater) -> None:
        block = inflater.take()
        if block is None:
            if not inflater.ended:
                await inflater.wait()
                self._slice_start = self._now()
                self._credit = _CREDIT
            elif (block := inflater.take()) is None:  # the last block may have come just before the end
                self._finish(inflater)
        if block is not None:
            self._items = self._scanner.feed(block)
            self._credit -= len(block) // 16  # skipped bytes cost little, but not nothing

    def _finish(self, inflater: Inflater) -> None:
        if inflater.error is None:
            self._scanner.close()
        self._end = inflater.error or StopAsyncIteration()
        raise self._end

    def _too_long_error(self, item: TooLong) -> DecodeError:
        return DecodeError(
            f"line {item.line} of {item.member} in {self._label}, at byte {item.offset}: "
            f"longer than max_record ({self._max_record} bytes)",
            member=item.member,
            line=item.line,
            offset=item.offset,
            record=item.head,
        )


class _Calls(msgspec.Struct, Generic[U]):
    """The results of one call after the other. A generator would stay open if it is not exhausted."""

    call: Callable[[], Awaitable[U]]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> U:
        return await self.call()


def _undecoded(line: Buffer) -> Buffer:
    """Return a line as it is; fail, as decoding does, if it is empty."""
    if not line or (line[0] in _SPACE and not bytes(line).strip()):
        raise DecodeError("an empty line")
    return line


def _as_run(lines: Lines) -> Run:
    parts: list[Buffer] = [part for record in lines.records for part in (record, b"\n")]
    return Run(lines.member, lines.line, lines.offset, parts, len(lines.records), sum(map(len, parts)))
