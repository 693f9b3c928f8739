"""Compression of single records: zstandard with the extra `mirror`, zlib without."""

import functools
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

__all__ = ["Compressor", "decompress"]

_PLAIN: Final = 0
_ZLIB: Final = 1
_ZSTD: Final = 2
_SMALLEST: Final = 100  # bytes below which compression does not help
_LEVEL: Final = 1
_THREADS: Final = 2
_LEAST: Final = 512 * 1024  # bytes that are worth another thread


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415  # an extra
    except ImportError:
        return None
    return zstandard


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

    def compress(self, records: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Return the number of the codec and the compressed bytes of each record.

        Many bytes are shared between two threads, which compress without Python's lock.
        """
        if len(records) < _THREADS or sum(map(len, records)) < _LEAST:
            return self._compress(records)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS - 1, thread_name_prefix="wme compress")
        half = len(records) // _THREADS
        other = self._pool.submit(self._compress, records[half:])
        return self._compress(records[:half]) + other.result()

    def _compress(self, records: Sequence[bytes]) -> list[tuple[int, bytes]]:
        compress: Callable[[bytes], bytes] = (
            functools.partial(zlib.compress, level=_LEVEL)
            if self._library is None
            else self._library.ZstdCompressor(level=_LEVEL).compress
        )
        codec = self.codec
        return [(codec, compress(record)) if len(record) >= _SMALLEST else (_PLAIN, record) for record in records]

    def close(self) -> None:
        """End its thread."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


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
