"""`wme-async stream`: the firehose as JSON lines, or as a live table of its partitions."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wme_async import _clock
from wme_async._client.resources import RESOURCES
from wme_async._stream import GroupStream, Static, Stream, StreamStatistics
from wme_async._stream.reports import StreamConnected, StreamEvent, StreamRetrying
from wme_async._text import count_text, duration_text, size_text
from wme_async.cli import base, brokers
from wme_async.errors import TimedOut, WMEError
from wme_async.offsets import OffsetStore, PostgresOffsets, RedisOffsets, SQLiteOffsets

_outages = logging.getLogger("wme_async.stream.outage")

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_REFRESH = 0.5
_LIST = 1000  # events at once
_OTHER_LINES = 6  # of a screen with the table: the total, which may be folded, headings, the last line
_LEAST_SECONDS = 1.0
SHORT_OUTAGE: float = 1.0  # seconds without a connection that are not worth a line
SILENCE: float = 15.0  # seconds without a first event, after which a filter may be wrong


def _parse_time(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | str | None:
    if text is None or text == "oldest":
        return text
    try:
        if text[-1:] in _UNITS and text[:-1].removeprefix("-").replace(".", "", 1).isdecimal():
            return _clock.utc_now() - timedelta(seconds=float(text[:-1].removeprefix("-")) * _UNITS[text[-1]])
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        message = f"{text!r} is neither a time such as 2025-07-16T05:00:00Z nor one such as 2h"
        raise click.BadParameter(message) from None


def _parse_numbers(_context: click.Context, _option: click.Parameter, text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(number) for number in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0,1,2") from None


def _parse_share(_context: click.Context, _option: click.Parameter, text: str | None) -> str | Static | None:
    if text is None or text == "group":
        return text
    try:
        ordinal, of = text.split("/")
        return Static(int(ordinal), int(of))
    except ValueError:
        message = f"{text!r} is neither the word group, nor a number from 0 and the number of processes, such as 0/3"
        raise click.BadParameter(message) from None


@click.command("stream")
@click.option(
    "--offsets",
    metavar="FILE.db|postgresql://…|redis://…",
    help="Keep positions in this SQLite file, or on this server, and resume from them.",
)
@click.option("--name", default="default", show_default=True, help="Of this reader, within the offsets.")
@click.option(
    "--share",
    metavar="group|0/3",
    callback=_parse_share,
    help="Share the stream with others of this name: by leases in the store of the offsets, or by a fixed plan.",
)
@click.option("--lease", type=float, help="Seconds after which others read on for one that died.  [default: 30]")
@click.option(
    "--since",
    metavar="TIME|2h|oldest",
    callback=_parse_time,
    help="Where to begin without positions: RFC 3339, a time before now, or all that the server keeps.",
)
@base.where_option
@base.fields_option
@base.raw_option
@click.option("--parts", metavar="0,1,…", callback=_parse_numbers, help="Only these tenths of the stream.")
@click.option(
    "--connections", type=click.IntRange(1, 10), default=1, show_default=True, help="They share the parts among them."
)
@click.option(
    "--framing",
    type=click.Choice(["ndjson", "sse"]),
    default="ndjson",
    show_default=True,
    help="What the server sends.",
)
@click.option("--wikidata", is_flag=True, help="Follow Wikidata entities instead of articles (beta).")
@click.option("--limit", type=click.IntRange(1), help="Stop after this number of events.")
@base.skip_bad_option
@click.option("--table", is_flag=True, help="Show a live table of the partitions instead of the events.")
@brokers.options
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Follow the firehose: one JSON object a line, as the service sent it, for as long as you like.

    It reconnects by itself. With --offsets nothing is lost between two runs: Ctrl-C saves the positions, and after a
    crash the events since the last save come again. With --to nothing is lost and nothing doubled, also after a crash.
    With --share several processes, on any number of hosts, divide the stream among them.
    """
    brokers.check_options(options)
    base.merge_field(options)
    if options["raw"] and (options["table"] or options["to"] is not None):
        raise click.UsageError("--raw prints values; leave out --table and --to")
    bridge = {name: options.pop(name) for name in ("dead_letter", "max_message", "tombstones")}
    base.run(_follow(context, bridge, **options))


