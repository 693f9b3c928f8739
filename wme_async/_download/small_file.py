"""Small files by the thousand: fetched in one response, held in memory, and brought to the disk in groups."""

import errno
import hashlib
import os
from pathlib import Path

import msgspec

from wme_async._download.finished import store_note
from wme_async._download.first_range import range_request
from wme_async._download.range_responses import ContentRange, content_coding, parse_content_range, strong_etag
from wme_async._download.source import SignedUrl
from wme_async._files import LockedFile, Problem, publish, sibling, sync_file
from wme_async._platform import read_at, write_at
from wme_async._transport import Transport
from wme_async.errors import IntegrityError


class SmallContent(msgspec.Struct, frozen=True):
    """The bytes of a small file.

    Args:
        data: All of them.
        md5: Their MD5 in hexadecimal.
        etag: The version of the response, where it has one.
    """

    data: bytes
    md5: str
    etag: str | None


def _content_of(data: bytes, *, etag: str | None) -> SmallContent:
    return SmallContent(data, hashlib.md5(data, usedforsecurity=False).hexdigest(), etag)


async def fetch_small(signed: SignedUrl, transport: Transport, *, limit: int) -> SmallContent:
    """Fetch a small file in one response, without retries.

    Args:
        signed: Its address.
        transport: Sends the request.
        limit: Bytes that are accepted at most.

    Raises:
        IntegrityError: The file is larger, or the response does not hold all of it.
        WMEError: The request failed.
    """
    response = await transport.request(range_request(signed, 0, limit, None), retry=False)
    data = response.body
    content_range = parse_content_range(response.headers.get("Content-Range")) if response.status == 206 else None
    if content_range != ContentRange(0, len(data), len(data)) or content_coding(response.headers) is not None:
        raise IntegrityError(
            f"HTTP {response.status} with {len(data)} bytes is not the whole file",
            url=signed.url.partition("?")[0],
        )
    return _content_of(data, etag=strong_etag(response.headers.get("ETag")))


class SmallFile:
    """`NAME.part` with all bytes of a small file in it. All methods block for a few system calls.

    Args:
        target: The name that the finished file gets.
        content: Its bytes; None for those that an earlier process has left.

    Raises:
        BlockingIOError: Another download to this target is at work.
        FileNotFoundError: The folder does not exist.
        OSError: It cannot be written, and was removed.
    """

    def __init__(self, target: Path, content: SmallContent | None) -> None:
        self.target = target
        self.path = sibling(target, ".part")
        try:
            self._file = LockedFile(self.path, mode=0o666)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another download to this target is at work", str(target)) from None
        with Problem("the file could not be written", self.path):
            try:
                self.content = self._read() if content is None else self._write(content)
            except BaseException:
                self.close()
                raise

    @classmethod
    def left_over(cls, target: Path, *, md5: str, limit: int) -> "SmallFile | bool":
        """Look for a complete file that an earlier process has not renamed.

        Args:
            target: The name that the finished file gets.
            md5: Its MD5.
            limit: Bytes at most.

        Returns:
            The file if it is whole; else whether a new one may be written, which is not so while there is a part of a
            large file that can be resumed.
        """
        try:
            size = sibling(target, ".part").stat().st_size
        except OSError:
            return True
        if sibling(target, ".part.ledger").exists():
            return False
        if not 0 < size <= limit:
            return True
        file = cls(target, None)
        if file.content.md5 == md5:
            return file
        file.close()
        return True

    def _read(self) -> SmallContent:
        return _content_of(read_at(self._file.descriptor, os.fstat(self._file.descriptor).st_size, 0), etag=None)

    def _write(self, content: SmallContent) -> SmallContent:
        descriptor = self._file.descriptor
        if os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, 0)
        offset = 0
        while offset < len(content.data):
            offset += write_at(descriptor, memoryview(content.data)[offset:], offset)
        return content

    def note_version(self, *, identity: str, verified: bool | None) -> os.stat_result:
        """Store the version with the file.

        Args:
            identity: Host and path of the file on its server.
            verified: Whether its MD5 is that of the metadata.

        Returns:
            The status of the file.
        """
        descriptor, content = self._file.descriptor, self.content
        if content.etag is None:
            return os.fstat(descriptor)
        return store_note(descriptor, identity=identity, etag=content.etag, md5=content.md5, verified=verified)

    def flush(self) -> None:
        """Bring the bytes to the disk, which takes milliseconds.

        Raises:
            OSError: They did not reach it.
        """
        with Problem("the finished file did not reach the disk", self.path):
            sync_file(self._file.descriptor)

    def publish(self) -> None:
        """Give the file its name. The folder is not flushed.

        Raises:
            IntegrityError: Another program has changed or replaced the file.
            OSError: It cannot be renamed.
        """
        size = len(self.content.data)
        publish(self._file.descriptor, self.path, self.target, size=size, close=self._file.close)
        self._file.close()

    def close(self) -> None:
        """Remove the file unless it has its name. Closing twice does no harm."""
        self._file.remove()
