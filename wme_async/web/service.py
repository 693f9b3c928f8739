"""The service: handles requests and returns responses, independent of the web framework."""

import contextlib
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from typing import Final, Required, TypedDict, TypeVar
from urllib.parse import quote

import msgspec

from wme_async import _clock
from wme_async._arguments import check_http_url, check_type
from wme_async.errors import StatusError, WMEError
from wme_async.jobs import (
    Batch,
    BatchManager,
    DamagedBatch,
    DatabaseError,
    Event,
    InvalidBatch,
    JobFile,
    ManagerClosed,
    Status,
    UnknownBatch,
    WrongState,
)
from wme_async.jobs.model import ends_batch
from wme_async.web.auth import Keys, Links, Throttle, same_origin
from wme_async.web.files import file_response
from wme_async.web.messages import HTTPProblem, Request, Response, json_response
from wme_async.web.metrics import metrics_text
from wme_async.web.openapi import openapi_document
from wme_async.web.page import page_response
from wme_async.web.routes import ROUTES, BatchRequest, Created, FileLink, Health, RetryRequest, Route, match_route

logger: logging.Logger = logging.getLogger("wme_async.web")

_T = TypeVar("_T")

_MAX_BODY: Final = 1 << 20
_HEARTBEAT: Final = 15.0  # seconds
_CACHED_EVENTS: Final = 500
_EVENT_ID: Final = re.compile(r"[0-9]{1,15}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})
_SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Pages of other origins cannot load it, even where a browser sends credentials along.
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServiceOptions(TypedDict, total=False):
    """The keyword arguments of `create_app`, `create_asgi` and `serve`, as `create_app` documents them."""

    api_keys: Required[Iterable[str] | None]
    allowed_hosts: Collection[str] | None
    create_rate: float | None
    create_burst: int
    public_url: str | None


class Service:
    """Handles requests.

    Args:
        manager: Runs the batches.
        api_keys: Keys, or their hashes; with None no key is required.
        allowed_hosts: Names under which the service may be called.
        create_rate: New batches per second and key, None for no limit.
        create_burst: New batches at once.
        public_url: The URL of the mount point as callers see it, in place of the one of each request.

    Raises:
        TypeError: An argument of another type.
        ValueError: A key, URL or limit that cannot work.
    """

    def __init__(
        self,
        manager: BatchManager,
        *,
        api_keys: Iterable[str] | None,
        allowed_hosts: Collection[str] | None = None,
        create_rate: float | None = 1.0,
        create_burst: int = 30,
        public_url: str | None = None,
    ) -> None:
        check_type("manager", manager, BatchManager, 'a BatchManager, such as BatchManager("downloads")')
        check_http_url("public_url", public_url)
        self._manager = manager
        self._public_url = public_url and public_url.rstrip("/")
        self._keys = Keys(api_keys, hosts=allowed_hosts)
        self._links = Links(_clock.now)
        self._throttle = Throttle(create_rate, create_burst, time.monotonic)
        self._document = openapi_document(ROUTES, keys=self._keys.required)
        self._encoded: dict[int, tuple[Event, bytes]] = {}
        self._responses: Counter[tuple[str, str, int]] = Counter()

    async def handle(self, request: Request) -> Response:
        """Return the response to a request; every exception becomes a response."""
        if self._public_url:
            request = msgspec.structs.replace(request, base=self._public_url)
        route = None
        try:
            self._keys.check_host(request)
            route, variables = match_route(request.method, request.path)
            response = await self._call(route, request, variables)
        except Exception as error:  # noqa: BLE001  # the one place that translates or logs
            response = _problem_of(error).response()
        # Strangers choose method and path, and must not choose the number of counters.
        method = request.method if request.method in _METHODS else "other"
        self._responses[method, route.name if route else "unknown", response.status] += 1
        response = msgspec.structs.replace(response, headers={**_SECURITY_HEADERS, **response.headers})
        if request.method == "HEAD" and isinstance(response.body, bytes):
            length = response.length if response.length is not None else len(response.body)
            return msgspec.structs.replace(response, body=b"", length=length)
        return response

    async def _call(self, route: Route, request: Request, variables: dict[str, str]) -> Response:
        signed = route.name == "file" and "signature" in request.query
        if route.open or (signed and self._links.check(variables["filepath"], request)):
            caller = "anybody"
        else:
            caller = self._keys.check(request)
        if request.method not in {"GET", "HEAD"} and not same_origin(request):
            raise HTTPProblem(403, "other_origin", "pages of other sites must not do this")
        handler: Callable[..., Awaitable[Response]] = getattr(self, f"_{route.name}")
        return await handler(request, caller, **variables)

    # Batches

    async def _create(self, request: Request, caller: str) -> Response:
        _check_json(request)
        self._throttle.take(caller)
        options = _decode_batch(await request.read(_MAX_BODY))
        return _created(request, await self._manager.submit(**msgspec.structs.asdict(options)))

    async def _list_batches(self, request: Request, _caller: str) -> Response:
        limit = request.query.get("limit", "50")
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= 500:
            raise HTTPProblem(422, "invalid_request", "limit is a number from 1 to 500")
        status = request.query.get("status")
        if status is not None and status not in set(Status):
            raise HTTPProblem(422, "invalid_request", f"status is one of {', '.join(Status)}")
        before = request.query.get("before")
        return json_response(await self._manager.list(limit=int(limit), before=before, status=status))

    async def _status(self, request: Request, _caller: str, batch_id: str) -> Response:
        return _batch_response(request, await self._manager.status(batch_id))

    async def _cancel(self, request: Request, _caller: str, batch_id: str) -> Response:
        purge = request.query.get("purge", "false")
        if purge not in {"false", "true", "files"}:
            raise HTTPProblem(422, "invalid_request", "purge is false, true, or files")
        if purge == "false":
            return _batch_response(request, await self._manager.cancel(batch_id))
        try:
            response = _batch_response(request, await self._manager.status(batch_id))
        except DamagedBatch:
            # Nothing of it can be shown.
            response = Response(status=204)
            purge = "true"
        await self._manager.delete(batch_id, files=purge == "files")
        return response

    async def _pause(self, request: Request, _caller: str, batch_id: str) -> Response:
        return _batch_response(request, await self._manager.pause(batch_id))

    async def _resume(self, request: Request, _caller: str, batch_id: str) -> Response:
        return _batch_response(request, await self._manager.resume(batch_id))

    async def _retry(self, request: Request, caller: str, batch_id: str) -> Response:
        cancelled = request.query.get("cancelled", "false").lower()
        if cancelled not in {"true", "false", "1", "0"}:
            raise HTTPProblem(422, "invalid_request", "cancelled is true or false")
        self._throttle.take(caller)
        jobs = None
        if body := await request.read(_MAX_BODY):
            _check_json(request)
            jobs = _decode(body, RetryRequest, "the jobs to retry").jobs
        batch = await self._manager.retry(batch_id, cancelled=cancelled in {"true", "1"}, jobs=jobs)
        return _created(request, batch)

    async def _cancel_job(self, request: Request, _caller: str, batch_id: str, job_id: str) -> Response:
        if not job_id.startswith(f"job_{batch_id}_"):
            raise UnknownBatch(f"the job {job_id!r} is not in this batch")
        return _batch_response(request, await self._manager.cancel_job(job_id))

    async def _link(self, request: Request, _caller: str, batch_id: str, job_id: str) -> Response:
        batch = await self._manager.status(batch_id)
        job = next((job for job in batch.jobs if job.job_id == job_id), None)
        if job is None:
            raise UnknownBatch(f"the job {job_id!r} is not in this batch")
        if job.file_info is None:
            raise WrongState(f"the job is {job.status} and has no file")
        path, expires = self._links.make(job.file_info.filepath)
        return json_response(FileLink(url=request.base + path, expires_at=expires))

    # Streams and files

    async def _batch_events(self, request: Request, _caller: str, batch_id: str) -> Response:
        # An unknown batch is an error now, while a status can still be sent.
        batch = await self._manager.status(batch_id)
        return self._stream(request, batch_id, ended=batch.ended)

    async def _all_events(self, request: Request, _caller: str) -> Response:
        return self._stream(request, None)

    def _stream(self, request: Request, batch_id: str | None, *, ended: bool = False) -> Response:
        # A wrong id is not an error: a browser would send it again and again.
        event_id = request.headers.get("last-event-id") or request.query.get("after") or ""
        after = int(event_id) if _EVENT_ID.fullmatch(event_id) else None
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        body = b"" if request.method == "HEAD" else self._events(batch_id, after, ended)
        return Response(headers=headers, body=body, endless=True)

    async def _events(self, batch_id: str | None, after: int | None, ended: bool) -> AsyncGenerator[bytes, None]:
        last = int(self._manager.statistics()["last_event"])
        start = last if after is None and batch_id is None else after
        # With this id the stream resumes, even if the connection breaks before the first event.
        first = min(start, last) if start is not None else 0
        yield f"retry: 1000\nid: {first}\nevent: hello\ndata: {{}}\n\n".encode()
        async with contextlib.aclosing(self._manager.follow(batch_id, after=start, beat=_HEARTBEAT)) as groups:
            async for group in groups:
                ended = ended or any(map(ends_batch, group))
                yield b"".join(map(self._encode, group)) or b": still here\n\n"
        # No end is sent where the service closes: the reader should reconnect.
        if batch_id is not None and ended:
            yield b"event: end\ndata: {}\n\n"

    def _encode(self, event: Event) -> bytes:
        """Return an event as it is sent. Many readers receive it, and it is encoded once."""
        cached = self._encoded.get(id(event))
        if cached is not None and cached[0] is event:
            return cached[1]
        event_id = b"id: %d\n" % event.id if event.id is not None else b""
        data = b"%sevent: %s\ndata: %s\n\n" % (event_id, event.kind.encode(), msgspec.json.encode(event))
        if len(self._encoded) >= _CACHED_EVENTS:
            self._encoded.clear()
        self._encoded[id(event)] = event, data
        return data

    async def _file(self, request: Request, _caller: str, filepath: str) -> Response:
        path = None if "\0" in filepath else await self._manager.finished_file(filepath)
        if path is None:
            raise HTTPProblem(404, "no_such_file", "the file does not exist")
        return await file_response(path, request)

    # Operation

    async def _openapi(self, request: Request, _caller: str) -> Response:
        return json_response({**self._document, "servers": [{"url": request.base or "/"}]})

    async def _health(self, _request: Request, _caller: str) -> Response:
        if self._manager.closing:
            raise HTTPProblem(503, "closing", "the service is being closed")
        statistics = self._manager.statistics()
        running, watchers = int(statistics["running"]), int(statistics["watchers"])
        return json_response(Health(status="ok", running_jobs=running, watchers=watchers))

    async def _metrics(self, _request: Request, _caller: str) -> Response:
        text = metrics_text(await self._manager.counts(), self._manager.statistics(), self._responses)
        return Response(headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}, body=text.encode())

    async def _page(self, _request: Request, _caller: str) -> Response:
        return page_response(keys=self._keys.required)


