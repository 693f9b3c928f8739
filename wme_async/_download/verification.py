"""What is asked of a source and its server beside the ranges: the version, the checksum, the whole file at once."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

import msgspec

from wme_async._download.attempts import MAX_WRONG_RESPONSES, check_signatures
from wme_async._download.budget import SignedUrlCache
from wme_async._download.part_file import PartFile
from wme_async._download.range_fetcher import FileReplaced
from wme_async._download.range_responses import (
    conditions,
    content_coding,
    etag_matches,
    parse_content_range,
    strong_etag,
)
from wme_async._download.source import Checksum, DirectSource, FileInfo, Source
from wme_async._tasks import WorkGroup, long_in_thread, raise_first_cause
from wme_async._transport import Body, Request, Transport
from wme_async._transport.retry import Backoff, is_transient, jittered_delay, note_attempts
from wme_async.errors import IntegrityError, NotFound, StatusError, WMEError

__all__ = [
    "delay_after_failure",
    "fetch_version",
    "open_whole_file",
    "promised_and_signed",
    "verify",
    "verify_sha1",
    "wait_before_restart",
]


async def fetch_info(source: Source, transport: Transport) -> FileInfo:
    """Ask for the version of a file. The server says 404 to a HEAD for any trouble of its own, so that is asked again.

    Raises:
        NotFound: It is still not there.
        WMEError: The question failed.
    """
    for attempt in (1, 2):
        try:
            return await source.head()
        except NotFound:
            await wait_before_restart(transport, attempt)
    return await source.head()


async def wait_before_restart(transport: Transport, attempt: int) -> None:
    """Wait a little, the longer the more attempts there were."""
    await transport.sleep(jittered_delay(transport.retry, attempt + 1, transport.random.random))


async def fetch_version(
    source: Source, transport: Transport, *, checksum: bool = True
) -> tuple[FileInfo, Checksum | None]:
    """Ask for the version of a file and, where it is wanted, the checksum: both at once, and both free.

    Raises:
        NotFound: The file is not there.
        WMEError: A question failed.
    """
    with raise_first_cause():
        async with WorkGroup() as group:
            info = group.start(fetch_info(source, transport))
            promised = group.start(promised_checksum(source)) if checksum else None
    return info.result(), promised.result() if promised else None


async def promised_checksum(source: Source) -> Checksum | None:
    """Ask for the promised MD5; None also where the file has no metadata, as the monthly Commons archive has none."""
    try:
        promised = await source.checksum()
    except NotFound:
        return None
    if promised is None or not promised.md5:
        return None
    return msgspec.structs.replace(promised, md5=promised.md5.lower())


async def promised_and_signed(source: DirectSource, signed_urls: SignedUrlCache) -> tuple[bool, Checksum | None]:
    """Get an address of a file, and the checksum of its metadata beside it.

    Where signatures are metered the checksum comes first: a file without any may not exist, and its signature would be
    charged all the same.

    Returns:
        Whether there is an address now; the checksum, None where there is none.

    Raises:
        WMEError: There is no address, or the metadata cannot be had.
    """
    if source.metered:
        promised = await promised_checksum(source)
        if promised is not None:
            await signed_urls.get()
        return promised is not None, promised
    with raise_first_cause():
        async with WorkGroup() as group:
            metadata = group.start(promised_checksum(source))
            await signed_urls.get()
    return True, metadata.result()


async def verify(
    source: Source,
    md5: str | None,
    promised: Checksum | None,
    info: FileInfo,
    has_etag: Callable[[], Awaitable[bool]],
) -> bool | None:
    """Say whether the bytes are what the metadata promises.

    Archives are replaced in place, and their metadata follows a little later. So a mismatch is first looked up again;
    then the bytes are compared with the ETag, which comes with the object itself. If they have it, the object is whole
    and newer than its metadata, or older where that was replaced since.

    Args:
        source: Where they come from.
        md5: What they have, None where it was not wanted.
        promised: What the metadata promised when they were asked for.
        info: Their version.
        has_etag: Says whether the bytes have the ETag of a file that was uploaded in parts. Called where nothing else
            has proven them.

    Returns:
        True if they are; None if there is nothing to compare with, or the metadata is of another version.

    Raises:
        IntegrityError: They are not.
    """
    if md5 is None or promised is None:
        return None
    if md5 == promised.md5:
        return True
    # Metadata that has vanished meanwhile proves as little as what it said before, so the ETag decides then too.
    promised = await promised_checksum(source) or promised
    if md5 == promised.md5:
        return True
    if strong_etag(info.etag) == f'"{md5}"' or await has_etag():
        return None
    raise IntegrityError(
        "what arrived does not have the MD5 that its metadata promises; nothing was kept, so fetch it again",
        expected=promised.md5,
        got=md5,
    )


async def verify_sha1(known: Collection[str], part: PartFile) -> bool:
    """Return True, for bytes that have one of these SHA-1.

    Raises:
        IntegrityError: They have another.
    """
    got = await long_in_thread(part.sha1)
    if got not in known:
        raise IntegrityError(
            f"what arrived has another SHA-1 than {part.target.name} should have; nothing was kept",
            expected=" or ".join(sorted(known)),
            got=got,
        )
    return True


@contextlib.asynccontextmanager
async def open_whole_file(
    transport: Transport, signed_urls: SignedUrlCache, info: FileInfo
) -> AsyncIterator[tuple[Body, FileInfo]]:
    """Ask for a file in one answer, which is of one version whatever other answers say.

    A file of an archive has to be the version that is known. Of a URL that a user named the answer itself decides: it
    is asked for without conditions, and a content coding is part of the file.

    Yields:
        The body, and what its head says of the file; `size` is None where it does not say it.

    Raises:
        FileReplaced: It is another version.
        IntegrityError: It is something else.
        WMEError: It could not be had.
    """
    signed = await signed_urls.get()
    etag = None if signed_urls.plain else strong_etag(info.etag)
    headers = {**signed.headers, "Accept-Encoding": "identity", **conditions(etag)}
    request = Request(method="GET", role=signed.role, path=signed.url, headers=headers, accepts="any")
    try:
        async with transport.open(request, retry=False) as body:
            size = _size_of_any(body) if signed_urls.plain else _size_of_version(body, info, etag)
            signed_urls.worked()
            yield body, msgspec.structs.replace(info, size=size, etag=body.headers.get("ETag", info.etag))
    except StatusError as error:
        if error.status == 403:
            signed_urls.refused(signed)
        raise


def delay_after_failure(error: WMEError, signed_urls: SignedUrlCache, backoff: Backoff, elapsed: float) -> float:
    """Return the seconds to wait before a file is asked for in one answer again, or raise what ends that.

    Args:
        error: Why the last answer was not taken.
        signed_urls: Where its address came from.
        backoff: Counts the attempts.
        elapsed: Seconds since the first one began.

    Raises:
        FileReplaced: It is another version.
        WMEError: It cannot be had.
    """
    status = error.status if isinstance(error, StatusError) else None
    if status == 412:
        raise FileReplaced(str(error)) from error
    if signed_urls.failure is not None:
        raise error
    if status == 403:
        check_signatures(signed_urls, error)
        return 0.0
    wrong = isinstance(error, IntegrityError)
    if not wrong and not is_transient(error):
        raise error
    wait = backoff.failed(elapsed=elapsed, retry_after=getattr(error, "retry_after", None))
    if wait is None or (wrong and backoff.attempts > MAX_WRONG_RESPONSES):
        raise note_attempts(error, attempts=backoff.attempts, elapsed=elapsed)
    return wait


def _size_of_version(body: Body, info: FileInfo, etag: str | None) -> int | None:
    """Check the head of an answer that should hold a known version of a file; return how many bytes it promises."""
    coding = content_coding(body.headers)
    if body.status != 200 or coding is not None:
        encoded = f", encoded ({coding})," if coding else ""
        raise _unexpected(body, f"HTTP {body.status}{encoded} where the plain file was asked for")
    if not etag_matches(body.headers.get("ETag"), etag):
        raise FileReplaced("the ETag has changed")
    size = _length_of(body)
    if size is not None and info.size is not None and size != info.size:
        raise FileReplaced(f"the file has {size} bytes and no longer {info.size}")
    return size if size is not None else info.size


def _size_of_any(body: Body) -> int | None:
    """Check the head of an answer that should hold a whole file; return how many bytes it promises."""
    length = _length_of(body)
    if body.status in {200, 203}:
        return length
    if body.status == 204 or (body.status == 206 and length == 0):
        # Some servers have no other way to send an empty file.
        return 0
    sent = parse_content_range(body.headers.get("Content-Range")) if body.status == 206 else None
    if sent is not None and sent.start == 0 and sent.stop == sent.size:
        return sent.size
    raise _unexpected(body, f"HTTP {body.status} where the whole file was asked for")


def _length_of(body: Body) -> int | None:
    length = body.headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def _unexpected(body: Body, message: str) -> IntegrityError:
    return IntegrityError(message, url=body.url.partition("?")[0])
