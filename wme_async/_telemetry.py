"""Telemetry: the hooks that a client calls with requests, operations and streams, and the fields of log records."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from wme_async.errors import WMEError

if TYPE_CHECKING:
    from wme_async._stream.reports import StreamStatistics


class Report(Protocol):
    """Takes facts about a request or an operation, by name."""

    def __call__(self, **facts: Any) -> None: ...


class StreamTelemetry(Protocol):
    """Takes the statistics of one stream, every few seconds and at its end."""

    def __call__(self, statistics: "StreamStatistics", /) -> None: ...


class Telemetry(Protocol):
    """What a client calls with its requests, operations and streams: the argument `telemetry` of `Client`.

    `wme_async.integrations.otel.OpenTelemetry` is one. All methods are called in the event loop; they must neither
    block nor raise. An exception passes through the context managers, which see it and do not suppress it.
    """

    def attempt(self, method: str, url: str, resends: int) -> contextlib.AbstractContextManager[Report]:
        """Observe one attempt of a request, until the head of its response has arrived.

        Reported is `status`, the HTTP status of an accepted response; that of another one is in the `StatusError`.

        Args:
            method: The HTTP method.
            url: The URL without its query, and without the path where that is secret.
            resends: How often the request was sent before.
        """
        ...

    def operation(self, name: str, facts: dict[str, Any]) -> contextlib.AbstractContextManager[Report]:
        """Observe a whole operation.

        Args:
            name: `"download"`, `"read"` or `"task"`.
            facts: Its `url`, or `snapshot` and `chunk` of a task. Reported are `bytes`, `resumed` and `restarts` of a
                download, `bytes` of a read, `records` and `bad_records` of a task.
        """
        ...

    def stream(self, name: str) -> StreamTelemetry:
        """Return the function that is called with the statistics of a stream that opens.

        Args:
            name: The name of its positions, such as `"default/articles"`.
        """
        ...

    def lease_lost(self, stream: str, part: int) -> None:
        """Note that a member of a group lost a part to another one, which it did not give back itself.

        Args:
            stream: The name of the stream's positions.
            part: The part.
        """
        ...


@contextlib.contextmanager
def operation(telemetry: Telemetry | None, name: str, **facts: Any) -> Iterator[Report]:
    """Observe an operation, if there is a telemetry."""
    with contextlib.nullcontext(_ignore) if telemetry is None else telemetry.operation(name, facts) as report:
        yield report


def _ignore(**_facts: Any) -> None:
    """Do nothing: no telemetry takes the facts."""


def log_fields(error: BaseException | None = None, **facts: Any) -> dict[str, Any]:
    """Return the argument `extra` of a log call: the attribute `wme` of the record has the facts as a mapping.

    Args:
        error: Its type is the field `error`, its own facts are fields too: `url`, `status`, `partition`, ...
        facts: Further fields; those that are None are left out.
    """
    fields: dict[str, Any] = {}
    if error is not None:
        fields["error"] = type(error).__name__
    if isinstance(error, WMEError):
        # A record may be of any size, and is in the error for programs.
        fields |= {name: fact for name, fact in vars(error).items() if name not in {"message", "record", "records"}}
    fields |= facts
    return {"wme": {name: fact for name, fact in fields.items() if fact is not None and not name.startswith("_")}}