def _check_json(request: Request) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HTTPProblem(415, "not_json", "send a JSON object, with the header Content-Type: application/json")


def _decode(body: bytes, type: type[_T], subject: str) -> _T:
    """Decode the body of a request.

    Raises:
        HTTPProblem: It is not JSON, or of another form.
    """
    try:
        return msgspec.json.decode(body, type=type)
    except msgspec.ValidationError as error:
        raise HTTPProblem(422, "invalid_request", f"the body does not describe {subject}: {error}") from None
    except Exception as error:  # noqa: BLE001  # a decoder may raise anything
        raise HTTPProblem(400, "not_json", f"the body is not JSON: {error}") from None


def _decode_batch(body: bytes) -> BatchRequest:
    """Decode the body that creates a batch.

    Raises:
        HTTPProblem: It is not JSON, or does not describe a batch.
    """
    try:
        return _decode(body, BatchRequest, "a batch")
    except HTTPProblem:
        # JSON Schema takes 3.0 for a whole number.
        with contextlib.suppress(Exception):
            document = msgspec.json.decode(body)
            document |= {
                name: int(document[name])
                for name in ("concurrent_limit", "priority")
                if isinstance(document.get(name), float) and document[name].is_integer()
            }
            return msgspec.convert(document, BatchRequest)
        raise


