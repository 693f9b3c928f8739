"""Finished files over HTTP: whole or in a range, with validators, and never as content that a browser would run."""

import mimetypes
import os
import re
import stat
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from wme_async import _platform
from wme_async._tasks import in_thread, open_in_thread
from wme_async._transport.retry import http_date
from wme_async.web.messages import HTTPProblem, Request, Response

_CHUNK = 256 * 1024
_TYPES = mimetypes.MimeTypes(filenames=())


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte of a `Range` header and the one after the last.

    Args:
        header: Such as `bytes=0-99`, `bytes=100-` or `bytes=-50`.
        size: Bytes of the file.

    Returns:
        None where the header is to be ignored: another unit, several ranges, nonsense.

    Raises:
        HTTPProblem: 416, if the file has no bytes in the range.
    """
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip())
    if not match or not (match[1] or match[2]):
        return None
    if match[1]:
        start, stop = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        if match[2] and int(match[2]) < start:
            return None
    else:
        start, stop = max(0, size - int(match[2])), size
    if start >= stop:
        message = f"the file has {size} bytes"
        raise HTTPProblem(416, "no_such_range", message, headers={"Content-Range": f"bytes */{size}"})
    return start, stop


async def file_response(path: Path, request: Request) -> Response:
    """Return a file, or a range of it.

    Raises:
        HTTPProblem: 404 if it cannot be opened, 412 if it is not the version of `If-Match` or `If-Unmodified-Since`,
            416 if the range is not in it.
    """
    try:
        file, status = await open_in_thread(partial(_open, path), lambda opened: opened[0].close())
    except OSError:
        raise HTTPProblem(404, "no_such_file", "the file does not exist") from None
    try:
        response = _respond(file, status, path.name, request)
    except BaseException:
        file.close()
        raise
    if isinstance(response.body, bytes):
        file.close()
    return response


def _respond(file: BinaryIO, status: os.stat_result, name: str, request: Request) -> Response:
    size = status.st_size
    etag = f'"{status.st_mtime_ns:x}-{size:x}"'
    modified = datetime.fromtimestamp(int(status.st_mtime), UTC)
    headers = {
        "ETag": etag,
        "Last-Modified": format_datetime(modified, usegmt=True),
        # A middleware that compresses would send other bytes than range and ETag describe.
        "Cache-Control": "private, no-cache, no-transform",
    }
    _check_version(request, etag, modified)
    if _not_modified(request, etag, modified):
        return Response(status=304, headers=headers)
    headers |= {
        "Accept-Ranges": "bytes",
        "Content-Type": _TYPES.guess_type(name, strict=False)[0] or "application/octet-stream",
        # Strangers' files: saved, not shown, and powerless if they are shown all the same.
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    part = None
    if "range" in request.headers and _range_applies(request, etag, modified):
        part = parse_range(request.headers["range"], size)
    start, stop = part or (0, size)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Response(
        status=200 if part is None else 206,
        headers=headers,
        body=b"" if request.method == "HEAD" else _chunks(file, start, stop),
        length=stop - start,
    )


def _open(path: Path) -> tuple[BinaryIO, os.stat_result]:
    # A link that replaces the file after the manager's check is not followed.
    descriptor = _platform.open_file(path, os.O_RDONLY)
    file = os.fdopen(descriptor, "rb", buffering=0)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise OSError("not a regular file")
    return file, status


async def _chunks(file: BinaryIO, start: int, stop: int) -> AsyncGenerator[bytes, None]:
    try:
        await in_thread(file.seek, start)
        while start < stop:
            chunk = await in_thread(file.read, min(_CHUNK, stop - start))
            if not chunk:
                raise OSError("the file became shorter while it was sent")
            start += len(chunk)
            yield chunk
    finally:
        file.close()


def _check_version(request: Request, etag: str, modified: datetime) -> None:
    """Raise if the request is for another version of the file alone (RFC 9110, sections 13.1.1 and 13.1.4)."""
    tags = request.headers.get("if-match")
    if tags is not None:
        # The comparison is strong: a weak tag matches nothing.
        same = tags.strip() == "*" or etag in (tag.strip() for tag in tags.split(","))
    else:
        since = http_date(request.headers.get("if-unmodified-since"))
        same = since is None or modified <= since
    if not same:
        raise HTTPProblem(412, "another_version", "the file has changed", headers={"ETag": etag})


def _not_modified(request: Request, etag: str, modified: datetime) -> bool:
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return tags.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in tags.split(","))
    since = http_date(request.headers.get("if-modified-since"))
    return since is not None and modified <= since


def _range_applies(request: Request, etag: str, modified: datetime) -> bool:
    validator = request.headers.get("if-range")
    return validator is None or validator.strip() == etag or http_date(validator) == modified
