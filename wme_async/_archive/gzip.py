"""Two ways to inflate gzip, each a generator of blocks that releases the interpreter's lock once for each block."""

import functools
import gzip
import importlib
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from wme_async._archive.feed import Feed, SourceError

CORRUPT: Final = (gzip.BadGzipFile, zlib.error)
"""The exceptions of inflaters for corrupt bytes; truncated input is an EOFError."""

_BLOCK: Final = 2 * 1024 * 1024  # bytes that one call of isal should return: as many as the loop decodes meanwhile

MAX_BLOCK: Final = _BLOCK * 5 // 4
"""Bytes of a block of isal at most; isal copies the rest of the input then."""

_MAX_ISAL_PIECE: Final = 1024 * 1024  # compressed bytes for one call of isal
_MAGIC: Final = b"\x1f\x8b\x08"  # with deflate, the only method
_RESERVED_FLAGS: Final = 0xE0  # which decoders must reject (RFC 1952, 2.3.1.2); zlib does, isal does not
_MAX_EMPTY_MEMBERS: Final = 10_000  # in a row; each costs many times the work of its 20 bytes
_MAX_HEADER: Final = 256 * 1024  # bytes of a header that is waited for; no honest one is longer
_ZLIB_INPUT: Final = 4 * 1024 * 1024  # compressed bytes read at a time for zlib
_PIECE: Final = 64 * 1024  # compressed bytes for one call of zlib; up to 1032 times as many can result
_ZLIB_BLOCK: Final = 512 * 1024  # bytes that one call of zlib should return, so that a bomb gets small pieces


def has_isal() -> bool:
    """Return whether isal is installed."""
    try:
        importlib.import_module("isal.igzip_lib")
    except ImportError:
        return False
    return True


def by_isal(feed: Feed) -> Iterator[bytes]:
    """Inflate one or several gzip members with isal.

    If input is at hand it is read before a block is yielded, so that the thread does not release the lock between there
    and the next call of the inflater: the loop would take it and keep it for a whole block.
    """
    # glibc maps large blocks anew, page by page, until one of their size has been freed. isal shrinks its blocks to
    # their contents before that, so it would never stop, and cost half as much again as inflating.
    bytes(2 * MAX_BLOCK)
    inflater = _IsalInflater()
    try:
        yield from _inflate_all(inflater, feed)
    except (*CORRUPT, OSError, SourceError):
        # The blocks before the corrupt bytes are good.
        if inflater.held:
            yield inflater.take()
        raise


