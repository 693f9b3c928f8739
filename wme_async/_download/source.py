"""The records of the downloader: sources, versions, progress and results."""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from wme_async._download.range_responses import strong_validator


class FileInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The size and version of a file in the head of a response.

    Args:
        size: Bytes, None where the server does not say.
        etag: As it was sent, with its quotes. It is an MD5 only for archives that were uploaded in one part; the
            metadata's `version` always is one.
        last_modified: When the bytes were stored, UTC.
        content_type: As it was sent.
        accept_ranges: Whether the server says that it serves byte ranges.
        headers: All headers of the response.
    """

    size: int | None = None
    etag: str | None = None
    last_modified: datetime | None = None
    content_type: str | None = None
    accept_ranges: bool = False
    headers: Mapping[str, str] = {}


def validator_of(info: FileInfo) -> str | None:
    """Return the validator of a version, a strong ETag or a date; None without one."""
    return strong_validator(info.etag, info.headers)


class Checksum(msgspec.Struct, frozen=True, kw_only=True):
    """The checksum in the metadata of a file.

    Args:
        md5: Of all its bytes, in hexadecimal.
        modified: The date of the metadata, UTC; None where unknown. A file that was stored later may be another one.
        exact: Bytes of another version are an error, even if the server has them now.
    """

    md5: str
    modified: datetime | None = None
    exact: bool = False


class SignedUrl(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that serves the bytes without our credentials.

    Args:
        url: Absolute; asked for byte for byte as it is.
        expires_at: When the signature runs out, in seconds of the transport's monotonic clock; None: never. A body that
            has begun by then goes on.
        role: The object store behind WME, or a URL of the user's.
        headers: To send along.
    """

    url: str
    expires_at: float | None = None
    role: Literal["store", "public"] = "store"
    headers: Mapping[str, str] = {}

    def __repr__(self) -> str:
        # The query holds the signature.
        return f"SignedUrl(url={self.url.partition('?')[0]!r}, expires_at={self.expires_at!r}, role={self.role!r})"


class Source(Protocol):
    """One file on a server."""

    @property
    def identity(self) -> str:
        """Host and path of the file, without credentials and signatures. Only the same file is resumed."""
        ...  # pyright takes a body of words alone for one that returns nothing

    async def head(self) -> FileInfo:
        """Request size and version. Free.

        Raises:
            NotFound: The file is not there; the server also says so when it has trouble of its own.
        """
        ...  # pyright takes a body of words alone for one that returns nothing

    async def sign(self) -> SignedUrl:
        """Request a signed URL of the bytes, which counts against the month's allowance.

        Raises:
            WMEError: Signing failed after all retries, which ends the download.
        """
        ...  # pyright takes a body of words alone for one that returns nothing

    async def checksum(self) -> Checksum | None:
        """Return the checksum in the metadata, or None. Free, and requested again after a mismatch.

        Raises:
            NotFound: The file has no metadata.
        """
        ...  # pyright takes a body of words alone for one that returns nothing


@runtime_checkable
class DirectSource(Source, Protocol):
    """A source whose signed address can be used without asking for the version first."""

    @property
    def metered(self) -> bool:
        """Whether each signature counts against an allowance, also one for a file that does not exist."""
        ...  # pyright takes a body of words alone for one that returns nothing


class Progress(msgspec.Struct, frozen=True):
    """How far a download is.

    Args:
        done: Bytes that are there, those of earlier attempts included. It goes down when the file was replaced on the
            server and is fetched again; it never exceeds `total`.
        total: Bytes of the file, None where unknown.
        rate: Bytes per second, lately.
        eta: Seconds until the end at this rate, None where unknown.
    """

    done: int
    total: int | None
    rate: float
    eta: float | None


ProgressHook = Callable[[Progress], Awaitable[None] | None]
"""Receives progress about ten times a second and once at the end; it may be a coroutine function."""


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A finished download.

    Args:
        path: The file.
        size: Its bytes.
        etag: Its version on the server, where known.
        version: Its MD5 in hexadecimal, where it was computed or promised.
        verified: True: the bytes have the checksum of the metadata. None: there was nothing to compare with, or the
            metadata is of another version and the bytes have the ETag of the file. (A file that fails the check is
            never handed out.)
        unchanged: The file was there already in this version, so nothing was fetched.
        seconds: How long it took.
        bytes_fetched: Bytes that crossed the network for it, repeated ones included.
        api_requests: Metered requests: one, and one more for each time that the signature ran out.
        resumed: Bytes that an earlier, interrupted download had left.
        restarts: How often the file was replaced on the server meanwhile and begun again.
    """

    path: Path
    size: int
    etag: str | None = None
    version: str | None = None
    verified: bool | None = None
    unchanged: bool = False
    seconds: float = 0.0
    bytes_fetched: int = 0
    api_requests: int = 0
    resumed: int = 0
    restarts: int = 0
