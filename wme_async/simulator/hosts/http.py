"""Responses: how a content type is chosen, redirects, and the ways of sending: whole, damaged, slow or cut."""

import asyncio
import gzip
import html
import json
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from aiohttp import web

from wme_async.simulator.faults import Fault

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
_CHUNK: Final = 256 * 1024  # bytes in one write of a large body
_TICK: Final = 0.02  # seconds between the writes of a slow body
_PROXY_PAGE: Final = (
    b"<html>\r\n<head><title>%d</title></head>\r\n<body><center><h1>%d</h1></center></body>\r\n</html>\r\n"
)
_BODY_FAULTS: Final = frozenset({"drop", "stall", "slow", "short", "long", "corrupt", "encoding", "garbage", "empty"})
_PACED: Final = frozenset({"drop", "stall", "slow", "short", "long"})


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file: `length` bytes from `start` on."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Response:
    """The response of a handler, before faults damage it.

    Attributes:
        status: The HTTP status.
        headers: Header lines; `Content-Length` only where it differs from the length of the body, as for HEAD.
        body: Bytes, or a part of a file.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview | FilePart = b""

    @property
    def length(self) -> int:
        """Length of the body in bytes."""
        return self.body.length if isinstance(self.body, FilePart) else len(self.body)


def read_body(body: bytes | memoryview | FilePart) -> bytes:
    """Bring a body into memory."""
    if isinstance(body, FilePart):
        with body.path.open("rb") as file:
            file.seek(body.start)
            return file.read(body.length)
    return bytes(body)


def negotiate(accept: str | None, offers: Sequence[str] = (JSON, NDJSON)) -> str:
    """Choose a content type as the services do.

    The client's order decides, quality values are ignored, a `*` matches from where it stands, and an entry that is a
    prefix of an offer matches it.

    Args:
        accept: The first `Accept` header, or None.
        offers: The server's types, preferred first.

    Returns:
        The type, or "" when nothing matches.
    """
    accepted = [part for part in (piece.split(";", 1)[0].strip() for piece in (accept or "").split(",")) if part]
    if not accepted:
        return offers[0]
    for pattern in accepted:
        prefix, star, _ = pattern.partition("*")
        for offer in offers:
            if offer.startswith(prefix) and (star == "" or len(prefix) < len(offer)):
                return offer
    return ""


def error_response(status: int, message: str, accept: str | None = None) -> Response:
    """Build the error document of the services: status and message, one line feed at its end.

    Its content type is chosen among JSON and NDJSON; where neither is accepted it is plain text.
    """
    body = json.dumps({"status": status, "message": message}, ensure_ascii=False, separators=(",", ":"))
    for raw, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        body = body.replace(raw, escaped)
    return Response(status, {"Content-Type": negotiate(accept) or "text/plain; charset=utf-8"}, body.encode() + b"\n")


def document(body: bytes, content_type: str) -> Response:
    """Build a 200; a content type that was not negotiated is sniffed as text."""
    return Response(200, {"Content-Type": content_type or "text/plain; charset=utf-8"}, body)


def redirect(status: int, target: str, phrase: str) -> Response:
    """Build a redirect with the small page that the services' language adds."""
    body = f'<a href="{html.escape(target)}">{phrase}</a>.\n\n'
    return Response(status, {"Location": target, "Content-Type": "text/html; charset=utf-8"}, body.encode())


def slash_redirect(method: str, path: str, query: str) -> Response:
    """Redirect to the registered form of a path that differs by its last slash."""
    target = f"{path}?{query}" if query else path
    return redirect(301, target, "Moved Permanently") if method == "GET" else Response(307, {"Location": target})


def fault_response(fault: Fault, accept: str | None) -> Response:
    """Build the response of a `status` fault."""
    status = int(fault.get("status", 503))
    headers = {str(name): str(value) for name, value in dict(fault.get("headers", {})).items()}
    if fault.get("html", False):
        return Response(status, {"Content-Type": "text/html", **headers}, _PROXY_PAGE % (status, status))
    if (message := fault.get("message")) is not None:
        response = error_response(status, str(message), accept)
        return replace(response, headers={**response.headers, **headers})
    body = fault.get("body") or b""
    return Response(status, headers, body.encode() if isinstance(body, str) else bytes(body))


def tear(request: web.BaseRequest) -> web.StreamResponse:
    """Reset the connection; bytes that have not been delivered are lost."""
    transport = request.transport
    if transport is not None:
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def hang() -> None:
    """Wait until cancelled: by the client leaving, or by the simulator closing."""
    await asyncio.Event().wait()


