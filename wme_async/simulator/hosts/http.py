"""Answers, the services' way of choosing a content type, and sending: whole, damaged, slow or cut."""

import asyncio
import gzip
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

__all__ = ["JSON", "NDJSON", "Answer", "FilePart", "error_answer", "negotiate", "send"]

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
class Answer:
    """What a handler wants sent.

    Attributes:
        status: The HTTP status.
        headers: Header lines; `Content-Length` only where the body does not say it, as for HEAD.
        body: Bytes, or a part of a file.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | memoryview | FilePart = b""

    @property
    def length(self) -> int:
        """Length of the body in bytes."""
        return self.body.length if isinstance(self.body, FilePart) else len(self.body)


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
    for wanted in accepted:
        for offer in offers:
            for mine, theirs in zip(offer, wanted, strict=False):
                if theirs == "*":
                    return offer
                if mine != theirs:
                    break
            else:
                if len(wanted) <= len(offer):
                    return offer
    return ""


def error_answer(status: int, message: str, accept: str | None = None) -> Answer:
    """Build the error document of the services: status and message, one line feed at its end.

    Its content type is chosen among JSON and NDJSON; where neither is accepted it is plain text.
    """
    body = json.dumps({"status": status, "message": message}, ensure_ascii=False, separators=(",", ":"))
    for raw, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        body = body.replace(raw, escaped)
    return Answer(status, {"Content-Type": negotiate(accept) or "text/plain; charset=utf-8"}, body.encode() + b"\n")


def fault_answer(fault: Fault, accept: str | None) -> Answer:
    """Build the answer of a `status` fault."""
    status = int(fault.get("status", 503))
    headers = {str(name): str(value) for name, value in dict(fault.get("headers", {})).items()}
    if fault.get("html", False):
        return Answer(status, {"Content-Type": "text/html", **headers}, _PROXY_PAGE % (status, status))
    if (message := fault.get("message")) is not None:
        answer = error_answer(status, str(message), accept)
        return replace(answer, headers={**answer.headers, **headers})
    body = fault.get("body") or b""
    return Answer(status, headers, body.encode() if isinstance(body, str) else bytes(body))


def tear(request: web.BaseRequest) -> web.StreamResponse:
    """Reset the connection; what was not yet delivered is lost."""
    transport = request.transport
    if transport is not None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return web.Response()


async def hang() -> None:
    """Wait until cancelled: by the client leaving, or by the simulator closing."""
    await asyncio.Event().wait()


async def send(
    request: web.BaseRequest, answer: Answer, faults: Sequence[Fault] = (), rnd: Random | None = None
) -> web.StreamResponse:
    """Send an answer, with the damage that the faults ask for.

    Args:
        request: What is answered.
        answer: What to send.
        faults: Those that befall this request; the kinds for bodies are applied here.
        rnd: Where unnamed positions come from.

    Returns:
        The response, as aiohttp wants it back.
    """
    worse = [fault for fault in faults if fault.kind in _BODY_FAULTS]
    if worse and request.method != "HEAD":
        return await _send_damaged(request, answer, worse, rnd or Random(0))
    body = answer.body
    if isinstance(body, bytes) and len(body) <= _CHUNK:
        return web.Response(status=answer.status, headers=answer.headers, body=body)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = answer.length
    await response.prepare(request)
    if isinstance(body, FilePart):
        await _send_file(request, response, body)
    else:
        await _write_all(response, body)
    await response.write_eof()
    return response


async def _send_file(request: web.BaseRequest, response: web.StreamResponse, part: FilePart) -> None:
    with part.path.open("rb") as file:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        try:
            # The kernel copies the bytes; a loop without this falls through to reading.
            await asyncio.get_running_loop().sendfile(transport, file, part.start, part.length, fallback=False)
        except (NotImplementedError, asyncio.SendfileNotAvailableError):
            file.seek(part.start)
            left = part.length
            while left > 0 and (piece := file.read(min(_CHUNK, left))):
                await response.write(piece)
                left -= len(piece)


async def _write_all(response: web.StreamResponse, body: bytes | memoryview) -> None:
    view = memoryview(body)
    for start in range(0, len(view), _CHUNK):
        await response.write(view[start : start + _CHUNK])


def materialise(body: bytes | memoryview | FilePart) -> bytes:
    """Bring a body into memory."""
    if isinstance(body, FilePart):
        with body.path.open("rb") as file:
            file.seek(body.start)
            return file.read(body.length)
    return bytes(body)


@dataclass(slots=True)
class _Delivery:
    """How a damaged body goes out."""

    promised: int
    cut: int | None = None
    ending: str = "whole"
    rate: float | None = None
    beyond: bytes = b""


def _damage(answer: Answer, faults: Sequence[Fault], rnd: Random) -> tuple[Answer, bytes, _Delivery]:
    """Apply the faults that change bytes, and plan those that change how bytes are sent."""
    body = bytearray(materialise(answer.body))
    headers = dict(answer.headers)
    status = answer.status
    for fault in faults:
        if fault.kind == "garbage":
            given: Any = fault.get("body")
            body[:] = b'{"identifier": "enwiki", "unfinished' if given is None else given
        elif fault.kind == "empty":
            status, body = 200, bytearray()
        elif fault.kind == "corrupt" and body:
            at = fault.get("at")
            body[rnd.randrange(len(body)) if at is None else at] ^= 0x10
        elif fault.kind == "encoding":
            headers["Content-Encoding"] = "gzip"
            if fault.get("real", False):
                body[:] = gzip.compress(bytes(body), 1, mtime=0)
    delivery = _Delivery(promised=len(body))
    for fault in faults:
        if fault.kind == "short":
            keep = max(0, len(body) - int(fault.get("missing", 1)))
            if fault.get("honest", True):
                del body[keep:]
                delivery.promised = len(body)
            else:
                delivery.cut, delivery.ending = keep, "close"
        elif fault.kind == "long":
            extra = bytes(int(fault.get("extra", 1)))
            if fault.get("honest", True):
                body += extra
                delivery.promised = len(body)
            else:
                delivery.beyond = extra
        elif fault.kind == "slow":
            delivery.rate = float(fault.get("rate", 65_536))
        elif fault.kind in {"drop", "stall"}:
            after = fault.get("after")
            delivery.cut = rnd.randrange(max(1, len(body))) if after is None else min(int(after), len(body))
            delivery.ending = "stall" if fault.kind == "stall" else str(fault.get("how", "close"))
    return Answer(status, headers, b""), bytes(body), delivery


async def _send_damaged(
    request: web.BaseRequest, answer: Answer, faults: Sequence[Fault], rnd: Random
) -> web.StreamResponse:
    head, body, delivery = _damage(answer, faults, rnd)
    if not any(fault.kind in _PACED for fault in faults):
        return web.Response(status=head.status, headers=head.headers, body=body)
    response = web.StreamResponse(status=head.status, headers=head.headers)
    response.content_length = delivery.promised
    await response.prepare(request)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has left")
    view = memoryview(body) if delivery.cut is None else memoryview(body)[: delivery.cut]
    if delivery.rate is None:
        await _write_all(response, view)
    else:
        step = max(1, int(delivery.rate * _TICK))
        for start in range(0, len(view), step):
            await response.write(view[start : start + step])
            await asyncio.sleep(_TICK)
    if delivery.beyond:
        transport.write(delivery.beyond)
    if delivery.ending == "whole":
        await response.write_eof()
        return response
    if delivery.ending == "stall":
        await hang()
    if delivery.ending == "reset":
        # A transport has no event for "all of it is with the kernel".
        while transport.get_write_buffer_size() and not transport.is_closing():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.001)
        return tear(request)
    transport.close()
    return response
