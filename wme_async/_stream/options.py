"""The options of a stream: stated, checked and completed here, before anything is sent."""

import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

from wme_async._arguments import (
    check_aware,
    check_choice,
    check_flags,
    check_functions,
    check_numbers,
    check_text,
    check_type,
)
from wme_async._query.query import Value
from wme_async._stream.framing import MAX_RECORD, Framing
from wme_async._stream.reports import StreamEvent
from wme_async._stream.resume import StreamResource
from wme_async._transport.retry import FOR_EVER
from wme_async.errors import DecodeError, OffsetGap
from wme_async.offsets import MemoryOffsets, OffsetStore, Position
from wme_async.settings import Retry

Commit: TypeAlias = Literal["auto", "ack", "manual"]
"""When an event counts as processed, and when positions are saved."""

Choose: TypeAlias = Callable[[Sequence[int], Mapping[int, Position]], Awaitable[Mapping[int, Position]]]
"""Chooses the positions to begin with, from partitions and their saved positions."""

OnBadRecord: TypeAlias = Literal["raise", "skip"] | Callable[[DecodeError], Awaitable[None] | None]
"""The treatment of a record that does not decode."""

OnGap: TypeAlias = Literal["log", "raise"] | Callable[[OffsetGap], Awaitable[None] | None]
"""The treatment of missing events."""


class StreamOptions(TypedDict, total=False):
    """The options of `wme.realtime.articles` and `wme.realtime.wikidata`, which document them."""

    fields: Sequence[str] | None
    filters: Mapping[str, Value] | None
    parts: Iterable[int] | None
    connections: int
    since: datetime | Literal["oldest"] | None
    offsets: OffsetStore | None
    name: str
    framing: Framing
    on_bad_record: OnBadRecord
    on_gap: OnGap
    idle_timeout: float
    commit: Commit
    commit_interval: float
    backfill: bool
    retry: Retry | None
    on_event: Callable[[StreamEvent], None] | None
    max_buffer: int
    max_record: int


_DEFAULTS: Final[StreamOptions] = {
    "fields": None,
    "filters": None,
    "parts": None,
    "connections": 1,
    "since": None,
    "offsets": None,
    "name": "default",
    "framing": "ndjson",
    "on_bad_record": "raise",
    "on_gap": "log",
    "idle_timeout": 300.0,
    "commit": "auto",
    "commit_interval": 5.0,
    "backfill": False,
    "retry": None,
    "on_event": None,
    "max_buffer": 2 * 1024 * 1024,
    "max_record": MAX_RECORD,
}


def checked_options(options: Mapping[str, Any], resource: StreamResource) -> StreamOptions:
    """Return the options of a stream, complete: defaults filled in, `parts` in order, a store and a retry policy.

    `fields` and `filters` are not checked; the query does that.

    Args:
        options: The options of the call.
        resource: The stream.

    Raises:
        TypeError: An option does not exist or has the wrong type.
        ValueError: An option has a value that the server would reject or misread.
    """
    for name in sorted(options.keys() - _DEFAULTS.keys()):
        matches = difflib.get_close_matches(name, _DEFAULTS, 1, 0.6)
        advice = f"did you mean {matches[0]!r}?" if matches else f"the options are {', '.join(sorted(_DEFAULTS))}"
        raise TypeError(f"a stream has no option {name!r}; {advice}")
    values: dict[str, Any] = {**_DEFAULTS, **options}
    check_flags(backfill=values["backfill"])
    check_functions(on_event=values["on_event"])
    check_text(name="" if values["name"] is None else values["name"])
    check_choice("framing", values["framing"], ("ndjson", "sse"))
    check_choice("commit", values["commit"], ("auto", "ack", "manual"))
    check_choice("on_bad_record", values["on_bad_record"], ("raise", "skip"), function=True)
    check_choice("on_gap", values["on_gap"], ("log", "raise"), function=True)
    positive = ("idle_timeout", "commit_interval", "max_buffer", "max_record")
    check_numbers(optional=False, above=0, **{name: values[name] for name in positive})
    if values["since"] is not None and values["since"] != "oldest":
        check_aware("since", values["since"])  # only the server's clock can tell whether it is in range
    values["parts"] = _checked_parts(values["parts"], values["connections"], resource)
    store = MemoryOffsets() if values["offsets"] is None else values["offsets"]
    if isinstance(store, type) or not (hasattr(store, "load") and hasattr(store, "save")):
        raise TypeError(f'offsets must be a store, such as SQLiteOffsets("offsets.db"), not {store!r}')
    values["offsets"] = store
    check_type("retry", values["retry"], Retry | None, "a Retry, such as Retry(attempts=8), or None for ever")
    values["retry"] = values["retry"] or FOR_EVER
    return cast("StreamOptions", values)


def _checked_parts(parts: Iterable[int] | None, connections: int, resource: StreamResource) -> tuple[int, ...]:
    """Return the parts to read, in order; None means all.

    Raises:
        TypeError: The parts are not whole numbers.
        ValueError: They are empty, out of range or repeated, or there are more connections than parts.
    """
    if isinstance(parts, str | bytes) or not isinstance(parts, Iterable | None):
        raise TypeError(f"parts must be a list of whole numbers, such as [0, 1], not {parts!r}")
    numbers = tuple(range(resource.parts) if parts is None else parts)
    for part in numbers:
        items: dict[str, Any] = {"an item of parts": part}
        check_numbers(whole=True, optional=False, **items)
    check_numbers(whole=True, optional=False, connections=connections)
    if not numbers:
        raise ValueError("parts is empty; leave it out to read everything")
    outside = [part for part in numbers if not 0 <= part < resource.parts]
    if outside:
        raise ValueError(f"parts of {resource.name} are 0 to {resource.parts - 1}, so not {outside}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(
            f"parts {sorted(numbers)} names one twice: the server would deliver it twice, or end the stream"
        )
    if not 1 <= connections <= len(numbers):
        raise ValueError(
            f"connections must be 1 to {len(numbers)} here, not {connections}: each one reads at least one of the "
            f"{len(numbers)} parts"
        )
    return tuple(sorted(numbers))


def check_batch_limits(max_items: int, max_wait: float, max_bytes: int | None = None) -> None:
    """Raise if the limits of a batch are wrong.

    Raises:
        TypeError: A limit is not a number.
        ValueError: `max_items` or `max_bytes` is below 1, or `max_wait` below 0 seconds.
    """
    check_numbers(whole=True, optional=False, minimum=1, max_items=max_items)
    check_numbers(whole=True, minimum=1, max_bytes=max_bytes)
    check_numbers(optional=False, unit="seconds", max_wait=max_wait)
    if not max_wait >= 0:  # it may be infinite
        raise ValueError(f"max_wait must be at least 0 seconds, not {max_wait}")
