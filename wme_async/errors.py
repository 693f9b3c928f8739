"""The errors, as one tree.

    WMEError
      TransportError            the exchange did not finish
        ConnectFailed             no connection: DNS, TCP, TLS, proxy
        TimedOut                  nothing arrived for as long as was allowed
        Interrupted               the body ended before its end
        ClientClosed              the client, its pool or its aiohttp session was closed under work
      StatusError               the server answered, with an error
        BadRequest 400  Unauthorized 401  Forbidden 403  NotFound 404  Unprocessable 422
        RateLimited 429           slow down and try again
        QuotaExceeded 429         the month's allowance is used up: waiting does not help
        ServerError 5xx
      DataError                 the bytes arrived and are wrong
        DecodeError               a JSON document or line that does not fit its model
        ArchiveError              gzip or tar is damaged, cut short, or hostile
        IntegrityError            a file that does not match its checksum, size or version
        Replaced                  the server has another version than the one asked for
        VersionConflict           another version of the file is there; also a `FileExistsError`
      StreamError               the firehose
        OffsetGap                 events of a partition are missing
        IdleTimeout               the stream was silent for too long
        HourGap                   the batches of an hour are gone

Misuse (a client that was not entered, a naive datetime, an unknown field) is `ValueError`, `TypeError` or
`RuntimeError`, outside this tree, so that `except WMEError` never hides a bug. Cancellation passes through untouched.

Every error has its facts as attributes, can be pickled, and never holds a credential.
"""

import errno
from datetime import datetime
from typing import Any

__all__ = [
    "ArchiveError",
    "BadRequest",
    "ClientClosed",
    "ConnectFailed",
    "DataError",
    "DecodeError",
    "Forbidden",
    "HourGap",
    "IdleTimeout",
    "IntegrityError",
    "Interrupted",
    "NotFound",
    "OffsetGap",
    "QuotaExceeded",
    "RateLimited",
    "Replaced",
    "ServerError",
    "StatusError",
    "StreamError",
    "TimedOut",
    "TransportError",
    "Unauthorized",
    "Unprocessable",
    "VersionConflict",
    "WMEError",
    "error_for_status",
]


