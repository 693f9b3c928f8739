"""The routes of the service: paths, parameters, and the types of requests and responses."""

import re
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec

from wme_async.jobs import Batch, Listing, Options, Status
from wme_async.jobs.naming import VARIABLES
from wme_async.web.messages import HTTPProblem

_DEFAULTS: Final = Options()


def _schema(**keywords: Any) -> msgspec.Meta:
    # For readers of the schema alone: the manager checks the values, and reports all problems at once.
    return msgspec.Meta(extra_json_schema=keywords)


Url = Annotated[str, _schema(pattern="^(https?://|wme:)", minLength=5, maxLength=8192)]


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that creates a batch.

    Args:
        urls: URLs to download: `http(s)://` or `wme:`, no two the same.
        quality: For pages with media: `best`, `worst`, or a height.
        concurrent_limit: Jobs at once.
        stop_on_error: Stop the entire batch on the first error.
        ignore_errors: Individual failures do not fail the batch.
        video_format: For pages with media: the preferred container.
        download_subtitles: For pages with media: subtitle files too.
        path_template: Where files go.
        webhook_url: Receives a message when the batch ends.
        timeout: Seconds that one job may run.
        priority: Higher ones start first.
        name: To recognise the batch by; by default its first URL and how many more it has.
    """

    urls: Annotated[list[Url], _schema(minItems=1, maxItems=100, uniqueItems=True)]
    quality: Annotated[str, _schema(pattern="^(best|worst|[1-9][0-9]{1,3}p?)$")] | None = _DEFAULTS.quality
    concurrent_limit: Annotated[int, _schema(minimum=1, maximum=10)] = _DEFAULTS.concurrent_limit
    stop_on_error: bool = _DEFAULTS.stop_on_error
    ignore_errors: bool = _DEFAULTS.ignore_errors
    video_format: Annotated[str, _schema(pattern="^[a-z0-9]{1,8}$")] | None = _DEFAULTS.video_format
    download_subtitles: bool = _DEFAULTS.download_subtitles
    path_template: Annotated[
        str, _schema(minLength=1, maxLength=500, description="Of " + " ".join(f"{{{name}}}" for name in VARIABLES))
    ] = _DEFAULTS.path_template
    webhook_url: Annotated[str, _schema(pattern="^https?://", maxLength=8192)] | None = _DEFAULTS.webhook_url
    timeout: Annotated[float, _schema(exclusiveMinimum=0, maximum=86400)] = _DEFAULTS.timeout
    priority: Annotated[int, _schema(minimum=-100, maximum=100)] = _DEFAULTS.priority
    name: Annotated[str, _schema(maxLength=200)] | None = _DEFAULTS.name


class RetryRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request that retries some jobs of a batch; without one, all that failed.

    Args:
        jobs: The ids of failed or cancelled jobs; None for all that failed.
    """

    jobs: list[str] | None = None


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that was accepted.

    Args:
        batch_id: Its id.
        status: `queued`.
        total_jobs: All jobs.
        completed_jobs: Completed jobs.
        failed_jobs: Failed jobs.
        running_jobs: Running jobs.
        queued_jobs: Jobs in the queue.
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
        expires_at: UTC epoch seconds until which it works.
    """

    url: str
    expires_at: float


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the service works.

    Args:
        status: `ok`.
        running_jobs: Running jobs.
        watchers: Open streams of events.
    """

    status: str
    running_jobs: int
    watchers: int


class Route(NamedTuple):
    """A method and a path.

    Args:
        method: GET, POST or DELETE; HEAD goes wherever GET does.
        path: With `{names}`; `{names:path}` may contain slashes.
        name: Name of the handler.
        summary: For the OpenAPI document.
        success: Status and type of a successful response; None for a body that is not JSON.
        body: Type of the request's body.
        query: Names and schemas of query parameters.
        errors: Statuses of error responses, besides those that every route has.
        media: Content type of a response that is not JSON.
        open: Whether it needs no API key.
    """

    method: str
    path: str
    name: str
    summary: str
    success: tuple[int, Any]
    body: Any = None
    query: tuple[tuple[str, dict[str, Any]], ...] = ()
    errors: tuple[int, ...] = ()
    media: str = "application/json"
    open: bool = False


_LIMIT = ("limit", {"type": "integer", "minimum": 1, "maximum": 500, "default": 50})
_BEFORE = ("before", {"type": "string", "description": "Only batches older than this one, or `next` of a page"})
_STATE = ("status", {"type": "string", "enum": [str(status) for status in Status]})
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
        body=RetryRequest,
        query=(("cancelled", _FLAG),),
        errors=(400, 404, 409, 413, 415, 422, 429),
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


_PATTERNS: Final = [(route, _pattern(route.path)) for route in ROUTES]


def match_route(method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return the route of a request and the values of the names in its path.

    Args:
        method: In capitals.
        path: Percent-encoded.

    Raises:
        HTTPProblem: 404 for an unknown path, 405 for another method.
    """
    matches = [(route, match) for route, pattern in _PATTERNS if (match := pattern.fullmatch(path))]
    # A path without variables comes before a pattern: no batch has the id "download".
    matches = [(route, match) for route, match in matches if route.path == path] or matches
    for route, match in matches:
        if method == route.method or (method == "HEAD" and route.method == "GET"):
            return route, {name: unquote(value) for name, value in match.groupdict().items()}
    if not matches:
        raise HTTPProblem(404, "no_such_address", "there is nothing at this address")
    methods = {route.method for route, _ in matches}
    allow = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    raise HTTPProblem(405, "wrong_method", f"this address takes {allow}", headers={"Allow": allow})