def _created(request: Request, batch: Batch) -> Response:
    created = msgspec.convert(batch, Created, from_attributes=True)
    headers = {"Location": f"{request.base}/api/v1/batch/{batch.batch_id}"}
    return json_response(created, status=201, headers=headers)


def _batch_response(request: Request, batch: Batch) -> Response:
    """Return a batch with the URLs of its files, under the name by which the caller knows this service."""
    replace = msgspec.structs.replace
    jobs = tuple(
        replace(job, file_info=job.file_info and replace(job.file_info, download_url=_file_url(request, job.file_info)))
        for job in batch.jobs
    )
    return json_response(replace(batch, jobs=jobs))


def _file_url(request: Request, file: JobFile) -> str:
    return f"{request.base}/files/{quote(file.filepath)}"


def _problem_of(error: Exception) -> HTTPProblem:
    """Return the error response for an exception; log it where it is a fault of the service."""
    match error:
        case HTTPProblem():
            return error
        case InvalidBatch():
            return HTTPProblem(422, "invalid_batch", str(error), details=error.problems)
        case UnknownBatch():
            return HTTPProblem(404, "no_such_batch", str(error))
        case WrongState():
            return HTTPProblem(409, "wrong_state", str(error))
        case DamagedBatch():
            return HTTPProblem(500, "damaged", f"the stored rows of the batch {error.batch_id} are damaged")
        case DatabaseError():
            logger.error("the database cannot be used: %s", error)
            return HTTPProblem(503, "database", "the database cannot be used at the moment")
        case WMEError():
            status = f" (HTTP {error.status})" if isinstance(error, StatusError) else ""
            message = f"Wikimedia Enterprise did not answer as it should{status}: {error}"
            return HTTPProblem(502, "upstream", message)
        case ManagerClosed():
            return HTTPProblem(503, "closing", "the service is being closed")
    logger.error("an exception while a request was handled", exc_info=error)
    return HTTPProblem(500, "internal", "something went wrong here; it was logged")
