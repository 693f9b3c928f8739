"""Two ways to inflate gzip, each a generator of blocks that lets the interpreter's lock go once for each block."""

import gzip
import importlib
import zlib
from collections.abc import Iterator
from typing import Any, Final

from wme_async._archive._feed import Feed

__all__ = ["DAMAGE", "by_isal", "by_zlib", "has_isal"]

DAMAGE: Final = (gzip.BadGzipFile, zlib.error)
"""What inflaters raise for damaged bytes, beside EOFError where they end too early."""

_BLOCK: Final = 2 * 1024 * 1024  # bytes inflated at most in one go
_TRICKLE: Final = 16 * 1024  # bytes inflated at a time while the source is slow
_INPUT: Final = 4 * 1024 * 1024  # compressed bytes taken at a time: a refill amid a block waits for the lock once more
_PIECE: Final = 64 * 1024  # compressed bytes for one call of zlib; at most 1032 times as much can come out
_TARGET: Final = 512 * 1024  # bytes that a call of zlib should make, so that a bomb gets small pieces


def has_isal() -> bool:
    """Say whether isal is installed."""
    try:
        importlib.import_module("isal.igzip")
    except ImportError:
        return False
    return True


def by_isal(feed: Feed) -> Iterator[bytes]:
    """Inflate with isal's file object, the one interface of it that lets the interpreter's lock go for a whole block.

    It fills each block before it gives it, so no more is asked for than what it and the window hold probably makes:
    otherwise the records of a slow source would come late.
    """
    isal_zlib = importlib.import_module("isal.isal_zlib")
    reader = isal_zlib._GzipReader(feed, _INPUT)  # noqa: SLF001 - it is in the module's stubs; IGzipFile cannot set a size
    made = 0
    made_then = taken_then = 0  # when it last ran out of input, so that what it still holds can be told
    while True:
        ratio = max(1.0, made_then / max(1, taken_then))
        held = max(0.0, feed.taken - taken_then - (made - made_then) / ratio)
        ready = int((held + feed.ready()) * ratio / 2)
        taken = feed.taken
        try:
            block = reader.read(min(_BLOCK, max(_TRICKLE, ready)))
        except isal_zlib.error as error:
            raise zlib.error(str(error)) from error
        if not block:
            return
        if feed.taken != taken:
            made_then, taken_then = made, taken
        made += len(block)
        yield block


def by_zlib(feed: Feed) -> Iterator[bytes]:
    """Inflate with the standard library, one or several gzip members."""
    engine: Any = None
    members = 0
    size = _PIECE // 4
    while chunk := feed.read(_INPUT):  # much at once: between two calls of zlib nothing should let the lock go
        at = 0
        while at < len(chunk):
            piece = chunk[at : at + size]
            at += len(piece)
            while piece:
                if engine is None:
                    piece = piece.lstrip(b"\0")  # zeros may stand after each member
                    if not piece:
                        break
                    if members and piece[0] != 0x1F:
                        raise gzip.BadGzipFile("there is more after the end of the gzip file")
                    engine = zlib.decompressobj(31)
                    members += 1
                if block := _inflate_piece(engine, piece):
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
