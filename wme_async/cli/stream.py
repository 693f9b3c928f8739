"""`wme-async stream`: the firehose as JSON lines, or as a live table of its partitions."""

import asyncio
import contextlib
import time
from datetime import datetime, timedelta
from typing import Any

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from wme_async import _clock
from wme_async._client.resources import RESOURCES
from wme_async._stream import GroupStream, Static, Stream, StreamStatistics
from wme_async._text import count_text, size_text
from wme_async.cli import base, brokers
from wme_async.offsets import OffsetStore, PostgresOffsets, RedisOffsets, SQLiteOffsets

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_REFRESH = 0.5
_LIST = 1000  # events at once
_OTHER_LINES = 6  # of a screen with the table: the total, which may be folded, headings, the last line
_LEAST_SECONDS = 1.0


def _parse_time(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime | str | None:
    if text is None or text == "oldest":
        return text
    try:
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
            return _clock.utc_now() - timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
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
    """Follow the firehose: one JSON object a line, for as long as you like.

    It reconnects by itself. With --offsets nothing is lost between two runs: Ctrl-C saves the positions, and after a
    crash the events since the last save come again. With --to nothing is lost and nothing doubled, also after a crash.
    With --share several processes, on any number of hosts, divide the stream among them.
    """
    brokers.check_options(options)
    base.run(_follow(context, **options))


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
    *,
    wikidata: bool,
    filters: tuple[str, ...],
    offsets: str | None,
    share: str | Static | None,
    lease: float | None,
    limit: int | None,
    table: bool,
    to: brokers.BrokerURL | None,
    dead_letter: str | None,
    max_message: int | None,
    tombstones: bool,
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
    async with base.connect(context) as client:
        open_stream: Any = client.realtime.wikidata if wikidata else client.realtime.articles
        # The bytes are passed on as they came: with fields that no model names.
        events = open_stream(type=msgspec.Raw, share=share, **options)
        if to is not None:
            bridge = {"dead_letter": dead_letter, "max_message": max_message, "tombstones": tombstones}
            await brokers.copy(events, to, limit=limit, **bridge)
            return
        async with events as stream:
            run = _Run()
            try:
                await (_watch if table else _print)(stream, limit, run)
            finally:
                with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                    base.stderr.print(_summary(stream.statistics(), run), style="dim", highlight=False)


async def _print(stream: Stream[Any] | GroupStream[Any], limit: int | None, run: "_Run") -> None:
    async for event in stream:
        base.line(event)
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
    if not base.stderr.is_terminal:
        base.stderr.line()  # the table ends without one


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
            f"{partition.age:.0f} s" if partition.age is not None else "-",
            style=None if partition.connected else "red",
        )
    hidden = len(partitions) - room
    more = Text(f"and {hidden} partitions that lag less" if hidden > 0 else "", style="dim")
    return Group(Text(_summary(statistics, run)), table, more)


def _summary(now: StreamStatistics, run: "_Run") -> str:
    lag = "" if now.lag is None else f", {now.lag:.0f} s behind"
    catch_up = "" if not now.catch_up else f", caught up in {now.catch_up:.0f} s"
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

    @property
    def rate(self) -> float | None:
        """Events a second since the stream was opened; None in the first second, which says nothing yet."""
        seconds = time.monotonic() - self._began
        return self.events / seconds if seconds >= _LEAST_SECONDS else None
