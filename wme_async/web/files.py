"""Finished files over HTTP: whole or in a range, with validators, and never as something a browser would run."""

import asyncio
import mimetypes
import os
import re
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from wme_async._tasks import in_thread, wait_done
from wme_async._transport.retry import http_date
from wme_async.web.messages import Call, Refused, Reply

__all__ = ["file_reply", "parse_range"]

_PIECE = 256 * 1024
_TYPES = mimetypes.MimeTypes(filenames=())


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Read a `Range` header.

    Args:
        header: Such as `bytes=0-99`, `bytes=100-` or `bytes=-50`.
        size: Bytes of the file.

    Returns:
        First byte and the one after the last. None where the header is to be ignored: another unit, several ranges,
        nonsense.

    Raises:
        Refused: 416, if it names bytes that are not there.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", header.strip())
    if not found or not (found[1] or found[2]):
        return None
    if found[1]:
        start, stop = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
        if found[2] and int(found[2]) < start:
            return None
    else:
        start, stop = max(0, size - int(found[2])), size
    if start >= stop:
        raise Refused(416, "no_such_range", f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return start, stop


async def file_reply(path: Path, call: Call) -> Reply:
    """Return a file, or the part of it that is asked for.

    Raises:
        Refused: 404 if it cannot be opened, 412 if it is not the version that is asked for, 416 if the range is not in
            it.
    """
    opening = asyncio.get_running_loop().run_in_executor(None, _open, path)
    try:
        await wait_done(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            opening.result()[0].close()
        raise
    try:
        file, facts = opening.result()
    except OSError:
        raise Refused(404, "no_such_file", "there is no such file") from None
    try:
        size = facts.st_size
        etag = f'"{facts.st_mtime_ns:x}-{size:x}"'
        modified = datetime.fromtimestamp(int(facts.st_mtime), UTC)
        headers = {
            "ETag": etag,
            "Last-Modified": format_datetime(modified, usegmt=True),
            "Accept-Ranges": "bytes",
            # A middleware that compresses would send a part in other bytes than its range and its ETag say.
            "Cache-Control": "private, no-cache, no-transform",
            "Content-Type": _TYPES.guess_type(path.name, strict=False)[0] or "application/octet-stream",
            # Strangers' files: saved, not shown, and powerless if they are shown all the same.
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name, safe='')}",
            "Content-Security-Policy": "sandbox; default-src 'none'",
        }
        _check_version(call, etag, modified)
        if _unchanged(call, etag, modified):
            file.close()
            return Reply(
                status=304, headers={name: headers[name] for name in ("ETag", "Last-Modified", "Cache-Control")}
            )
        part = None
        if "range" in call.headers and _range_holds(call, etag, modified):
            part = parse_range(call.headers["range"], size)
        start, stop = part or (0, size)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if call.method == "HEAD":
            file.close()
            return Reply(status=200 if part is None else 206, headers=headers, length=stop - start)
        return Reply(
            status=200 if part is None else 206,
            headers=headers,
            body=_pieces(file, start, stop),
            length=stop - start,
        )
    except BaseException:
        file.close()
        raise


def _open(path: Path) -> tuple[BinaryIO, os.stat_result]:
    # A link that was put in the file's place between the check and here is not followed.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(handle, "rb", buffering=0)
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        file.close()
        raise OSError("not a plain file")
    return file, facts


async def _pieces(file: BinaryIO, start: int, stop: int) -> AsyncIterator[bytes]:
    try:
        await in_thread(file.seek, start)
        while start < stop:
            piece = await in_thread(file.read, min(_PIECE, stop - start))
            if not piece:
                raise OSError("the file became shorter while it was sent")
            start += len(piece)
            yield piece
    finally:
        file.close()


def _check_version(call: Call, etag: str, modified: datetime) -> None:
    """Raise if a caller wants another version of the file alone (RFC 9110, sections 13.1.1 and 13.1.4)."""
    tags = call.headers.get("if-match")
    if tags is not None:
        # The comparison is strong: a weak tag matches nothing.
        same = tags.strip() == "*" or etag in (tag.strip() for tag in tags.split(","))
    else:
        since = http_date(call.headers.get("if-unmodified-since"))
        same = since is None or modified <= since
    if not same:
        raise Refused(412, "another_version", "the file has changed", headers={"ETag": etag})


def _unchanged(call: Call, etag: str, modified: datetime) -> bool:
    wanted = call.headers.get("if-none-match")
    if wanted is not None:
        return wanted.strip() == "*" or etag in (each.strip().removeprefix("W/") for each in wanted.split(","))
    since = http_date(call.headers.get("if-modified-since"))
    return since is not None and modified <= since


def _range_holds(call: Call, etag: str, modified: datetime) -> bool:
    wanted = call.headers.get("if-range")
    if wanted is None:
        return True
    return wanted.strip() == etag or http_date(wanted) == modified
