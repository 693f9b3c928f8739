"""`wme-async stream`: the firehose as JSON lines, or as a live table of its partitions."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import click
import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table

from wme_async import _clock
from wme_async._client.resources import RESOURCES
from wme_async._stream import Stream, StreamStatistics
from wme_async.cli import base
from wme_async.offsets import MemoryOffsets, OffsetStore, SQLiteOffsets

__all__ = ["command"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_REFRESH = 0.5


@click.command("stream")
@click.option("--offsets", metavar="FILE.db", help="Keep positions in this SQLite file, and go on from them.")
@click.option("--name", default="default", show_default=True, help="Of this reader, within the file of offsets.")
@click.option("--since", metavar="TIME|2h", help="Where to begin without positions: RFC 3339, or so long ago.")
@base.where_option
@base.fields_option
@click.option("--parts", metavar="0,1,…", help="Only these tenths of the stream.")
@click.option("--connections", type=click.IntRange(1, 10), default=1, show_default=True)
@click.option("--framing", type=click.Choice(["ndjson", "sse"]), default="ndjson", show_default=True)
@click.option("--wikidata", is_flag=True, help="Follow Wikidata entities instead of articles (beta).")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many events.")
@click.option("--skip-bad", is_flag=True, help="Skip and count records that do not decode, rather than fail.")
@click.option("--table", is_flag=True, help="Show a live table of the partitions instead of the events.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Follow the firehose: one JSON object a line, for as long as you like.

    It reconnects by itself. With --offsets nothing is lost between two runs: Ctrl-C saves the positions, and after a
    crash what was not saved comes again.
    """
    base.run(_follow(context, **options))


async def _follow(
    context: click.Context,
    *,
    offsets: str | None,
    name: str,
    since: str | None,
    filters: Sequence[str],
    fields: list[str] | None,
    parts: str | None,
    connections: int,
    framing: str,
    wikidata: bool,
    limit: int | None,
    skip_bad: bool,
    table: bool,
) -> None:
    row = RESOURCES["realtime.wikidata" if wikidata else "realtime.articles"]
    assert row.backend is not None
    store: OffsetStore = MemoryOffsets() if offsets is None else SQLiteOffsets(offsets)
    conditions = base.conditions(filters, row)
    async with base.connect(context) as client:
        follow: Any = client.realtime.wikidata if wikidata else client.realtime.articles
        stream: Stream[Any] = follow(
            # The bytes are passed on as they came: nothing is lost that a model does not name.
            type=msgspec.Raw,
            fields=fields,
            filters=conditions or None,
            since=_time(since),
            parts=_numbers(parts),
            connections=connections,
            framing=framing,
            offsets=store,
            name=name,
            on_bad_record="skip" if skip_bad else "raise",
        )
        async with stream:
            try:
                if table:
                    await _watch(stream, limit)
                else:
                    await _print(stream, limit)
            finally:
                with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                    base.stderr.print(_summary(stream.statistics()), style="dim", highlight=False)


async def _print(stream: Stream[Any], limit: int | None) -> None:
    seen = 0
    async for event in stream:
        base.line(event)
        # What is printed is done with: being stopped now must not print it again next time.
        stream.ack(event)
        seen += 1
        if seen == limit:
            return


async def _watch(stream: Stream[Any], limit: int | None) -> None:
    async def consume() -> None:
        seen = 0
        async for events in stream.batches():
            seen += len(events)
            if limit is not None and seen >= limit:
                return

    with Live(_picture(stream.statistics()), console=base.stderr, auto_refresh=False) as live:
        consumer = asyncio.ensure_future(consume())
        try:
            while not consumer.done():
                await asyncio.wait({consumer}, timeout=_REFRESH)
                live.update(_picture(stream.statistics()), refresh=True)
        finally:
            consumer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await consumer


def _picture(now: StreamStatistics) -> Group:
    table = Table(header_style="bold")
    for column in ("partition", "offset", "processed", "published", "age"):
        table.add_column(column, justify="right")
    for each in now.partitions:
        table.add_row(
            str(each.partition),
            str(each.offset) if each.offset >= 0 else "-",
            str(each.acknowledged) if each.acknowledged >= 0 else "-",
            each.published.strftime("%H:%M:%S") if each.published else "-",
            f"{each.age:.0f} s" if each.age is not None else "-",
            style=None if each.connected else "red",
        )
    return Group(table, _summary(now))


def _summary(now: StreamStatistics) -> str:
    lag = "" if now.lag is None else f", {now.lag:.0f} s behind"
    catch_up = "" if not now.catch_up else f", caught up in {now.catch_up:.0f} s"
    return (
        f"{now.events} events, {now.rate:.1f}/s, {now.bytes / 1e6:.1f} MB{lag}{catch_up}; {now.connected} connections, "
        f"{now.reconnects} reconnects, {now.duplicates} duplicates dropped, {now.gaps} gaps, {now.bad_records} bad"
    )


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
            return _clock.utc_now() - timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
        return datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is neither a time such as 2025-07-16T05:00:00Z nor one such as 2h"
        ) from None


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 0,1,2") from None
