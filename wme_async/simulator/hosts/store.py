"""The object store behind the download redirects: presigned addresses, single ranges, XML errors."""

import asyncio
import hashlib
import hmac
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
from wme_async.simulator.hosts.http import Answer, FilePart

__all__ = ["ObjectStore", "StoredObject"]

BUCKET: Final = "wme-primary"
_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")
_ONE_AUTH: Final = (
    "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter "
    "or the Authorization header should be specified"
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
        content_type: What the store says it is.
    """

    data: bytes | None
    path: Path | None
    size: int
    md5: str
    etag: str
    modified: float
    content_type: str = "binary/octet-stream"

    def part(self, start: int, length: int) -> bytes | memoryview | FilePart:
        """Return a piece, without copying it."""
        if self.path is not None:
            return FilePart(self.path, start, length)
        data = self.data or b""
        return data if length == len(data) else memoryview(data)[start : start + length]


def stored(data: bytes | str | PathLike[str], modified: float, *, part_size: int) -> StoredObject:
    """Describe bytes, or a file by its path, as an object.

    Args:
        data: The bytes, or the path of a file, which is read whenever it is served.
        modified: When it counts as stored, epoch seconds.
        part_size: Above so many bytes it counts as uploaded in parts, and its tag is no MD5.
    """
    path = None if isinstance(data, bytes) else Path(data)
    whole = hashlib.md5(usedforsecurity=False)
    parts: list[bytes] = []
    size = 0
    if isinstance(data, bytes):
        size = len(data)
        whole.update(data)
        if size > part_size:
            view = memoryview(data)
            parts = [_md5(view[start : start + part_size]) for start in range(0, size, part_size)]
    else:
        with Path(data).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            left = size
            while left > 0:
                one, room = hashlib.md5(usedforsecurity=False), part_size
                while room > 0 and (piece := file.read(min(1 << 20, room))):
                    whole.update(piece)
                    one.update(piece)
                    room -= len(piece)
                    left -= len(piece)
                parts.append(one.digest())
    etag = whole.hexdigest() if size <= part_size else f"{_md5(b''.join(parts)).hex()}-{len(parts)}"
    return StoredObject(
        data=data if isinstance(data, bytes) else None,
        path=path,
        size=size,
        md5=whole.hexdigest(),
        etag=etag,
        modified=modified,
    )


def _md5(data: bytes | memoryview) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


@dataclass
class ObjectStore:
    """Keys and objects, and the store's HTTP face.

    Attributes:
        clock: Judges signatures and dates objects.
        find: Makes an object that is not there yet, or returns None: how archives come to be on first use.
        origin: The address of the store, without a path.
        part_size: Above so many bytes an object has the multipart form of entity tag.
        validity: Seconds that a presigned address lives.
        objects: What is stored, by key.
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
        made = stored(data, self.clock.now(), part_size=self.part_size)
        self.objects[key] = made
        self.deleted.discard(key)
        return made

    def delete(self, key: str) -> None:
        """Remove an object; it does not come back by itself."""
        self.objects.pop(key, None)
        self.deleted.add(key)

    async def get(self, key: str) -> StoredObject | None:
        """Return an object, made on first use, or None."""
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

    async def answer(
        self, method: str, raw_path: str, query: str, headers: dict[str, str], faults: Sequence[Fault] = ()
    ) -> Answer:
        """Answer one request to the store.

        Args:
            method: The HTTP method.
            raw_path: The path as sent.
            query: The query as sent.
            headers: Header lines, names in lower case.
            faults: Those that befall this request.
        """
        kinds = {fault.kind: fault for fault in faults}
        if (refused := self._refuse(method, raw_path, query, headers, expired="expire" in kinds)) is not None:
            return refused
        key = unquote(raw_path).removeprefix(f"/{BUCKET}/")
        found = await self.get(key)
        if found is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        if (swap := kinds.get("swap")) is not None:
            data = swap.get("data")
            if data is None:
                whole = found.data if found.path is None else await asyncio.to_thread(found.path.read_bytes)
                data = (whole or b"")[::-1]
            found = self.put(key, data)
        return self._serve(found, headers, kinds)

    def _refuse(
        self, method: str, raw_path: str, query: str, headers: dict[str, str], *, expired: bool
    ) -> Answer | None:
        params = parse_qsl(query, keep_blank_values=True)
        given = dict(params)
        if "authorization" in headers and "X-Amz-Algorithm" in given:
            return _xml(400, "InvalidArgument", _ONE_AUTH, ArgumentName="Authorization", ArgumentValue="redacted")
        if "X-Amz-Signature" not in given or not raw_path.startswith(f"/{BUCKET}/"):
            return _xml(403, "AccessDenied", "Access Denied")
        try:
            signed_at = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
            validity = int(given["X-Amz-Expires"])
        except (KeyError, ValueError):
            return _xml(
                400, "AuthorizationQueryParametersError", "X-Amz-Date must be formatted as yyyyMMdd'T'HHmmss'Z'"
            )
        now = self.clock.now()
        if expired or now > signed_at + validity:
            ends = datetime.fromtimestamp(signed_at + validity, UTC)
            return _xml(
                403,
                "AccessDenied",
                "Request has expired",
                **{
                    "X-Amz-Expires": str(validity),
                    "Expires": f"{ends:%Y-%m-%dT%H:%M:%SZ}",
                    "ServerTime": f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}",
                },
            )
        unsigned = [(name, value) for name, value in params if name != "X-Amz-Signature"]
        # Signed for GET: any other method, a changed path and a changed parameter all break the signature.
        if not hmac.compare_digest(self._sign(method, raw_path, unsigned), given["X-Amz-Signature"]):
            return _xml(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
            )
        return None

    def _serve(self, found: StoredObject, headers: dict[str, str], kinds: dict[str, Fault]) -> Answer:
        head = object_headers(found)
        if (refused := _preconditions(found, headers)) is not None:
            return refused
        span = None if "ignore_range" in kinds else _span(headers.get("range"), found.size)
        if span is None:
            return Answer(200, head, found.part(0, found.size))
        start, length = span
        if length <= 0:
            return _xml(
                416,
                "InvalidRange",
                "The requested range is not satisfiable",
                RangeRequested=headers["range"],
                ActualObjectSize=str(found.size),
            )
        content_range = f"bytes {start}-{start + length - 1}/{found.size}"
        head["Content-Range"] = content_range
        if (wrong := kinds.get("content_range")) is not None:
            head["Content-Range"] = str(wrong.get("value") or f"bytes {start + 1}-{start + length}/{found.size}")
            if wrong.get("missing", False):
                del head["Content-Range"]
        if "multipart" in kinds:
            return _multipart(found, start, length, content_range, head)
        return Answer(206, head, found.part(start, length))


