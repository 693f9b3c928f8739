"""Two ways to inflate gzip, each a generator of blocks that lets the interpreter's lock go once for each block."""

import gzip
import importlib
import zlib
from collections.abc import Iterator
from typing import Any, Final

from wme_async._archive.feed import Feed, SourceFailed

__all__ = ["CORRUPT", "by_isal", "by_zlib", "has_isal"]

CORRUPT: Final = (gzip.BadGzipFile, zlib.error)
"""What inflaters raise for damaged bytes, beside EOFError where they end too early."""

_BLOCK: Final = 2 * 1024 * 1024  # bytes that a call of isal should make: what the loop decodes meanwhile
_MOST: Final = _BLOCK * 5 // 4  # bytes that it makes at most; what is left of the input is then copied
_PIECE_OF_ISAL: Final = 1024 * 1024  # compressed bytes for one call of it, at most
_MAGIC: Final = b"\x1f\x8b\x08"  # with the one method there is
_RESERVED: Final = 0xE0  # flags that RFC 1952 (2.3.1.2) has decoders refuse; zlib does, isal does not
_EMPTY_MEMBERS: Final = 10_000  # that may follow each other; each costs many times what its 20 bytes would
_LONGEST_HEADER: Final = 256 * 1024  # bytes of one that is waited for; what is longer is no honest one
_INPUT: Final = 4 * 1024 * 1024  # compressed bytes taken at a time for zlib
_PIECE: Final = 64 * 1024  # compressed bytes for one call of zlib; at most 1032 times as much can come out
_TARGET: Final = 512 * 1024  # bytes that a call of zlib should make, so that a bomb gets small pieces


def has_isal() -> bool:
    """Say whether isal is installed."""
    try:
        importlib.import_module("isal.igzip_lib")
    except ImportError:
        return False
    return True


def by_isal(feed: Feed) -> Iterator[bytes]:
    """Inflate with isal, one or several gzip members.

    Where input is at hand it is read before a block is given, so that from there to the next call of the inflater the
    thread never lets the lock go: the loop would take it and keep it for a block.
    """
    held: list[bytes] = []
    try:
        yield from _by_isal(feed, held)
    except (*CORRUPT, OSError, SourceFailed):
        # What was inflated before is good, and is wanted whatever comes behind it.
        if held:
            yield b"".join(held)
        raise


