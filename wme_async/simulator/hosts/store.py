"""The object store behind the download redirects: presigned addresses, single ranges, XML errors."""

import asyncio
import hashlib
import hmac
import io
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from os import PathLike
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode
from xml.sax.saxutils import escape

from wme_async.simulator.clock import Clock
from wme_async.simulator.faults import Fault
from wme_async.simulator.hosts.http import FilePart, Response, read_body

BUCKET: Final = "wme-primary"
_CHUNK: Final = 1 << 20  # bytes read at once from a file
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_ONE_AUTH: Final = (
    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter "
    "or the Authorization header should be specified"
)


_BAD_SIGNATURE: Final = (
    "The request signature we calculated does not match the signature you provided. Check your key and signing method."
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object.

    Attributes:
        data: The bytes, or None for an object that is a file.
        path: The file, or None.
        size: Length in bytes.
        md5: MD5 of all bytes, hex.
        etag: The entity tag without quotes: the MD5, or the multipart form for a large object.
        modified: When it was stored, epoch seconds.
        content_type: The media type.
    """

    data: bytes | None
    path: Path | None
    size: int
    md5: str
    etag: str
    modified: float
    content_type: str = "binary/octet-stream"

    def part(self, start: int, length: int) -> bytes | memoryview | FilePart:
        """Return a slice, without copying it."""
        if self.path is not None:
            return FilePart(self.path, start, length)
        data = self.data or b""
        return data if length == len(data) else memoryview(data)[start : start + length]


def stored(data: bytes | str | PathLike[str], modified: float, *, part_size: int) -> StoredObject:
    """Describe bytes, or a file by its path, as an object.

    Args:
        data: The bytes, or the path of a file, which is read whenever it is served.
        modified: The time of its upload, epoch seconds.
        part_size: An object of more bytes has an entity tag of the multipart form instead of the MD5.
    """
    whole, part, parts = _md5(), _md5(), []
    with io.BytesIO(data) if isinstance(data, bytes) else Path(data).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        multipart = size > part_size
        position = 0
        while chunk := file.read(min(_CHUNK, part_size - position % part_size)):
            whole.update(chunk)
            position += len(chunk)
            if multipart:
                part.update(chunk)
                if position % part_size == 0 or position == size:
                    parts.append(part.digest())
                    part = _md5()
    md5 = whole.hexdigest()
    etag = f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}" if multipart else md5
    content, path = (data, None) if isinstance(data, bytes) else (None, Path(data))
    return StoredObject(content, path, size, md5, etag, modified)


def _md5(data: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(data, usedforsecurity=False)


@dataclass
class ObjectStore:
    """Objects by key, and the HTTP interface to them.

    Attributes:
        clock: Dates signatures and objects.
        find: Builds an object on first use, or returns None if it does not exist.
        origin: The address of the store, without a path.
        part_size: An object of more bytes has an entity tag of the multipart form.
        validity: Lifetime of a signed address in seconds.
        objects: The objects by key.
    """

    clock: Clock
    find: Callable[[str], Awaitable[StoredObject | None]]
    origin: str = ""
    part_size: int = 100_000_000
    validity: int = 60
    secret: bytes = b"simulator"
    objects: dict[str, StoredObject] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def put(self, key: str, data: bytes | str | PathLike[str]) -> StoredObject:
        """Store or replace an object."""
        self.objects[key] = stored(data, self.clock.now(), part_size=self.part_size)
        self.deleted.discard(key)
        return self.objects[key]

    def delete(self, key: str) -> None:
        """Remove an object; `find` does not build it again."""
        self.objects.pop(key, None)
        self.deleted.add(key)

    async def get(self, key: str) -> StoredObject | None:
        """Return an object, built on first use, or None."""
        if key in self.deleted:
            return None
        return self.objects.get(key) or await self.find(key)

    def presign(self, key: str, subject: str | None) -> str:
        """Sign an address for GET, valid for `validity` seconds from now.

        Args:
            key: The object; it need not exist.
            subject: The account's id, which is signed too.
        """
        path = f"/{BUCKET}/{quote(key)}"
        day = datetime.fromtimestamp(self.clock.now(), UTC)
        params = [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", f"AKIASIMULATED0000000/{day:%Y%m%d}/us-east-1/s3/aws4_request"),
            ("X-Amz-Date", f"{day:%Y%m%dT%H%M%SZ}"),
            ("X-Amz-Expires", str(self.validity)),
            ("X-Amz-SignedHeaders", "host"),
        ]
        if subject:
            params.append(("sub", subject))
        params.append(("X-Amz-Signature", self._sign("GET", path, params)))
        return f"{self.origin}{path}?{urlencode(params)}"

    def _sign(self, method: str, path: str, params: Sequence[tuple[str, str]]) -> str:
        text = "\n".join([method, unquote(path), *(f"{key}={value}" for key, value in sorted(params))])
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()

    async def respond(
        self, method: str, raw_path: str, query: str, headers: dict[str, str], faults: Sequence[Fault] = ()
    ) -> Response:
        """Response one request to the store.

        Args:
            method: The HTTP method.
            raw_path: The path as sent.
            query: The query as sent.
            headers: Header lines, names in lower case.
            faults: The faults of this request.
        """
        kinds = {fault.kind: fault for fault in faults}
        problem = self._check_signature(method, raw_path, query, headers, expired="expire" in kinds)
        if problem is not None:
            return problem
        key = unquote(raw_path).removeprefix(f"/{BUCKET}/")
        stored_object = await self.get(key)
        if stored_object is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        if (swap := kinds.get("swap")) is not None:
            data = swap.get("data")
            if data is None:
                content = stored_object.part(0, stored_object.size)
                data = (await asyncio.to_thread(read_body, content))[::-1]
            stored_object = self.put(key, data)
        return self._serve(stored_object, headers, kinds)

    def _check_signature(
        self, method: str, raw_path: str, query: str, headers: dict[str, str], *, expired: bool
    ) -> Response | None:
        params = parse_qsl(query, keep_blank_values=True)
        values = dict(params)
        if "authorization" in headers and "X-Amz-Algorithm" in values:
            return _xml(400, "InvalidArgument", _ONE_AUTH, ArgumentName="Authorization", ArgumentValue="redacted")
        if "X-Amz-Signature" not in values or not raw_path.startswith(f"/{BUCKET}/"):
            return _xml(403, "AccessDenied", "Access Denied")
        try:
            signed_at = datetime.strptime(values["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            validity = int(values["X-Amz-Expires"])
        except (KeyError, ValueError):
            return _xml(
                400, "AuthorizationQueryParametersError", "X-Amz-Date must be formatted as yyyyMMdd'T'HHmmss'Z'"
            )
        now, end = self.clock.now(), signed_at + validity
        if expired or now > end:
            details = {"X-Amz-Expires": str(validity), "Expires": _iso(end), "ServerTime": _iso(now)}
            return _xml(403, "AccessDenied", "Request has expired", **details)
        unsigned = [(name, value) for name, value in params if name != "X-Amz-Signature"]
        # Signed for GET: any other method, a changed path and a changed parameter all break the signature.
        if not hmac.compare_digest(self._sign(method, raw_path, unsigned), values["X-Amz-Signature"]):
            return _xml(403, "SignatureDoesNotMatch", _BAD_SIGNATURE)
        return None

    def _serve(self, target: StoredObject, headers: dict[str, str], kinds: dict[str, Fault]) -> Response:
        head = object_headers(target)
        if (failure := _preconditions(target, headers)) is not None:
            return failure
        span = None if "ignore_range" in kinds else _span(headers.get("range"), target.size)
        if span is None:
            return Response(200, head, target.part(0, target.size))
        start, length = span
        if length <= 0:
            sizes = {"RangeRequested": headers["range"], "ActualObjectSize": str(target.size)}
            return _xml(416, "InvalidRange", "The requested range is not satisfiable", **sizes)
        content_range = f"bytes {start}-{start + length - 1}/{target.size}"
        if "multipart" in kinds:
            return _multipart(target, start, length, content_range, head)
        if (fault := kinds.get("content_range")) is not None:
            content_range = str(fault.get("value") or f"bytes {start + 1}-{start + length}/{target.size}")
        if fault is None or not fault.get("missing", False):
            head["Content-Range"] = content_range
        return Response(206, head, target.part(start, length))


def object_headers(target: StoredObject) -> dict[str, str]:
    """Return the headers of an object as the store itself sends them; `Last-Modified` ends in GMT."""
    return {
        "x-amz-request-id": f"{int(target.modified * 1000) & 0xFFFFFFFFFFFFFFFF:016X}",
        "Last-Modified": formatdate(target.modified, usegmt=True),
        "ETag": f'"{target.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": target.content_type,
        "Server": "AmazonS3",
    }


def _span(value: str | None, size: int) -> tuple[int, int] | None:
    """Parse a Range header: start and length, a length of 0 if it is not satisfiable, None if it is ignored.

    Several ranges in one header are ignored, and so is one that ends before it starts: the response is the whole
    object.
    """
    match = None if value is None else _RANGE.match(value.strip())
    if match is None or (not match[1] and not match[2]):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        return size - length, length
    start = int(match[1])
    if match[2] and int(match[2]) < start:
        return None
    end = min(int(match[2]), size - 1) if match[2] else size - 1
    return (start, end - start + 1) if start < size else (start, 0)


def _preconditions(target: StoredObject, headers: dict[str, str]) -> Response | None:
    """Evaluate the conditional headers of RFC 9110, section 13.2.2: a 412, a 304, or None."""
    modified = int(target.modified)
    if (tags := headers.get("if-match")) is not None:
        if not _lists(tags, target):
            return _failed("If-Match")
    elif (since := _date(headers.get("if-unmodified-since"))) is not None and modified > since:
        return _failed("If-Unmodified-Since")
    if (tags := headers.get("if-none-match")) is not None:
        unchanged = _lists(tags, target)
    else:
        unchanged = (since := _date(headers.get("if-modified-since"))) is not None and modified <= since
    return Response(304, object_headers(target)) if unchanged else None


def _lists(tags: str, target: StoredObject) -> bool:
    """Return whether a list of entity tags, or `*`, names this object."""
    return tags.strip() == "*" or f'"{target.etag}"' in [tag.strip() for tag in tags.split(",")]


def _failed(condition: str) -> Response:
    text = "At least one of the pre-conditions you specified did not hold"
    return _xml(412, "PreconditionFailed", text, Condition=condition)


def _iso(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _date(value: str | None) -> float | None:
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None


def _multipart(target: StoredObject, start: int, length: int, content_range: str, head: dict[str, str]) -> Response:
    boundary = "3d6b6a416f9b5"
    opening = f"--{boundary}\r\nContent-Type: {target.content_type}\r\nContent-Range: {content_range}\r\n\r\n"
    body = opening.encode() + read_body(target.part(start, length)) + f"\r\n--{boundary}--\r\n".encode()
    return Response(206, {**head, "Content-Type": f"multipart/byteranges; boundary={boundary}"}, body)


def _xml(status: int, code: str, message: str, **details: str) -> Response:
    elements = {"Code": code, "Message": message, **details, "RequestId": "656C76696E672769", "HostId": "simulated"}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in elements.items())
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
    return Response(status, {"Content-Type": "application/xml", "Server": "AmazonS3"}, body.encode())
