"""The service itself: what each address does, in terms of calls and replies, with no web framework in sight."""

import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from wme_async import _clock
from wme_async.errors import StatusError, WMEError
from wme_async.jobs import (
    Batch,
    BatchManager,
    DamagedBatch,
    DatabaseError,
    Event,
    InvalidBatch,
    Listing,
    ManagerClosed,
    Status,
    UnknownBatch,
    WrongState,
)
from wme_async.jobs.naming import VARIABLES
from wme_async.jobs.states import FINAL
from wme_async.web.auth import Keys, Links, Throttle, same_origin
from wme_async.web.files import file_reply
from wme_async.web.messages import Call, Refused, Reply, json_reply
from wme_async.web.metrics import metrics_text
from wme_async.web.openapi import openapi_document
from wme_async.web.page import page_reply

__all__ = ["BatchRequest", "Created", "FileLink", "Route", "Service"]

logger: logging.Logger = logging.getLogger("wme_async.web")

_MAX_BODY = 1 << 20
_BEAT = 15.0
_PIECES = 500
_EVENT_ID = re.compile(r"[0-9]{1,15}")


def _schema(**facts: Any) -> msgspec.Meta:
    # Told to readers of the schema, and checked by the manager, whose words are better than a decoder's.
    return msgspec.Meta(extra_json_schema=facts)


Url = Annotated[str, _schema(pattern="^(https?://|wme:)", minLength=5, maxLength=8192)]


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What creates a batch.

    Args:
        urls: What to download: `http(s)://` or `wme:`, no two the same.
        quality: For pages with media: `best`, `worst`, or a height.
        concurrent_limit: Jobs at once.
        stop_on_error: Stop the entire batch on the first error.
        ignore_errors: Individual failures do not fail the batch.
        video_format: For pages with media: the preferred container.
        download_subtitles: For pages with media: subtitle files too.
        path_template: Where files go.
        webhook_url: Told when the batch ends.
        timeout: Seconds that one job may run.
        priority: Higher ones start first.
    """

    urls: Annotated[list[Url], _schema(minItems=1, maxItems=100, uniqueItems=True)]
    quality: Annotated[str, _schema(pattern="^(best|worst|[1-9][0-9]{1,3}p?)$")] | None = None
    concurrent_limit: Annotated[int, _schema(minimum=1, maximum=10)] = 3
    stop_on_error: bool = False
    ignore_errors: bool = True
    video_format: Annotated[str, _schema(pattern="^[a-z0-9]{1,8}$")] | None = None
    download_subtitles: bool = False
    path_template: Annotated[
        str, _schema(minLength=1, maxLength=500, description="Of " + " ".join(f"{{{name}}}" for name in VARIABLES))
    ] = "batch/{batch_id}/{safe_title}.{ext}"
    webhook_url: Annotated[str, _schema(pattern="^https?://", maxLength=8192)] | None = None
    timeout: Annotated[float, _schema(exclusiveMinimum=0, maximum=86400)] = 1800.0
    priority: Annotated[int, _schema(minimum=-100, maximum=100)] = 0


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was accepted.

    Args:
        batch_id: Its id.
        status: `queued`.
        total_jobs: How many jobs it has.
        completed_jobs: How many are completed.
        failed_jobs: How many failed.
        running_jobs: How many run.
        queued_jobs: How many wait.
    """

    batch_id: str
    status: Status
    total_jobs: int
    completed_jobs: int
    failed_jobs: int
    running_jobs: int
    queued_jobs: int


