"""The first bytes of a new file: the response to their request says its size and version, so that no HEAD is needed."""

from contextlib import AsyncExitStack, ExitStack

import msgspec
from multidict import CIMultiDictProxy

from wme_async._download.budget import Budget, SignedUrlCache
from wme_async._download.range_responses import (
    RangeResponse,
    Verdict,
    conditions,
    content_coding,
    parse_content_range,
)
from wme_async._download.source import FileInfo, SignedUrl, validator_of
from wme_async._transport import Body, Request, Transport
from wme_async._transport.retry import http_date
from wme_async.errors import ClientClosed, StatusError, WMEError

FIRST_BYTES = 4 << 20
"""Bytes that are requested before the size is known. A file of up to so many comes in one response."""


class FirstRange(msgspec.Struct):
    """The response to the request for the first bytes, with its body still to come.

    Attributes:
        body: The body.
        info: The version of the file in the head of the response.
        response: Which bytes the body holds.
        budget: Where its connection was acquired. Whoever takes over the connection releases it.
        taken: Whether the connection has been taken over.
    """

    body: Body
    info: FileInfo
    response: RangeResponse
    budget: Budget
    taken: bool = False

    def take_connection(self) -> bool:
        """Take over the connection; return whether this is the first call."""
        is_first, self.taken = not self.taken, True
        return is_first

    def close(self) -> None:
        """Return the connection if it has not been taken over."""
        if self.take_connection():
            self.budget.release()


async def open_first(
    signed_urls: SignedUrlCache, transport: Transport, budget: Budget, stack: AsyncExitStack, *, whole: bool
) -> FirstRange | None:
    """Request the first bytes of a file.

    Args:
        signed_urls: Has its URL.
        transport: Sends the request.
        budget: Has the connection.
        stack: Closes the body and returns the connection at the end of its block.
        whole: Request all bytes rather than the first few, for one connection that fetches them all.

    Returns:
        The response; None if it cannot be used, and the version must be requested by a HEAD.

    Raises:
        WMEError: Signing failed, or the client is closed.
    """
    signed = await signed_urls.get()
    await budget.acquire()
    with ExitStack() as unused:
        unused.callback(budget.release)
        try:
            body = await stack.enter_async_context(
                transport.open(range_request(signed, 0, None if whole else FIRST_BYTES, None), retry=False)
            )
        except ClientClosed:
            raise
        except WMEError as error:
            if isinstance(error, StatusError) and error.status == 403:
                signed_urls.refused(signed)
            return None
        content_range = parse_content_range(body.headers.get("Content-Range")) if body.status == 206 else None
        info = file_info_of(body.headers, size=content_range.size if content_range else None)
        if (
            content_range is None
            or content_range.start != 0
            or content_range.size is None
            or content_coding(body.headers) is not None
            or validator_of(info) is None
        ):
            body.close()
            return None
        unused.pop_all()
    signed_urls.worked()
    first = FirstRange(body, info, RangeResponse(Verdict.TAKE, 0, content_range.stop), budget)
    stack.callback(first.close)
    return first


def file_info_of(headers: CIMultiDictProxy[str], *, size: int | None) -> FileInfo:
    """Return the version of a file in the head of a response.

    Args:
        headers: Of the response.
        size: Bytes of the file.
    """
    return FileInfo(
        size=size,
        etag=headers.get("ETag"),
        last_modified=http_date(headers.get("Last-Modified")),
        content_type=headers.get("Content-Type"),
        accept_ranges=headers.get("Accept-Ranges", "").lower() == "bytes",
        headers=dict(headers),
    )


def range_request(signed: SignedUrl, start: int, stop: int | None, validator: str | None) -> Request:
    """Return the request for a range, pinned to one version of the file.

    Args:
        signed: Its address.
        start: The first byte.
        stop: The byte after the last; None for all that follow.
        validator: The version, from `validator_of`; None for any.
    """
    return Request(
        method="GET",
        role=signed.role,
        path=signed.url,
        headers={
            **signed.headers,
            "Range": f"bytes={start}-{'' if stop is None else stop - 1}",
            "Accept-Encoding": "identity",
            **conditions(validator),
        },
        accepts="any",
    )