def object_headers(found: StoredObject) -> dict[str, str]:
    """The headers of an object as the store itself sends them; `Last-Modified` ends in GMT."""
    return {
        "x-amz-request-id": f"{int(found.modified * 1000) & 0xFFFFFFFFFFFFFFFF:016X}",
        "Last-Modified": formatdate(found.modified, usegmt=True),
        "ETag": f'"{found.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": found.content_type,
        "Server": "AmazonS3",
    }


def _span(value: str | None, size: int) -> tuple[int, int] | None:
    """Read a Range header: start and length, a length of 0 when nothing can be served, None when it does not count.

    Several ranges in one header do not count, nor does one that ends before it starts: the whole object is the answer.
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


def _preconditions(found: StoredObject, headers: dict[str, str]) -> Answer | None:
    tag = f'"{found.etag}"'
    if (wanted := headers.get("if-match")) is not None:
        if wanted.strip() != "*" and tag not in [part.strip() for part in wanted.split(",")]:
            return _failed("If-Match")
    elif (since := _date(headers.get("if-unmodified-since"))) is not None and int(found.modified) > since:
        return _failed("If-Unmodified-Since")
    if (known := headers.get("if-none-match")) is not None:
        if known.strip() == "*" or tag in [part.strip() for part in known.split(",")]:
            return Answer(304, object_headers(found))
    elif (since := _date(headers.get("if-modified-since"))) is not None and int(found.modified) <= since:
        return Answer(304, object_headers(found))
    return None


def _failed(condition: str) -> Answer:
    text = "At least one of the pre-conditions you specified did not hold"
    return _xml(412, "PreconditionFailed", text, Condition=condition)


def _date(value: str | None) -> float | None:
    try:
        return None if value is None else parsedate_to_datetime(value).timestamp()
    except ValueError:
        return None


def _multipart(found: StoredObject, start: int, length: int, content_range: str, head: dict[str, str]) -> Answer:
    boundary = "3d6b6a416f9b5"
    part = found.part(start, length)
    if isinstance(part, FilePart):
        with part.path.open("rb") as file:
            file.seek(start)
            part = file.read(length)
    opening = f"--{boundary}\r\nContent-Type: {found.content_type}\r\nContent-Range: {content_range}\r\n\r\n"
    headers = {**head, "Content-Type": f"multipart/byteranges; boundary={boundary}"}
    headers.pop("Content-Range", None)
    return Answer(206, headers, b"".join([opening.encode(), part, f"\r\n--{boundary}--\r\n".encode()]))


def _xml(status: int, code: str, message: str, **more: str) -> Answer:
    facts = {"Code": code, "Message": message, **more, "RequestId": "656C76696E672769", "HostId": "simulated"}
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in facts.items())
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'
    return Answer(status, {"Content-Type": "application/xml", "Server": "AmazonS3"}, body.encode())