class WMEError(Exception):
    """The root of all errors about the world outside the SDK.

    Args:
        message: The cause and, if there is one, the remedy.
        url: The URL of the request, without query string and credentials.
    """

    def __init__(self, message: str = "", *, url: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.url = url

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by attributes: keyword-only arguments do not survive the default protocol."""
        return _rebuild, (type(self), self.message, dict(self.__dict__))

    def __repr__(self) -> str:
        facts = ", ".join(
            f"{key}={value!r}"
            for key, value in self.__dict__.items()
            if value is not None and key not in {"message", "record", "records"} and not key.startswith("_")
        )
        return f"{type(self).__name__}({self.message!r}{', ' if facts else ''}{facts})"


def _rebuild(kind: type[WMEError], message: str, facts: dict[str, Any]) -> WMEError:
    error = kind.__new__(kind, message)
    Exception.__init__(error, message)
    for name, fact in facts.items():
        setattr(error, name, fact)
    return error


class TransportError(WMEError):
    """An HTTP exchange that did not finish. Most may be retried.

    Attributes:
        permanent: Another attempt would fail in the same way, so it is not retried: a certificate that does not verify,
            an address that is blocked, a malformed URL.
    """

    permanent: bool = False


class ConnectFailed(TransportError):
    """The connection failed: name resolution, TCP, TLS or proxy."""


class TimedOut(TransportError):
    """Nothing arrived within `Timeouts`, or a response that is read at once was not complete in time.

    A download, an archive or a stream is never cut for being long.
    """


class Interrupted(TransportError):
    """The connection broke, or ended cleanly, before the end of the body."""


class ClientClosed(TransportError, RuntimeError):
    """The client, its `SessionPool` or its aiohttp session was closed, so that nothing more can be sent.

    Everything that is under way or waiting at that moment ends with this error at once. It is a `RuntimeError` too,
    since a request on a closed client is a mistake in the calling code. It is permanent: retries do not help.
    """

    permanent: bool = True


class StatusError(WMEError):
    """The server answered with an error status.

    Args:
        message: The message of the server, if any, with advice.
        status: The HTTP status.
        url: The request URL, without query string.
        request_id: `X-Request-Id` of the response; quote it to WME support.
        retry_after: Seconds of `Retry-After`, if the response has it.
        body: The first 2,000 characters of the response.
    """

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        url: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        body: str | None = None,
    ) -> None:
        super().__init__(message, url=url)
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.body = body


class BadRequest(StatusError):
    """400: the request is malformed, such as a path expression that the metadata back end cannot read."""


class Unauthorized(StatusError):
    """401: no valid token, or a wrong user name or password."""


class Forbidden(StatusError):
    """403: the account's plan lacks this product, or the path does not exist (the server says 403 to both)."""


class NotFound(StatusError):
    """404: the object does not exist, or not yet, such as an hour whose batches are in preparation."""


class Unprocessable(StatusError):
    """422: the server rejects an argument."""


class RateLimited(StatusError):
    """429: too many requests in a short time; waiting helps."""


class QuotaExceeded(StatusError):
    """429: the monthly allowance is used up; it is restored on the first of the month, UTC.

    Args:
        message: The allowance that is used up.
        used: Requests counted this month, where known.
        limit: The allowance, where known.
        pool: `ondemand`, `snapshot` or `chunk`.
        **facts: As for `StatusError`.
    """

    def __init__(
        self,
        message: str = "",
        *,
        used: int | None = None,
        limit: int | None = None,
        pool: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.used = used
        self.limit = limit
        self.pool = pool


class ServerError(StatusError):
    """5xx: the server's own trouble. Its body may be empty."""


class DataError(WMEError):
    """Bytes arrived that are wrong."""


class DecodeError(DataError):
    """A JSON document, or one line of NDJSON, that does not fit its model.

    An error document with a status of success, as proxies and gateways send it, is one too: it has no field of a record
    and `message`, `error`, `errors`, `status`, `detail`, `fault` or `code`.

    Args:
        message: The mismatch, with its path in the document.
        url: The URL of the document, if it is from a request.
        member: Name of the archive member, if from an archive.
        line: Line number in the member, counted from 1.
        offset: For archives, the byte offset of the line in the uncompressed member; for streams, the event's offset.
        partition: For streams, the event's partition, where it could be recovered.
        record: The raw bytes.
        records: The valid records of a response with several.
    """

    def __init__(
        self,
        message: str = "",
        *,
        url: str | None = None,
        member: str | None = None,
        line: int | None = None,
        offset: int | None = None,
        partition: int | None = None,
        record: bytes | None = None,
        records: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(message, url=url)
        self.member = member
        self.line = line
        self.offset = offset
        self.partition = partition
        self.record = record
        self.records = records


class ArchiveError(DataError):
    """A gzip or tar structure that is damaged, truncated or malicious.

    Args:
        message: The problem.
        url: The URL of the archive, if it is from a request.
        member: The member being read.
        offset: Byte offset of the problem in the uncompressed tar.
    """

    def __init__(
        self,
        message: str = "",
        *,
        url: str | None = None,
        member: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message, url=url)
        self.member = member
        self.offset = offset


class IntegrityError(DataError):
    """A file that does not match its checksum, size, ETag or range.

    Args:
        message: The difference.
        url: Where the bytes came from.
        expected: The value that the server states.
        got: The value of the received bytes.
    """

    def __init__(
        self,
        message: str = "",
        *,
        url: str | None = None,
        expected: str | None = None,
        got: str | None = None,
    ) -> None:
        super().__init__(message, url=url)
        self.expected = expected
        self.got = got


class Replaced(DataError):
    """The server has another version of an archive than the one asked for by its MD5.

    It is raised before the first record, unless nothing but the last byte could prove the version.

    Args:
        message: The archive, and the remedy.
        expected: The MD5 that was asked for.
        got: The version on the server: the MD5 of its metadata, its ETag, or the MD5 of the received bytes.
        url: The archive.
    """

    def __init__(
        self, message: str = "", *, expected: str | None = None, got: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(message, url=url)
        self.expected = expected
        self.got = got


class VersionConflict(DataError, FileExistsError):
    """A finished file of another version has the name already; it was not replaced.

    Args:
        message: The file, and the remedy.
        path: The file.
        local: Its version: its MD5.
        remote: The version on the server: the MD5 of its metadata, or its ETag.
        url: Where the bytes would have come from.
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str | None = None,
        local: str | None = None,
        remote: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(message, url=url)
        self.errno: int = errno.EEXIST
        self.strerror: str = message
        self.filename = path
        self.local = local
        self.remote = remote

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the attributes of a system error, which are not in `__dict__`, too."""
        system = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return _rebuild, (type(self), self.message, {**self.__dict__, **system})


class StreamError(WMEError):
    """The stream cannot continue."""


class OffsetGap(StreamError):
    """Events of one partition were lost to this reader, usually because they are older than the server keeps.

    Args:
        message: The missing events, and the reason.
        partition: The partition.
        expected: The offset that should have come next.
        got: The offset that came.
        reason: `retention`, `out_of_range` or `unknown`.
        **facts: As for `WMEError`.
    """

    def __init__(
        self,
        message: str = "",
        *,
        partition: int = -1,
        expected: int | None = None,
        got: int | None = None,
        reason: str = "unknown",
        **facts: Any,
    ) -> None:
        super().__init__(message, **facts)
        self.partition = partition
        self.expected = expected
        self.got = got
        self.reason = reason


class HourGap(StreamError):
    """The batches of an hour were lost to this reader of `Client.hours`.

    Args:
        message: Which hour, and why.
        hour: Its beginning, UTC.
        reason: `retention`: it is older than the 48 hours of the service. `missing`: it never got its list, though
            a later hour has one.
        **facts: As for `WMEError`.
    """

    def __init__(
        self, message: str = "", *, hour: datetime | None = None, reason: str = "retention", **facts: Any
    ) -> None:
        super().__init__(message, **facts)
        self.hour = hour
        self.reason = reason


class IdleTimeout(StreamError):
    """The stream sent nothing for `idle_timeout` seconds, again and again, until the attempts were used up."""


_BY_STATUS: dict[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    422: Unprocessable,
    429: RateLimited,
}


def error_for_status(status: int) -> type[StatusError]:
    """Return the class for an HTTP error status; other 4xx are plain `StatusError`, other 5xx `ServerError`."""
    return ServerError if status >= 500 else _BY_STATUS.get(status, StatusError)