def _by_isal(feed: Feed, held: list[bytes]) -> Iterator[bytes]:
    """Do it; `held` has what is inflated and not yet given, at most `_MOST` bytes of however many members."""
    lib = importlib.import_module("isal.igzip_lib")
    # glibc maps large blocks anew, page by page, until one of their size has been freed. Those of isal are cut to what
    # is in them before that, so it would go on for ever, and cost half as much again as inflating.
    bytes(2 * _MOST)
    reading, spare = memoryview(bytearray(_PIECE_OF_ISAL)), memoryview(bytearray(_PIECE_OF_ISAL))
    engine: Any = None
    header = b""  # the beginning of one
    members = empty = 0
    size = _PIECE
    piece: Any = reading[: feed.readinto(reading[:size])]
    while piece:
        taken, made, given = len(piece), 0, 0
        while piece:
            if engine is None:
                header = _next_member(header + piece, members)
                if not _is_whole(header):
                    break
                if header.startswith(_MAGIC) and header[3] & _RESERVED:
                    raise gzip.BadGzipFile("a gzip header with reserved flags set")
                empty = _count_empty(empty)
                piece, header = header, b""
                engine = lib.IgzipDecompressor(flag=lib.DECOMP_GZIP)
                members += 1
            while True:
                block = _by_engine(lib, engine, piece)
                if made - given + len(block) > _MOST:
                    yield _all_of(held)
                    given = made
                if block:
                    held.append(block)
                    empty = 0
                made += len(block)
                piece = b""
                if engine.eof or (engine.needs_input and len(block) < _MOST):
                    break
            if engine.eof:
                piece, engine = engine.unused_data, None
        if taken >= _PIECE // 2:  # a shorter one says nothing
            size = max(_PIECE // 2, min(_PIECE_OF_ISAL, taken * _BLOCK // max(1, made)))
        at_hand = feed.ready() > 0
        if not at_hand and made > given:
            yield _all_of(held)
            given = made
        reading, spare = spare, reading
        piece = reading[: feed.readinto(reading[:size])]
        if made > given:
            yield _all_of(held)
    if engine is not None or header:
        raise EOFError


def _all_of(held: list[bytes]) -> bytes:
    block = held[0] if len(held) == 1 else b"".join(held)
    held.clear()
    return block


def _by_engine(lib: Any, engine: Any, piece: Any) -> bytes:
    try:
        block: bytes = engine.decompress(piece, _MOST)
    except lib.error as error:
        raise zlib.error(str(error)) from error
    return block


def _is_whole(header: bytes) -> bool:
    """Say whether a member's header is all there, or is none.

    isal takes one with a checksum, or with both a name and a comment, for damaged where it comes in two calls.
    """
    if len(header) < 10:
        return bool(header) and not _MAGIC.startswith(header[:3])
    flags, at = header[3], 10
    if flags & 4:  # more fields, after their length
        at += 2 + int.from_bytes(header[10:12], "little")
    for flag in (8, 16):  # name and comment
        if flags & flag:
            at = header.find(b"\0", at) + 1
            if not at:
                return len(header) > _LONGEST_HEADER
    return len(header) >= at + (flags & 2)


def _next_member(piece: Any, members: int) -> bytes:
    """Return what is left from the next member on: zeros may stand after each."""
    rest = bytes(piece).lstrip(b"\0")
    if rest and members and rest[0] != 0x1F:
        raise gzip.BadGzipFile("there is more after the end of the gzip file")
    return rest


def _count_empty(count: int) -> int:
    """Return the number of members since the last byte came out, with one more.

    Raises:
        BadGzipFile: There are so many that nobody can have meant it.
    """
    if count >= _EMPTY_MEMBERS:
        raise gzip.BadGzipFile(f"more than {_EMPTY_MEMBERS} empty gzip members in a row; pack it again if it is yours")
    return count + 1


def by_zlib(feed: Feed) -> Iterator[bytes]:
    """Inflate with the standard library, one or several gzip members."""
    engine: Any = None
    members = empty = 0
    size = _PIECE // 4
    while chunk := feed.read(_INPUT):  # much at once: between two calls of zlib nothing should let the lock go
        at = 0
        while at < len(chunk):
            piece = chunk[at : at + size]
            at += len(piece)
            while piece:
                if engine is None:
                    piece = _next_member(piece, members)
                    if not piece:
                        break
                    engine = zlib.decompressobj(31)
                    members += 1
                    empty = _count_empty(empty)
                if block := _inflate_piece(engine, piece):
                    empty = 0
                    yield block
                if len(piece) >= _PIECE // 32:  # a shorter one says nothing
                    size = max(_PIECE // 32, min(_PIECE, len(piece) * _TARGET // max(1, len(block))))
                piece = b""
                if engine.eof:
                    piece, engine = engine.unused_data, None
    if engine is not None:
        engine.decompress(b"")  # `flush` keeps errors to itself: a stream that met one says so here
        raise EOFError


def _inflate_piece(engine: Any, piece: bytes) -> bytes:
    """Inflate all of a piece in one call into one buffer.

    `decompress` grows its buffer from 32 KiB and takes the interpreter's lock at each step, for which it waits as long
    as the loop decodes: together they then take as long as one after the other. `flush` takes the size of its first
    buffer as an argument. It inflates what `decompress` left over and, although documented as the last call, leaves an
    unfinished stream as it is: `_flush_goes_on` has tried that.
    """
    if not _flush_goes_on():
        block: bytes = engine.decompress(piece)
        return block
    return _flushed(engine, piece, _TARGET)


def _flushed(engine: Any, piece: bytes, length: int) -> bytes:
    first: bytes = engine.decompress(piece, 1)
    if engine.eof:
        return first
    rest: bytes = engine.flush(length)
    return first + rest


_goes_on: bool | None = None


def _flush_goes_on() -> bool:
    """Say whether an unfinished stream can be continued after `flush`, as with all zlib modules known."""
    global _goes_on  # noqa: PLW0603 - tried once in a process
    if _goes_on is None:
        sample = bytes(range(256)) * 64
        packed = gzip.compress(sample + sample[::-1])
        engine = zlib.decompressobj(31)
        made = b""
        try:
            for at in range(0, len(packed), 61):
                made += _flushed(engine, packed[at : at + 61], 1024)
            _goes_on = made == sample + sample[::-1] and engine.eof
        except zlib.error:
            _goes_on = False
    return _goes_on
