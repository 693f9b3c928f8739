"""The head of a response to a range request: which bytes its body holds, and of which version (RFC 9110).

Offsets are bytes; an interval is half-open: [start, stop).
"""

import enum
import re
from collections.abc import Mapping

import msgspec

from wme_async._transport.retry import http_date

# The registered content codings (RFC 9110, section 18.6), without identity. Servers put all kinds of other words into
# the header, such as character sets and media types, and send the bytes as they are.
_CODINGS = frozenset(
    {
        *("gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"),
        *("dcb", "dcz", "exi", "pack200-gzip", "aes128gcm"),
    }
)
# Where the clocks of a server's parts differ, a second says nothing; RFC 9110, section 8.8.2.2, once had a minute.
_SETTLED_SECONDS = 60.0
# Bytes before the requested ones. Caches send whole blocks, of a few megabytes at most.
_SKIP_MOST = 8 << 20

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.IGNORECASE | re.ASCII)


class ContentRange(msgspec.Struct, frozen=True):
    """A `Content-Range` header.

    Args:
        start: First byte.
        stop: The byte after the last.
        size: Bytes of the whole file; None where the server does not say.
    """

    start: int
    stop: int
    size: int | None


def parse_content_range(value: str | None) -> ContentRange | None:
    """Parse a `Content-Range` header; None if it is missing or malformed."""
    match = _CONTENT_RANGE.fullmatch(value.strip()) if value else None
    if match is None:
        return None
    first, last, total = match.groups()
    if max(len(first), len(last), len(total)) > 18:
        return None
    size = None if total == "*" else int(total)
    if int(first) > int(last) or (size is not None and int(last) >= size):
        return None
    return ContentRange(int(first), int(last) + 1, size)


def content_coding(headers: Mapping[str, str]) -> str | None:
    """Return the content coding of a response, None if its bytes are those of the file.

    Args:
        headers: Looked up without regard to case.
    """
    names = (name.strip().lower() for name in headers.get("Content-Encoding", "").split(","))
    return ", ".join(name for name in names if name in _CODINGS) or None


def content_length(headers: Mapping[str, str]) -> int | None:
    """Return the length that a response announces, in bytes; None if it is missing or malformed.

    Args:
        headers: Looked up without regard to case.
    """
    length = headers.get("Content-Length", "")
    return int(length) if length.isascii() and length.isdigit() else None


def strong_etag(value: str | None) -> str | None:
    """Return a strong ETag as it was sent; None if it is weak, missing or malformed."""
    text = (value or "").strip()
    return text if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in text[1:-1] else None


def strong_validator(etag: str | None, headers: Mapping[str, str]) -> str | None:
    """Return a validator: two responses with the same one hold bytes of the same version of a file.

    That is a strong ETag, or a `Last-Modified` that was old already when the server sent it: a file that changed twice
    within one second has the same date twice, and that second is over then (RFC 9110, section 8.8.2.2).

    Args:
        etag: The ETag, as it was sent.
        headers: Of the response, in any case of letters.

    Returns:
        The ETag with its quotes, or the date as it was sent; None without a validator.
    """
    strong = strong_etag(etag)
    if strong is not None:
        return strong
    by_name = {name.lower(): value for name, value in headers.items()}
    text = by_name.get("last-modified", "").strip()
    modified, date = http_date(text), http_date(by_name.get("date"))
    if modified is None or date is None or not text.isascii():
        return None
    return text if (date - modified).total_seconds() >= _SETTLED_SECONDS else None


def conditions(validator: str | None) -> dict[str, str]:
    """Return the headers that make a request for a range one for this version alone."""
    # `If-Match` does not take dates, and fewer servers know `If-Unmodified-Since`.
    return {} if validator is None else {"If-Match" if validator.startswith('"') else "If-Range": validator}


def etag_matches(sent: str | None, expected: str | None) -> bool:
    """Return whether a response may be of the expected version: it has its ETag, or none."""
    return sent is None or expected is None or sent.strip() == expected


def version_change(headers: Mapping[str, str], validator: str | None) -> str | None:
    """Return how the version of a response differs from the validator; None if it may be the same.

    Args:
        headers: Looked up without regard to case.
        validator: From `strong_validator`.
    """
    name = "ETag" if validator is None or validator.startswith('"') else "Last-Modified"
    value = headers.get(name)
    return None if etag_matches(value, validator) else f"the {name} is {value} and no longer {validator}"


class Verdict(enum.Enum):
    """The meaning of the head of a response to a range request."""

    TAKE = "bytes of the requested range"
    WHOLE = "the whole file, as requested"
    REFUSED = "other bytes"
    REPLACED = "bytes of another version of the file"


class RangeResponse(msgspec.Struct, frozen=True):
    """The bytes in a response to a range request.

    Args:
        verdict: Whether it may be used.
        start: The first byte of its body.
        stop: The byte after the last.
        reason: In words, why it may not be used.
    """

    verdict: Verdict
    start: int = 0
    stop: int = 0
    reason: str = ""


def check_range_response(
    status: int, headers: Mapping[str, str], *, start: int, stop: int, size: int, validator: str | None
) -> RangeResponse:
    """Return which bytes the response to `Range: bytes=start-(stop-1)` holds, and whether they may be used.

    Only a 206 with the first requested byte may: a 200 holds the file from its beginning, a multipart response has
    headers among the bytes, an encoded one has other bytes altogether. A server may send fewer or more bytes than
    requested (RFC 9110, section 15.3.7), as caches do that store files in blocks.

    Args:
        status: HTTP status, below 400.
        headers: Looked up without regard to case.
        start: First requested byte.
        stop: The byte after the last.
        size: Bytes of the file as its metadata has it.
        validator: From `strong_validator`.
    """
    coding = content_coding(headers)
    if coding is not None:
        return _refused(f"the response is encoded ({coding}) despite Accept-Encoding: identity")
    if status not in {200, 206}:
        return _refused(f"HTTP {status} for a range")
    changed = version_change(headers, validator)
    if changed is not None:
        return RangeResponse(Verdict.REPLACED, reason=changed)
    if status == 200:
        length = headers.get("Content-Length")
        if start == 0 and stop == size and (length is None or length.strip() == str(size)):
            return RangeResponse(Verdict.WHOLE, 0, size)
        return _refused("the server sent the file from its beginning (200) in place of a range")
    if headers.get("Content-Type", "").strip().lower().startswith("multipart/byteranges"):
        return _refused("the server sent a multipart response for one range")
    text = headers.get("Content-Range")
    content_range = parse_content_range(text)
    if content_range is None:
        return _refused(f"206 with {'no' if text is None else 'an unreadable'} Content-Range")
    if content_range.size is not None and content_range.size != size:
        return RangeResponse(Verdict.REPLACED, reason=f"the file has {content_range.size} bytes and no longer {size}")
    first, end = content_range.start, content_range.stop
    if not first <= start < end or start - first > max(_SKIP_MOST, stop - start):
        return _refused(f"the server sent bytes {first}-{end - 1} for {start}-{stop - 1}")
    return RangeResponse(Verdict.TAKE, first, end)


def _refused(reason: str) -> RangeResponse:
    return RangeResponse(Verdict.REFUSED, reason=reason)
