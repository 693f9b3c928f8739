"""The version and the checksum of a file on the server, and whether its bytes have them."""

import contextlib
from collections.abc import Collection
from pathlib import Path

import msgspec

from wme_async._download.budget import SignedUrlCache
from wme_async._download.etags import plain_md5
from wme_async._download.range_responses import strong_etag
from wme_async._download.source import Checksum, DirectSource, FileInfo, Source
from wme_async._tasks import WorkGroup, raise_first_cause
from wme_async._transport import Transport
from wme_async._transport.retry import jittered_delay
from wme_async.errors import IntegrityError, NotFound, Replaced


async def fetch_info(source: Source, transport: Transport) -> FileInfo:
    """Request the version of a file. The server answers a HEAD with 404 also when it fails itself, so 404 is retried.

    Raises:
        NotFound: The file does not exist.
        WMEError: The request failed.
    """
    for attempt in (1, 2):
        try:
            return await source.head()
        except NotFound:
            await wait_before_restart(transport, attempt)
    return await source.head()


async def wait_before_restart(transport: Transport, attempt: int) -> None:
    """Wait before a file is requested anew, longer after each attempt."""
    await transport.sleep(jittered_delay(transport.retry, attempt + 1, transport.random.random))


async def fetch_version(
    source: Source, transport: Transport, *, checksum: bool = True
) -> tuple[FileInfo, Checksum | None]:
    """Request the version of a file and its checksum at the same time. Both are free.

    Args:
        source: The file.
        transport: Has the clock.
        checksum: Request the checksum.

    Raises:
        NotFound: The file does not exist.
        WMEError: A request failed.
    """
    with raise_first_cause():
        async with WorkGroup() as group:
            info = group.start(fetch_info(source, transport))
            promised = group.start(promised_checksum(source)) if checksum else None
    return info.result(), promised.result() if promised else None


async def promised_checksum(source: Source) -> Checksum | None:
    """Request the promised MD5; None if the file has no metadata, as the monthly Commons archive."""
    with contextlib.suppress(NotFound):
        promised = await source.checksum()
        if promised is not None and promised.md5:
            return msgspec.structs.replace(promised, md5=promised.md5.lower())
    return None


async def promised_and_signed(source: DirectSource, signed_urls: SignedUrlCache) -> tuple[bool, Checksum | None]:
    """Request a signed URL of a file and the checksum in its metadata.

    If signatures are metered the checksum comes first: a file without one may not exist, and its signature would be
    charged all the same.

    Returns:
        Whether there is a signed URL now; the checksum, None without metadata.

    Raises:
        WMEError: A request failed.
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


async def check_md5(
    source: Source, md5: str | None, promised: Checksum | None, info: FileInfo
) -> tuple[bool | None, IntegrityError | None]:
    """Compare the MD5 of received bytes with the metadata, and then with the ETag.

    An archive is replaced in place, and its metadata follows a little later. So after a mismatch the metadata is
    requested again, and then the ETag decides, which comes with the object itself: bytes that have it are complete,
    and newer or older than the metadata.

    Args:
        source: The file on the server.
        md5: The MD5 of the bytes, None if it was not computed.
        promised: The checksum in the metadata before the transfer.
        info: The version of the bytes.

    Returns:
        True if the metadata has this MD5, None if it does not prove anything; and the error to raise unless the bytes
        have the ETag of a file that was uploaded in parts.

    Raises:
        Replaced: The promised version is the only one that is accepted, and the file has another one.
    """
    if md5 is None or promised is None:
        return None, None
    if md5 == promised.md5:
        return True, None
    if promised.exact and plain_md5(info.etag) != promised.md5:
        raise Replaced(
            f"the received bytes have version {md5}, not {promised.md5}, which was asked for; read the metadata again",
            expected=promised.md5,
            got=md5,
        )
    # Metadata that has vanished proves as little as the earlier one, so the ETag decides then too.
    promised = await promised_checksum(source) or promised
    if md5 == promised.md5:
        return True, None
    if strong_etag(info.etag) == f'"{md5}"':
        return None, None
    return None, IntegrityError(
        "the received bytes do not have the MD5 in the metadata; the file was discarded, so fetch it again",
        expected=promised.md5,
        got=md5,
    )


def check_sha1(digests: Collection[str], sha1: str, target: Path) -> None:
    """Raise if a SHA-1 is not one of several.

    Args:
        digests: In hexadecimal.
        sha1: Of the received bytes.
        target: The file, for the message.

    Raises:
        IntegrityError: It is another one.
    """
    if sha1 not in digests:
        raise IntegrityError(
            f"the received bytes do not have the SHA-1 of {target.name}; the file was discarded, so fetch it again",
            expected=" or ".join(sorted(digests)),
            got=sha1,
        )
