"""The ETags of an object store, computed from bytes in order.

The ETag of an object that was uploaded in one part is the MD5 of its bytes; after an upload in n parts it is the MD5 of
the parts' MD5s, followed by `-n`. It does not say the sizes of the parts, so all usual sizes that make n are tried.
"""

import hashlib
import re
from datetime import datetime
from typing import Protocol

_MIB = 1 << 20

_MD5 = re.compile(r'"([0-9a-fA-F]{32})"')

# Bytes of the first part and of each one after it. First the one of WME's exporter. Last its copies for the free plan,
# which take the last byte of a range for the one after it, so that their first part is a byte longer than the others.
_CUTS = (
    (100_000_000, 100_000_000),
    *((mib * _MIB, mib * _MIB) for mib in (5, 8, 10, 15, 16, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)),
    (4096 * _MIB + 1, 4096 * _MIB),
)


class Digest(Protocol):
    """Takes the bytes of a file in order: a digest of hashlib, or `PartSums`."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""


class PartSums:
    """The MD5s of the parts of an object, for every usual part size that makes as many parts as its ETag says.

    Args:
        etag: Its strong ETag, with quotes.
        size: Its bytes.

    Attributes:
        etag: The ETag.
    """

    def __init__(self, etag: str, size: int) -> None:
        self.etag = etag
        count = etag.strip('"').rpartition("-")[2] if "-" in etag else ""
        # A single part holds all bytes, whatever the part size was.
        cuts = [(max(1, size), max(1, size))] if count == "1" else [cut for cut in _CUTS if count == _count(size, *cut)]
        self._uploads = [_Upload(*cut) for cut in cuts]

    def __bool__(self) -> bool:
        """Whether there is any such part size. Otherwise nothing is computed and nothing proven."""
        return bool(self._uploads)

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes, which costs an MD5 of them for each part size. Blocks; meant for a thread."""
        view = memoryview(data)
        for upload in self._uploads:
            upload.update(view)

    def proven(self) -> bool:
        """Return whether all bytes of the object together have its ETag. Call it once."""
        return any(upload.etag() == self.etag for upload in self._uploads)


def _count(size: int, first: int, rest: int) -> str:
    return str(1 + max(0, -(-(size - first) // rest)))


class _Upload:
    """The ETag of an object that is uploaded in parts of one size, though the first may have another."""

    def __init__(self, first: int, rest: int) -> None:
        self._room = first
        self._rest = rest
        self._part = hashlib.md5(usedforsecurity=False)
        self._whole = hashlib.md5(usedforsecurity=False)
        self._count = 0

    def update(self, data: memoryview) -> None:
        while data:
            if not self._room:
                self._close()
            piece, data = data[: self._room], data[self._room :]
            self._part.update(piece)
            self._room -= len(piece)

    def etag(self) -> str:
        self._close()
        return f'"{self._whole.hexdigest()}-{self._count}"'

    def _close(self) -> None:
        self._whole.update(self._part.digest())
        self._part = hashlib.md5(usedforsecurity=False)
        self._room = self._rest
        self._count += 1


def may_be_newer(stored: datetime | None, described: datetime | None) -> bool:
    """Return whether an object may be newer than its metadata.

    Metadata is written after its object. If the object was stored later, the metadata describes an earlier version, or
    the object is a copy.

    Args:
        stored: When the object was stored, None where unknown.
        described: The date of the metadata, None where unknown.
    """
    return stored is None or described is None or stored > described


def plain_md5(etag: str | None) -> str | None:
    """Return the MD5 that an ETag states, in lower case; None for an object that was uploaded in parts, or no ETag."""
    match = _MD5.fullmatch(etag or "")
    return match[1].lower() if match else None