async def send(
    request: web.BaseRequest, response: Response, faults: Sequence[Fault] = (), rnd: Random | None = None
) -> web.StreamResponse:
    """Send a response, with the damage of the faults.

    Args:
        request: The request that it answers.
        response: The response of the handler.
        faults: The faults of this request; the kinds for bodies are applied here.
        rnd: Chooses the positions that a fault leaves open.

    Returns:
        The response, as aiohttp wants it back.
    """
    damage = [fault for fault in faults if fault.kind in _BODY_FAULTS]
    if damage and request.method != "HEAD":
        return await _send_damaged(request, response, damage, rnd or Random(0))
    body = response.body
    if isinstance(body, bytes) and len(body) <= _CHUNK:
        return web.Response(status=response.status, headers=response.headers, body=body)
    stream = await _prepared(request, response, response.length)
    if isinstance(body, FilePart):
        await _send_file(_transport(request), stream, body)
    else:
        await _write_all(stream, body)
    await stream.write_eof()
    return stream


async def _prepared(request: web.BaseRequest, response: Response, length: int) -> web.StreamResponse:
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = length
    await stream.prepare(request)
    return stream


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    if request.transport is None:
        raise ConnectionResetError("the client has left")
    return request.transport


async def _send_file(transport: asyncio.Transport, stream: web.StreamResponse, part: FilePart) -> None:
    with part.path.open("rb") as file:
        try:
            # The kernel copies the bytes; a loop that cannot raises before the first.
            await asyncio.get_running_loop().sendfile(transport, file, part.start, part.length, fallback=False)
        except (NotImplementedError, asyncio.SendfileNotAvailableError):
            file.seek(part.start)
            remaining = part.length
            while remaining > 0 and (chunk := file.read(min(_CHUNK, remaining))):
                await stream.write(chunk)
                remaining -= len(chunk)


async def _write_all(stream: web.StreamResponse, body: bytes | memoryview) -> None:
    view = memoryview(body)
    for start in range(0, len(view), _CHUNK):
        await stream.write(view[start : start + _CHUNK])


@dataclass(slots=True)
class _Delivery:
    """How a damaged body goes out.

    Attributes:
        cut: Bytes of the body that are sent, or None for all.
        ending: "whole", "close", "reset" or "stall".
        rate: Bytes per second, or None.
        extra: Bytes that follow the promised ones.
    """

    cut: int | None = None
    ending: str = "whole"
    rate: float | None = None
    extra: bytes = b""


def _damage_bytes(response: Response, faults: Sequence[Fault], rnd: Random) -> tuple[Response, bytearray]:
    """Apply the faults that change the content."""
    body, headers, status = bytearray(read_body(response.body)), dict(response.headers), response.status
    for fault in faults:
        if fault.kind == "garbage":
            garbage: Any = fault.get("body")
            body[:] = b'{"identifier": "enwiki", "unfinished' if garbage is None else garbage
        elif fault.kind == "empty":
            status, body = 200, bytearray()
        elif fault.kind == "corrupt" and body:
            position = fault.get("at")
            body[rnd.randrange(len(body)) if position is None else position] ^= 0x10
        elif fault.kind == "encoding":
            headers["Content-Encoding"] = "gzip"
            if fault.get("real", False):
                body[:] = gzip.compress(bytes(body), 1, mtime=0)
    return Response(status, headers), body


def _plan_delivery(body: bytearray, faults: Sequence[Fault], rnd: Random) -> _Delivery:
    """Apply the faults that change how the bytes are sent; honest ones change the body itself."""
    delivery = _Delivery()
    for fault in faults:
        honest = fault.get("honest", True)
        if fault.kind == "short":
            shortened = max(0, len(body) - int(fault.get("missing", 1)))
            if honest:
                del body[shortened:]
            else:
                delivery.cut, delivery.ending = shortened, "close"
        elif fault.kind == "long":
            extra = bytes(int(fault.get("extra", 1)))
            if honest:
                body += extra
            else:
                delivery.extra = extra
        elif fault.kind == "slow":
            delivery.rate = float(fault.get("rate", 65_536))
        elif fault.kind in {"drop", "stall"}:
            after = fault.get("after")
            delivery.cut = rnd.randrange(max(1, len(body))) if after is None else min(int(after), len(body))
            delivery.ending = "stall" if fault.kind == "stall" else str(fault.get("how", "close"))
    return delivery


async def _send_damaged(
    request: web.BaseRequest, response: Response, faults: Sequence[Fault], rnd: Random
) -> web.StreamResponse:
    head, body = _damage_bytes(response, faults, rnd)
    delivery = _plan_delivery(body, faults, rnd)
    if not any(fault.kind in _PACED for fault in faults):
        return web.Response(status=head.status, headers=head.headers, body=bytes(body))
    stream = await _prepared(request, head, len(body))
    transport = _transport(request)
    view = memoryview(bytes(body))[: delivery.cut]
    if delivery.rate is None:
        await _write_all(stream, view)
    else:
        step = max(1, int(delivery.rate * _TICK))
        for start in range(0, len(view), step):
            await stream.write(view[start : start + step])
            await asyncio.sleep(step / delivery.rate)
    if delivery.extra:
        transport.write(delivery.extra)
    if delivery.ending == "whole":
        await stream.write_eof()
        return stream
    if delivery.ending == "stall":
        await hang()
    if delivery.ending == "reset":
        # A transport has no event for "all of it is with the kernel".
        while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)
        return tear(request)
    transport.close()
    return stream