def _open_store(text: str | None) -> OffsetStore | None:
    """Return the store of positions at a path or a URL.

    Raises:
        ValueError: It is the URL of something else.
        ImportError: The extra of the server is not installed.
    """
    if text is None:
        return None
    if text.startswith(("postgresql://", "postgres://")):
        return PostgresOffsets(text)
    if text.startswith(("redis://", "rediss://", "unix://")):
        return RedisOffsets(text)
    if "://" in text:
        raise ValueError("--offsets is neither a file nor a URL that begins with postgresql:// or redis://")
    return SQLiteOffsets(text)


async def _follow(
    context: click.Context,
    bridge: dict[str, Any],
    *,
    wikidata: bool,
    filters: tuple[str, ...],
    offsets: str | None,
    share: str | Static | None,
    lease: float | None,
    limit: int | None,
    table: bool,
    raw: bool,
    to: brokers.BrokerURL | None,
    **options: Any,
) -> None:
    if offsets is not None:
        base.when_stopped(f"the positions are saved, and {base.CONTINUES}")
    resource = RESOURCES["realtime.wikidata" if wikidata else "realtime.articles"]
    options["filters"] = base.parse_filters(filters, resource)
    if share == "group" and offsets is None:
        raise click.UsageError("--share group needs --offsets: the others find there who reads what")
    if share == "group" and to is not None:
        raise click.UsageError("--to needs a fixed plan, such as --share 0/3: the broker keeps the positions")
    options["offsets"] = _open_store(offsets)
    if lease is not None:
        options["lease"] = lease
    # The members of a group come and go, and number their connections each for itself.
    active = base.stderr.is_terminal and share != "group"
    notes = _Notes(filters, several=options["connections"] > 1, active=active)
    async with base.connect(context) as client:
        open_stream: Any = client.realtime.wikidata if wikidata else client.realtime.articles
        # The bytes are passed on as they came: with fields that no model names.
        events = open_stream(type=dict if raw else msgspec.Raw, share=share, on_event=notes, **options)
        with notes:
            if to is not None:
                await brokers.copy(events, to, limit=limit, **bridge)
                return
            async with events as stream:
                await _show(stream, limit, notes, table=table, values=options["fields"] if raw else None)


async def _show(
    stream: Stream[Any] | GroupStream[Any],
    limit: int | None,
    notes: "_Notes",
    *,
    table: bool,
    values: Sequence[str] | None,
) -> None:
    """Print events, or a live table; then a summary.

    Args:
        stream: The stream.
        limit: Events at most.
        notes: Counts them.
        table: Show a table.
        values: Fields whose values alone are printed; None for whole events.
    """
    run = notes.run
    run.begin()
    notes.expect_event()
    try:
        await (_watch(stream, limit, run) if table else _print(stream, limit, run, values))
    finally:
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            if table and not base.stderr.is_terminal:
                base.stderr.line()  # the table ends without one
            base.stderr.print(_summary(stream.statistics(), run), style="dim", highlight=False)


async def _print(
    stream: Stream[Any] | GroupStream[Any], limit: int | None, run: "_Run", values: Sequence[str] | None
) -> None:
    async for event in stream:
        if values is None:
            base.line(event)
        else:
            base.values_line(event, values)
        # An event is processed once it is printed, even if the command is stopped now.
        stream.ack(event)
        run.events += 1
        if run.events == limit:
            return


async def _watch(stream: Stream[Any] | GroupStream[Any], limit: int | None, run: "_Run") -> None:
    async def consume() -> None:
        async for events in stream.batches(max_items=_LIST if limit is None else min(limit, _LIST)):
            run.events += len(events)
            if limit is not None and run.events >= limit:
                return

    def picture() -> Group:
        return _table(stream.statistics(), base.stderr.height, run)

    with Live(picture(), console=base.stderr, auto_refresh=False) as live:
        consumer = asyncio.ensure_future(consume())
        try:
            while not consumer.done():
                await asyncio.wait({consumer}, timeout=_REFRESH)
                live.update(picture(), refresh=True)
        finally:
            consumer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await consumer