def _inflate_all(inflater: "_IsalInflater", feed: Feed) -> Iterator[bytes]:
    buffer, other = memoryview(bytearray(_MAX_ISAL_PIECE)), memoryview(bytearray(_MAX_ISAL_PIECE))
    size = _PIECE
    while length := feed.readinto(buffer[:size]):
        if inflater.held:
            yield inflater.take()
        total = inflater.total
        yield from inflater.inflate(buffer[:length])
        if length >= _PIECE // 2:  # the ratio of a shorter piece says nothing
            size = max(_PIECE // 2, min(_MAX_ISAL_PIECE, length * _BLOCK // max(1, inflater.total - total)))
        if inflater.held and feed.ready() <= 0:
            yield inflater.take()
        buffer, other = other, buffer
    if inflater.held:
        yield inflater.take()
    inflater.finish()


class _IsalInflater:
    """Inflates gzip members with isal and holds the result until it is taken.

    Attributes:
        held: Bytes that are inflated and not taken yet, at most `MAX_BLOCK`.
        total: Bytes inflated so far.
    """

    def __init__(self) -> None:
        self.held = 0
        self.total = 0
        self._lib: Any = importlib.import_module("isal.igzip_lib")
        self._engine: Any = None
        self._header = b""  # the beginning of a header, as long as it is incomplete
        self._members = _Members()
        self._blocks: list[bytes] = []

    def inflate(self, piece: Any) -> Iterator[bytes]:
        """Inflate a piece, and yield what is held whenever the next block would exceed `MAX_BLOCK`."""
        while piece:
            if self._engine is None:
                piece = self._begin_member(piece)
                if not piece:
                    return
            while True:
                block = self._call_engine(piece)
                if self.held + len(block) > MAX_BLOCK:
                    yield self.take()
                self._hold(block)
                piece = b""
                if self._engine.eof or (self._engine.needs_input and len(block) < MAX_BLOCK):
                    break
            if self._engine.eof:
                piece, self._engine = self._engine.unused_data, None

    def take(self) -> bytes:
        """Return all that is held as one block."""
        block = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        self.held = 0
        return block

    def finish(self) -> None:
        """Check that the input ends with a member.

        Raises:
            EOFError: It is truncated.
        """
        if self._engine is not None or self._header:
            raise EOFError

    def _begin_member(self, piece: Any) -> bytes:
        """Return the input from the next member's header on; nothing as long as the header is incomplete."""
        header = self._members.skip_padding(self._header + piece)
        if not _is_complete(header):
            self._header = header
            return b""
        if header.startswith(_MAGIC) and header[3] & _RESERVED_FLAGS:
            raise gzip.BadGzipFile("a gzip header with reserved flags set")
        self._members.begin()
        self._header = b""
        self._engine = self._lib.IgzipDecompressor(flag=self._lib.DECOMP_GZIP)
        return header

    def _call_engine(self, piece: Any) -> bytes:
        try:
            block: bytes = self._engine.decompress(piece, MAX_BLOCK)
        except self._lib.error as error:
            reason = str(error)
        else:
            return block
        # Not in the handler: where Dask is loaded, errors are pickled with their causes and contexts, and isal names a
        # module that does not exist.
        raise zlib.error(reason)

    def _hold(self, block: bytes) -> None:
        if block:
            self._blocks.append(block)
            self._members.empty = 0
        self.held += len(block)
        self.total += len(block)


class _Members(msgspec.Struct):
    """Counts the members of a gzip file.

    Attributes:
        empty: Members since the last byte of content.
        count: All members.
    """

    empty: int = 0
    count: int = 0

    def skip_padding(self, data: bytes) -> bytes:
        """Return the input from the next member on: zeros may follow each member.

        Raises:
            BadGzipFile: Something else follows a member.
        """
        data = data.lstrip(b"\0")
        if data and self.count and data[0] != _MAGIC[0]:
            raise gzip.BadGzipFile("there is more after the end of the gzip file")
        return data

    def begin(self) -> None:
        """Count a member.

        Raises:
            BadGzipFile: There are too many empty members in a row.
        """
        self.count += 1
        self.empty += 1
        if self.empty > _MAX_EMPTY_MEMBERS:
            raise gzip.BadGzipFile(
                f"more than {_MAX_EMPTY_MEMBERS} empty gzip members in a row; compress it again if it is yours"
            )


def _is_complete(header: bytes) -> bool:
    """Return whether a member's header is complete, or is not a header at all.

    isal takes a header with a checksum, or with both a name and a comment, for corrupt if it comes in two calls.
    """
    if len(header) < 10:
        return bool(header) and not _MAGIC.startswith(header[:3])
    flags, end = header[3], 10
    if flags & 4:  # extra fields, after their length
        end += 2 + int.from_bytes(header[10:12], "little")
    for flag in (8, 16):  # name and comment
        if flags & flag:
            end = header.find(b"\0", end) + 1
            if not end:
                return len(header) > _MAX_HEADER
    return len(header) >= end + (flags & 2)


def by_zlib(feed: Feed) -> Iterator[bytes]:
    """Inflate one or several gzip members with the standard library."""
    engine: Any = None
    members = _Members()
    size = _PIECE // 4
    while chunk := feed.read(_ZLIB_INPUT):  # much at a time: nothing should release the lock between two calls of zlib
        start = 0
        while start < len(chunk):
            piece = chunk[start : start + size]
            start += len(piece)
            while piece:
                if engine is None:
                    piece = members.skip_padding(piece)
                    if not piece:
                        break
                    engine = zlib.decompressobj(31)
                    members.begin()
                if block := _inflate_piece(engine, piece):
                    members.empty = 0
                    yield block
                if len(piece) >= _PIECE // 32:  # the ratio of a shorter piece says nothing
                    size = max(_PIECE // 32, min(_PIECE, len(piece) * _ZLIB_BLOCK // max(1, len(block))))
                piece = b""
                if engine.eof:
                    piece, engine = engine.unused_data, None
    if engine is not None:
        engine.decompress(b"")  # `flush` hides errors: a stream that met one raises here
        raise EOFError


def _inflate_piece(engine: Any, piece: bytes) -> bytes:
    """Inflate all of a piece in one call into one buffer.

    `decompress` grows its buffer from 32 KiB and takes the interpreter's lock at each step, for which it waits as long
    as the loop decodes: together they then take as long as one after the other. `flush` takes the size of its first
    buffer as an argument. It inflates the input that `decompress` left over and, although documented as the last call,
    leaves an unfinished stream as it is: `flush_keeps_stream` tries that.
    """
    if not flush_keeps_stream():
        block: bytes = engine.decompress(piece)
        return block
    return _flush(engine, piece, _ZLIB_BLOCK)


def _flush(engine: Any, piece: bytes, length: int) -> bytes:
    first: bytes = engine.decompress(piece, 1)
    if engine.eof:
        return first
    rest_of_piece: bytes = engine.flush(length)
    return first + rest_of_piece


@functools.cache
def flush_keeps_stream() -> bool:
    """Return whether an unfinished stream can continue after `flush`, as with all known zlib modules."""
    sample = bytes(range(256)) * 64
    compressed = gzip.compress(sample + sample[::-1])
    engine = zlib.decompressobj(31)
    try:
        blocks = [_flush(engine, compressed[at : at + 61], 1024) for at in range(0, len(compressed), 61)]
    except zlib.error:
        return False
    return b"".join(blocks) == sample + sample[::-1] and engine.eof