class FileLink(msgspec.Struct, frozen=True, kw_only=True):
    """A link to a file that needs no key.

    Args:
        url: The link.
        expires_at: Until when, UTC epoch seconds.
    """

    url: str
    expires_at: float


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the service works.

    Args:
        status: `ok`.
        running_jobs: How many jobs run.
        watchers: How many streams of events are open.
    """

    status: str
    running_jobs: int
    watchers: int


class Route(NamedTuple):
    """One address.

    Args:
        method: GET, POST or DELETE; HEAD goes wherever GET does.
        path: With `{names}`; `{names:path}` may have slashes.
        name: Of the handler.
        summary: What it does.
        answers: Status and type of the answer; None for what is no JSON.
        body: Type of the request's body.
        query: Names and schemas of query parameters.
        errors: Statuses of error answers, besides those that every address has.
        media: Content type of an answer that is no JSON.
        open: Needs no key.
    """

    method: str
    path: str
    name: str
    summary: str
    answers: tuple[int, Any]
    body: Any = None
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    errors: tuple[int, ...] = ()
    media: str = "application/json"
    open: bool = False


_LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50})
_BEFORE = ("before", {"type": "string", "description": "Only batches older than this one, or `next` of a page"})
_STATE = ("status", {"type": "string", "enum": [str(each) for each in Status]})
_AFTER = ("after", {"type": "integer", "minimum": 0, "description": "The last event that was seen, as Last-Event-ID"})
_FLAG = {"type": "boolean", "default": False}
_BATCH = "/api/v1/batch/{batch_id}"

ROUTES: tuple[Route, ...] = (
    Route(
        *("POST", "/api/v1/batch/download", "create", "Create a batch", (201, Created)),
        body=BatchRequest,
        errors=(400, 413, 415, 422, 429, 502),
    ),
    Route(
        *("GET", "/api/v1/batch", "list_batches", "List batches, the newest first", (200, Listing)),
        query=(_LIMIT, _BEFORE, _STATE),
        errors=(422,),
    ),
    Route("GET", _BATCH, "status", "Status of a batch and its jobs", (200, Batch), errors=(404,)),
    Route(
        *("DELETE", _BATCH, "cancel", "Cancel a batch; with purge, forget it, and its files too", (200, Batch)),
        query=(("purge", {"type": "string", "enum": ["false", "true", "files"], "default": "false"}),),
        errors=(404, 409, 422),
    ),
    Route("POST", _BATCH + "/pause", "pause", "Pause a batch", (200, Batch), errors=(404, 409)),
    Route("POST", _BATCH + "/resume", "resume", "Resume a paused batch", (200, Batch), errors=(404, 409)),
    Route(
        *("POST", _BATCH + "/retry", "retry", "Download failed jobs again, as a new batch", (201, Created)),
        query=(("cancelled", _FLAG),),
        errors=(404, 409, 422, 429),
    ),
    Route("DELETE", _BATCH + "/jobs/{job_id}", "cancel_job", "Cancel one job", (200, Batch), errors=(404, 409)),
    Route(
        *("POST", _BATCH + "/jobs/{job_id}/link", "link", "Make a link to a job's file", (200, FileLink)),
        errors=(404, 409),
    ),
    Route(
        *("GET", _BATCH + "/events", "batch_events", "What happens to a batch, as server-sent events", (200, None)),
        query=(_AFTER,),
        errors=(404,),
        media="text/event-stream",
    ),
    Route(
        *("GET", "/api/v1/events", "all_events", "What happens to all batches, as server-sent events", (200, None)),
        query=(_AFTER,),
        media="text/event-stream",
    ),
    Route(
        *("GET", "/files/{filepath:path}", "file", "A finished file", (200, None)),
        errors=(404, 412, 416),
        media="application/octet-stream",
    ),
    Route("GET", "/api/v1/openapi.json", "openapi", "This document", (200, None), open=True),
    Route("GET", "/healthz", "health", "Whether the service works", (200, Health), open=True, errors=(503,)),
    Route("GET", "/metrics", "metrics", "Figures for Prometheus", (200, None), media="text/plain; version=0.0.4"),
    Route("GET", "/", "page", "The page", (200, None), media="text/html; charset=utf-8", open=True),
)


def _pattern(path: str) -> re.Pattern[str]:
    # Segments are matched before they are decoded, so that an escaped slash is part of a name.
    text = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
    text = re.sub(r"{(\w+):path}", r"(?P<\1>.+)", text)
    return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", text))


class Service:
    """Answers calls.

    Args:
        manager: Who does the work.
        api_keys: Keys, or their hashes; None asks for none.
        allowed_hosts: Names under which it may be called.
        create_rate: New batches per second and key, None for no limit.
        create_burst: New batches at once.
        clock: Gives seconds that never go back.
        now: Gives UTC epoch seconds.
    """

    def __init__(
        self,
        manager: BatchManager,
        *,
        api_keys: Iterable[str] | None,
        allowed_hosts: Collection[str] | None = None,
        create_rate: float | None = 1.0,
        create_burst: int = 30,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = _clock.now,
    ) -> None:
        self.manager = manager
        self.keys: Keys = Keys(api_keys, hosts=allowed_hosts)
        self._links = Links(now)
        self._throttle = Throttle(create_rate, create_burst, clock)
        self._routes = [(route, _pattern(route.path)) for route in ROUTES]
        self._document = openapi_document(ROUTES, keys=self.keys.required)
        self._pieces: dict[int, tuple[Event, bytes]] = {}
        self.answered: Counter[tuple[str, str, int]] = Counter()

    async def handle(self, call: Call) -> Reply:
        """Answer a call; whatever goes wrong is an answer too."""
        route = None
        try:
            route, values = self._route(call)
            reply = await self._allowed(route, call, values)
        except Refused as error:
            reply = error.reply()
        except Exception as error:  # noqa: BLE001  # translated, or logged, in one place
            reply = _translated(error).reply()
        # Strangers choose method and path, but not how many figures there are.
        known = call.method if call.method in {"GET", "HEAD", "POST", "DELETE"} else "other"
        self.answered[known, route.name if route else "unknown", reply.status] += 1
        headers = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            # Pages of other origins cannot load it, even where a browser sends credentials along.
            "Cross-Origin-Resource-Policy": "same-origin",
            **reply.headers,
        }
        if call.method == "HEAD" and isinstance(reply.body, bytes):
            length = reply.length if reply.length is not None else len(reply.body)
            return msgspec.structs.replace(reply, headers=headers, body=b"", length=length)
        return msgspec.structs.replace(reply, headers=headers)

    async def _allowed(self, route: Route, call: Call, values: dict[str, str]) -> Reply:
        self.keys.check_host(call)
        linked = route.name == "file" and "signature" in call.query and self._links.check(values["filepath"], call)
        who = "anybody" if route.open or linked else self.keys.check(call)
        if call.method not in {"GET", "HEAD"} and not same_origin(call):
            raise Refused(403, "other_origin", "pages of other sites must not do this")
        handler: Callable[..., Awaitable[Reply]] = getattr(self, f"_{route.name}")
        return await handler(call, who, **values)

    def _route(self, call: Call) -> tuple[Route, dict[str, str]]:
        allowed: set[str] = set()
        for route, pattern in self._routes:
            found = pattern.fullmatch(call.path)
            if found is None or (route.path == _BATCH and call.path == "/api/v1/batch/download"):
                continue
            if call.method == route.method or (call.method == "HEAD" and route.method == "GET"):
                return route, {name: unquote(value) for name, value in found.groupdict().items()}
            allowed |= {route.method, "HEAD"} if route.method == "GET" else {route.method}
        if allowed:
            verbs = ", ".join(sorted(allowed))
            raise Refused(405, "wrong_method", f"this address takes {verbs}", headers={"Allow": verbs})
        raise Refused(404, "no_such_address", "there is nothing at this address")

    # Batches

    async def _create(self, call: Call, who: str) -> Reply:
        kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, "not_json", "send a JSON object, with the header Content-Type: application/json")
        self._throttle.take(who)
        request = _batch_request(await call.read(_MAX_BODY))
        batch = await self.manager.submit(**msgspec.structs.asdict(request))
        return _created(call, batch)

    async def _list_batches(self, call: Call, _who: str) -> Reply:
        limit = call.query.get("limit", "50")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 500:
            raise Refused(422, "invalid_request", "limit is a number from 1 to 500")
        status = call.query.get("status")
        if status is not None and status not in set(Status):
            raise Refused(422, "invalid_request", f"status is one of {', '.join(Status)}")
        return json_reply(await self.manager.list(limit=int(limit), before=call.query.get("before"), status=status))

    async def _status(self, call: Call, _who: str, batch_id: str) -> Reply:
        return json_reply(_with_urls(await self.manager.status(batch_id), call))

    async def _cancel(self, call: Call, _who: str, batch_id: str) -> Reply:
        purge = call.query.get("purge", "false")
        if purge not in {"false", "true", "files"}:
            raise Refused(422, "invalid_request", "purge is false, true, or files")
        if purge == "false":
            return json_reply(_with_urls(await self.manager.cancel(batch_id), call))
        try:
            batch = await self.manager.status(batch_id)
        except DamagedBatch:
            # There is nothing left to show of it.
            await self.manager.delete(batch_id)
            return Reply(status=204)
        await self.manager.delete(batch_id, files=purge == "files")
        return json_reply(_with_urls(batch, call))

    async def _pause(self, call: Call, _who: str, batch_id: str) -> Reply:
        return json_reply(_with_urls(await self.manager.pause(batch_id), call))

    async def _resume(self, call: Call, _who: str, batch_id: str) -> Reply:
        return json_reply(_with_urls(await self.manager.resume(batch_id), call))

    async def _retry(self, call: Call, who: str, batch_id: str) -> Reply:
        cancelled = _flag(call, "cancelled")
        self._throttle.take(who)
        return _created(call, await self.manager.retry(batch_id, cancelled=cancelled))

    async def _cancel_job(self, call: Call, _who: str, batch_id: str, job_id: str) -> Reply:
        if not job_id.startswith(f"job_{batch_id}_"):
            raise UnknownBatch(f"there is no job {job_id!r} in this batch")
        return json_reply(_with_urls(await self.manager.cancel_job(job_id), call))

    async def _link(self, call: Call, _who: str, batch_id: str, job_id: str) -> Reply:
        batch = await self.manager.status(batch_id)
        job = next((each for each in batch.jobs if each.job_id == job_id), None)
        if job is None:
            raise UnknownBatch(f"there is no job {job_id!r} in this batch")
        if job.file_info is None:
            raise WrongState(f"the job is {job.status} and has no file")
        path, expires = self._links.make(job.file_info.filepath)
        return json_reply(FileLink(url=call.base + path, expires_at=expires))

    # Streams and files

    async def _batch_events(self, call: Call, _who: str, batch_id: str) -> Reply:
        # An unknown batch is said now, while there is still a status to say it with.
        batch = await self.manager.status(batch_id)
        return self._stream(call, batch_id, ended=batch.ended)

    async def _all_events(self, call: Call, _who: str) -> Reply:
        return self._stream(call, None)

    def _stream(self, call: Call, batch_id: str | None, *, ended: bool = False) -> Reply:
        # Neither is worth an error: a browser would ask for the same again and again.
        given = call.headers.get("last-event-id") or call.query.get("after") or ""
        after = int(given) if _EVENT_ID.fullmatch(given) else None
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        body = b"" if call.method == "HEAD" else self._events(batch_id, after, ended)
        return Reply(headers=headers, body=body)

    async def _events(self, batch_id: str | None, after: int | None, ended: bool) -> AsyncIterator[bytes]:
        last = int(self.manager.statistics()["last_event"])
        start = last if after is None and batch_id is None else after
        # The id says from where to go on, even if nothing happens before the connection breaks.
        first = min(start, last) if start is not None else 0
        yield f"retry: 1000\nid: {first}\nevent: hello\ndata: {{}}\n\n".encode()
        async with contextlib.aclosing(self.manager.follow(batch_id, after=start, beat=_BEAT)) as groups:
            async for group in groups:
                ended = ended or any(map(_ends, group))
                yield b"".join(map(self._piece, group)) or b": still here\n\n"
        # A stream that breaks off because the server closes says nothing: its reader should come back.
        if batch_id is not None and ended:
            yield b"event: end\ndata: {}\n\n"

    def _piece(self, event: Event) -> bytes:
        """Return an event as it is sent. It goes to many readers, and is written once."""
        known = self._pieces.get(id(event))
        if known is not None and known[0] is event:
            return known[1]
        number = b"id: %d\n" % event.id if event.id is not None else b""
        piece = b"%sevent: %s\ndata: %s\n\n" % (number, event.kind.encode(), msgspec.json.encode(event))
        if len(self._pieces) >= _PIECES:
            self._pieces.clear()
        self._pieces[id(event)] = event, piece
        return piece

    async def _file(self, call: Call, _who: str, filepath: str) -> Reply:
        path = None if "\0" in filepath else await self.manager.finished_file(filepath)
        if path is None:
            raise Refused(404, "no_such_file", "there is no such file")
        return await file_reply(path, call)

    # The rest

    async def _openapi(self, call: Call, _who: str) -> Reply:
        return json_reply({**self._document, "servers": [{"url": call.base or "/"}]})

    async def _health(self, _call: Call, _who: str) -> Reply:
        if self.manager.closing:
            raise Refused(503, "closing", "the service is being closed")
        facts = self.manager.statistics()
        return json_reply(Health(status="ok", running_jobs=int(facts["running"]), watchers=int(facts["watchers"])))

    async def _metrics(self, _call: Call, _who: str) -> Reply:
        text = metrics_text(await self.manager.counts(), self.manager.statistics(), self.answered)
        return Reply(headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, body=text.encode())

    async def _page(self, _call: Call, _who: str) -> Reply:
        return page_reply()


def _batch_request(body: bytes) -> BatchRequest:
    """Decode the body that creates a batch.

    Raises:
        Refused: It is not JSON, or does not describe a batch.
    """
    try:
        return msgspec.json.decode(body, type=BatchRequest)
    except msgspec.ValidationError as error:
        # JSON Schema takes 3.0 for a whole number.
        with contextlib.suppress(Exception):
            document = msgspec.json.decode(body)
            for name in ("concurrent_limit", "priority"):
                if isinstance(document.get(name), float) and document[name].is_integer():
                    document[name] = int(document[name])
            return msgspec.convert(document, BatchRequest)
        raise Refused(422, "invalid_request", f"the body does not describe a batch: {error}") from None
    except Exception as error:  # noqa: BLE001  # whatever leaves a decoder
        raise Refused(400, "not_json", f"the body is not JSON: {error}") from None


def _flag(call: Call, name: str) -> bool:
    value = call.query.get(name, "false").lower()
    if value not in {"true", "false", "1", "0"}:
        raise Refused(422, "invalid_request", f"{name} is true or false")
    return value in {"true", "1"}


def _ends(event: Event) -> bool:
    return event.job_id is None and (event.kind == "deleted" or event.status in FINAL)


def _created(call: Call, batch: Batch) -> Reply:
    made = Created(**{name: getattr(batch, name) for name in Created.__struct_fields__})
    return json_reply(made, status=201, headers={"Location": f"{call.base}/api/v1/batch/{batch.batch_id}"})


def _with_urls(batch: Batch, call: Call) -> Batch:
    """Say where this service serves the files, by the name that the caller knows it under."""
    replace = msgspec.structs.replace
    jobs = tuple(
        job
        if job.file_info is None
        else replace(
            job,
            file_info=replace(job.file_info, download_url=f"{call.base}/files/{quote(job.file_info.filepath)}"),
        )
        for job in batch.jobs
    )
    return replace(batch, jobs=jobs)


def _translated(error: Exception) -> Refused:
    if isinstance(error, InvalidBatch):
        return Refused(422, "invalid_batch", str(error), details=tuple((what, why) for what, why in error.problems))
    if isinstance(error, UnknownBatch):
        return Refused(404, "no_such_batch", str(error))
    if isinstance(error, WrongState):
        return Refused(409, "wrong_state", str(error))
    if isinstance(error, DamagedBatch):
        return Refused(500, "damaged", f"the stored rows of the batch {error.batch_id} are damaged")
    if isinstance(error, DatabaseError):
        logger.error("the database refused: %s", error)
        return Refused(503, "database", "the database cannot be used at the moment")
    if isinstance(error, WMEError):
        status = f" (HTTP {error.status})" if isinstance(error, StatusError) else ""
        return Refused(502, "upstream", f"Wikimedia Enterprise did not answer as it should{status}: {error}")
    if isinstance(error, ManagerClosed):
        return Refused(503, "closing", "the service is being closed")
    logger.error("a call could not be answered", exc_info=error)
    return Refused(500, "internal", "something went wrong here; it was logged")