def _table(statistics: StreamStatistics, height: int, run: "_Run") -> Group:
    """Return a total and the partitions that lag most, as many as fit on the screen."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for column in ("partition", "offset", "processed", "published", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    partitions = sorted(statistics.partitions, key=lambda partition: (partition.connected, -(partition.age or 0.0)))
    room = max(1, height - _OTHER_LINES)
    for partition in partitions[:room]:
        table.add_row(
            str(partition.partition),
            str(partition.offset) if partition.offset >= 0 else "-",
            str(partition.acknowledged) if partition.acknowledged >= 0 else "-",
            partition.published.strftime("%H:%M:%S") if partition.published else "-",
            duration_text(partition.age) if partition.age is not None else "-",
            style=None if partition.connected else "red",
        )
    hidden = len(partitions) - room
    more = Text(f"and {hidden} partitions that lag less" if hidden > 0 else "", style="dim")
    return Group(Text(_summary(statistics, run)), table, more)


def _summary(now: StreamStatistics, run: "_Run") -> str:
    lag = "" if now.lag is None else f", {duration_text(now.lag)} behind"
    catch_up = "" if not now.catch_up else f", caught up in {duration_text(now.catch_up)}"
    counts = (
        (now.connected, "connection"),
        (now.reconnects, "reconnect"),
        (now.duplicates, "dropped duplicate"),
        (now.gaps, "gap"),
        (now.bad_records, "bad record"),
    )
    words = "".join(f", {count:,} {word}{'s' if count > 1 else ''}" for count, word in counts if count)
    rate = "" if run.rate is None else f", {run.rate:.1f}/s"
    return f"{count_text(run.events, 'event')}{rate}, {size_text(now.bytes)}{lag}{catch_up}{words}"


class _Run:
    """The events that this run of the command has processed, of those that were read ahead."""

    def __init__(self) -> None:
        self.events = 0
        self._began = time.monotonic()

    def begin(self) -> None:
        """Count the time from here: the stream is open."""
        self._began = time.monotonic()

    @property
    def rate(self) -> float | None:
        """Events a second since the stream was opened; None in the first second, which says nothing yet."""
        seconds = time.monotonic() - self._began
        return self.events / seconds if seconds >= _LEAST_SECONDS else None


class _Notes:
    """Says on a terminal, in one line each, that connections were lost, that they are back, or that nothing comes.

    Without a terminal the log does, of failures that last. A context manager.

    Args:
        filters: As on the command line.
        several: Whether there are several connections.
        active: Whether to say anything.
    """

    def __init__(self, filters: Sequence[str], *, several: bool, active: bool) -> None:
        self.run = _Run()
        self._several = several
        self._filters = filters
        self._active = active
        self._lost: dict[int, float] = {}
        self._said: float | None = None
        self._worked = False
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __enter__(self) -> Self:
        if self._active:
            _outages.setLevel(logging.ERROR)
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            _outages.setLevel(logging.NOTSET)
        for timer in self._timers.values():
            timer.cancel()

    def __call__(self, event: StreamEvent) -> None:
        """Take notice of a report of the stream.

        Args:
            event: The report.
        """
        if not self._active:
            return
        if isinstance(event, StreamRetrying) and not isinstance(event.error, TimedOut):  # such a one is silence
            if not self._lost:
                self._later("lost", SHORT_OUTAGE, partial(self._say_lost, event.error))
            self._lost.setdefault(event.connection, time.monotonic())
        elif isinstance(event, StreamConnected):
            self._worked = True
            self._lost.pop(event.connection, None)
            if not self._lost:
                self._say_back()

    def expect_event(self) -> None:
        """Say it, once, if no event comes."""
        if self._active:
            self._later("silent", SILENCE, self._say_silent)

    def _later(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, function)

    def _say_lost(self, error: WMEError) -> None:
        self._said = min(self._lost.values())
        lost = "a connection was lost" if self._several else "the connection was lost"
        state = lost if self._worked else "there is no connection"
        _say(f"{state}; trying again: {base.message_of(error)}")

    def _say_back(self) -> None:
        if "lost" in self._timers:
            self._timers["lost"].cancel()
        if self._said is not None:
            connections = "all connections are" if self._several else "the connection is"
            _say(f"{connections} back after {duration_text(time.monotonic() - self._said)}")
            self._said = None

    def _say_silent(self) -> None:
        if not self.run.events and self._said is None:
            cause = f": check the values of {', '.join(self._filters)}" if self._filters else ""
            _say(f"no event in {SILENCE:.0f} s{cause}")


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        base.stderr.print(message, style="yellow", highlight=False)
