"""Compression of single records: zstandard with the extra `mirror`, zlib without.

The format of zlib is written by isal where it is installed, in a quarter of the time and as small. Each call of a
compressor lets another thread take Python's lock, and waits for it afterwards: where the library can, it compresses
many records in one call.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any, Final, TypeAlias

from wme_async.models.decoding import Buffer

__all__ = ["Compressed", "Compressor", "decompress"]

Compressed: TypeAlias = tuple[int, Buffer]
"""The number of the codec of a record, and its bytes."""

_PLAIN: Final = 0
_ZLIB: Final = 1
_ZSTD: Final = 2
_SMALLEST: Final = 100  # bytes below which compression does not help
_LEVEL: Final = 1
_THREADS: Final = 2
_PORTION: Final = 1024 * 1024  # bytes that are worth a handover to a thread


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    return zstandard


def _deflate() -> Callable[[Buffer], bytes]:
    try:
        from isal import isal_zlib  # noqa: PLC0415  # an extra
    except ImportError:
        return functools.partial(zlib.compress, level=_LEVEL)
    return functools.partial(isal_zlib.compress, level=_LEVEL)


class Compressor:
    """Compresses records, several at a time.

    Args:
        codec: `zstd`, `zlib`, or None for the better of those installed.

    Raises:
        ValueError: Another codec.
        ImportError: zstandard is not installed.
    """

    def __init__(self, codec: str | None = None) -> None:
        if codec not in {None, "zstd", "zlib"}:
            raise ValueError(f'codec must be "zstd" or "zlib", not {codec!r}')
        library = None if codec == "zlib" else _zstandard()
        if codec == "zstd" and library is None:
            raise _missing()
        self.codec: int = _ZLIB if library is None else _ZSTD
        self._library = library
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: dict[int, tuple[Future[list[Compressed]], int]] = {}

    def compress(self, records: Sequence[Buffer]) -> Iterator[Compressed]:
        """Return each record compressed, or as it is if it is small, in order.

        Threads compress many bytes ahead of the iterator, while the caller stores the first of them.
        """
        if records and id(records[0]) in self._ahead:
            return map(self._begun, records)
        portions = list(_portions(records))
        if len(portions) <= 1:
            return iter(self._compress(records))
        return chain.from_iterable(self._threads().map(self._compress, portions))

    def begin(self, records: Sequence[Buffer]) -> None:
        """Begin to compress records in threads; `compress` returns these results until `drop`."""
        for portion in _portions(records):
            work = self._threads().submit(self._compress, portion)
            self._ahead.update((id(record), (work, index)) for index, record in enumerate(portion))

    def drop(self, records: Sequence[Buffer]) -> None:
        """Forget the results for records of `begin`, which the caller has kept until now."""
        for record in records:
            begun = self._ahead.pop(id(record), None)
            if begun is not None:
                begun[0].cancel()

    def _begun(self, record: Buffer) -> Compressed:
        begun = self._ahead.get(id(record))
        return self._compress([record])[0] if begun is None else begun[0].result()[begun[1]]

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="wme compress")
        return self._pool

    def _compress(self, records: Sequence[Buffer]) -> list[Compressed]:
        large = [record for record in records if len(record) >= _SMALLEST]
        compressed = iter(self._encode(large) if large else ())
        return [(self.codec, next(compressed)) if len(record) >= _SMALLEST else (_PLAIN, record) for record in records]

    def _encode(self, records: list[Buffer]) -> Iterable[Buffer]:
        if self._library is None:
            return map(_deflate(), records)
        compressor = self._library.ZstdCompressor(level=_LEVEL)
        if "multi_compress_to_buffer" not in self._library.backend_features:  # on PyPy
            return map(compressor.compress, records)
        segments: Iterable[Buffer] = compressor.multi_compress_to_buffer(records)
        return segments

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _portions(records: Sequence[Buffer]) -> Iterator[Sequence[Buffer]]:
    start, size = 0, 0
    for index, record in enumerate(records, 1):
        size += len(record)
        if size >= _PORTION:
            yield records[start:index]
            start, size = index, 0
    if start < len(records):
        yield records[start:]


def decompress(codec: int, data: bytes) -> bytes:
    """Return a record.

    Args:
        codec: The number of the codec.
        data: The compressed record.

    Raises:
        ImportError: The record needs zstandard, which is not installed.
        ValueError: The codec is unknown.
    """
    if codec == _PLAIN:
        return data
    if codec == _ZLIB:
        return zlib.decompress(data)
    if codec != _ZSTD:
        raise ValueError(f"codec {codec} is not known: upgrade wme_async")
    library = _zstandard()
    if library is None:
        raise _missing()
    record: bytes = library.ZstdDecompressor().decompress(data)
    return record


def _missing() -> ImportError:
    return ImportError("records compressed by zstandard need the extra `mirror`: pip install 'wme-async[mirror]'")
