"""`wme-async mirror`: an up-to-date copy of a wiki in an SQLite file or a PostgreSQL database."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import click

from wme_async import _clock
from wme_async._client.client import Client
from wme_async._text import count_text, duration_text, size_text
from wme_async.cli import base
from wme_async.mirror import (
    Hole,
    Mirror,
    MirrorChunkLoaded,
    MirrorEvent,
    MirrorHoleClosed,
    MirrorHoleFound,
    MirrorLoaded,
    MirrorPlan,
    MirrorReader,
    MirrorSourceChanged,
    MirrorStateChanged,
    MirrorStatistics,
    MirrorTrouble,
    MirrorVerified,
    PostgresStore,
    SQLiteStore,
    measure_rate,
)

_STORE = "FILE.db|postgresql://…"
_schema_option = click.option(
    "--schema", metavar="NAME", help="Of a PostgreSQL database: the schema of this mirror.  [default: wme_mirror]"
)


def _make_store(text: str, schema: str | None) -> SQLiteStore | PostgresStore:
    """Return the store at a path or a URL.

    Raises:
        ValueError: It is the URL of something else, or a file has no schema.
        ImportError: The extra `postgres` is not installed.
    """
    if text.startswith(("postgresql://", "postgres://")):
        return PostgresStore(text) if schema is None else PostgresStore(text, schema=schema)
    if "://" in text:
        raise ValueError("a mirror is in an SQLite file, or at a URL that begins with postgresql://")
    if schema is not None:
        raise ValueError("--schema is for a PostgreSQL database")
    return SQLiteStore(text)


class _Mirrors(base.Group):
    """A group whose default command takes identifiers."""

    default: ClassVar[str] = "keep"
    """Its name, which may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command before identifiers.

        Args:
            ctx: As for `click.Group`.
            args: As for `click.Group`.
        """
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group("mirror", cls=_Mirrors, subcommand_metavar="IDENTIFIER... --to STORE | COMMAND STORE")
def command() -> None:
    """Keep an up-to-date copy of a wiki: load a snapshot, then follow the stream.

    `wme-async mirror enwiki_namespace_0 --to mirror.db` shows bytes, quota, disk and time, loads, and follows until it
    is stopped; the same command goes on from there. A STORE is an SQLite file, or the URL of a PostgreSQL database,
    such as postgresql://user:password@host/database.
    """


@command.command("keep", short_help="Keep a mirror; the name of this command may be left out.")
@click.argument("identifiers", nargs=-1, required=True, metavar="IDENTIFIER...")
@click.option(
    "--to", "place", required=True, metavar=_STORE, help="The SQLite file, or the PostgreSQL database (extra postgres)."
)
@_schema_option
@click.option(
    "--source", type=click.Choice(["auto", "stream", "batches", "snapshots"]), default="auto", show_default=True,
    help="Where changes come from; auto takes the best that the account has.",
)  # fmt: skip
@click.option(
    "--keep", metavar="A,B.C", multiple=True,
    help="Keep only these fields of each page, such as wikitext, html or abstract; repeatable. By default all.",
)  # fmt: skip
@click.option(
    "--load", type=click.Choice(["chunks", "archive"]), default="chunks", show_default=True,
    help="Load snapshots by chunks, which resumes, or whole, for one metered request.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Load or catch up, then end: for cron.")
@click.option(
    "--max-removed", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of pages that a snapshot may remove.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="Show neither costs nor progress.")
@click.pass_context
def keep_command(
    context: click.Context,
    /,
    identifiers: tuple[str, ...],
    place: str,
    schema: str | None,
    keep: Sequence[str],
    *,
    once: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Load snapshots into a store, and follow all changes until it is stopped."""
    fields = [name.strip() for text in keep for name in text.split(",") if name.strip()] or None
    base.when_stopped(base.CONTINUES)

    store = _make_store(place, schema)

    async def main() -> bool:
        async with base.connect(context) as client:
            hook = None if quiet else _tell
            mirror = Mirror(client, identifiers, store, keep=fields, on_event=hook, **options)
            async with mirror:
                if not quiet and mirror.state in {"new", "loading"}:
                    await _show_plan(client, await mirror.plan(), store, fields)
                await (mirror.sync() if once else mirror.run())
                statistics = await mirror.statistics()
            if not quiet:
                base.echo(_summary(statistics))
            return _is_sound(statistics)

    if not base.run(main()):
        context.exit(1)


async def _show_plan(
    client: Client, plan: MirrorPlan, store: SQLiteStore | PostgresStore, keep: Sequence[str] | None
) -> None:
    text = f"to load: {size_text(plan.bytes)}"
    if plan.pool is not None:
        text += f"; {await base.metered_text(client, plan.pool, plan.requests)}"
    free = "" if plan.free is None else f" of {size_text(plan.free)} free"
    text += f"; about {size_text(plan.disk)} of disk{free}{' without --keep' if keep else ''}"
    if isinstance(store, SQLiteStore):  # a server is not measured: others may use it
        rate = await measure_rate(store.path, keep)
        text += f"; {_duration(plan.hours(rate))} at {size_text(rate)} of JSON a second, as measured here"
    base.echo(text, err=True)
    if plan.free is not None and plan.disk > plan.free and not keep:
        base.echo("the disk may be too small: keep fewer fields (--keep), or name another disk", err=True)


def _duration(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} min"


def _tell(event: MirrorEvent) -> None:
    """Say what happens in a line on standard error."""
    text = _in_words(event)
    if text:
        base.echo(text, err=True)


def _in_words(event: MirrorEvent) -> str:
    match event:
        case MirrorChunkLoaded():
            return f"{event.identifier}: {event.done:,} of {event.total:,} parts, {event.records:,} records"
        case MirrorLoaded():
            loaded = event.loaded
            return f"{event.identifier}: {loaded.records:,} records of {loaded.date_modified:%Y-%m-%d} are loaded"
        case MirrorStateChanged():
            reasons = "".join(f"; degraded: {reason}" for reason in event.degraded.values())
            return f"{event.new}{reasons}"
        case MirrorSourceChanged():
            return f"changes come from the {event.source}"
        case MirrorHoleFound():
            return f"missing {_span(event.hole)}"
        case MirrorHoleClosed():
            return f"no longer missing, by a {event.by}: {_span(event.hole)}"
        case MirrorTrouble():
            return f"again in {event.wait:.0f} s: {base.message_of(event.error)}"
        case MirrorVerified():
            return _verified(event.verification)
        case _:
            return ""


def _span(hole: Hole) -> str:
    return f"{hole.begin:%Y-%m-%dT%H:%M} to {hole.end:%Y-%m-%dT%H:%M} ({hole.reason})"


def _verified(verification: Any) -> str:
    return (
        f"verified ({verification.kind}): {verification.checked:,} records, {verification.missed:,} changes had been "
        f"missed, {verification.removed:,} pages were removed"
    )


def _is_sound(statistics: MirrorStatistics) -> bool:
    return statistics.state != "stale" and not statistics.degraded


def _summary(statistics: MirrorStatistics) -> str:
    size = "" if statistics.bytes is None else f", {size_text(statistics.bytes)}"
    return f"{statistics.state}: {count_text(statistics.pages, 'page')}{size}"


@command.command("status")
@click.argument("place", metavar=_STORE)
@_schema_option
@click.option("--once", is_flag=True, help="It is kept by `mirror --once`, from cron: no process need run.")
@base.json_option
@click.pass_context
def status_command(context: click.Context, place: str, schema: str | None, *, once: bool, as_json: bool) -> None:
    """Show state, counts and holes. The exit code is 1 if the mirror is stale or degraded, or no process keeps it."""
    store = _make_store(place, schema)

    async def main() -> MirrorStatistics:
        async with MirrorReader(store) as reader:
            return await reader.statistics()

    statistics = base.run(main())
    if as_json:
        base.line(statistics)
    else:
        for text in _status_lines(statistics):
            base.echo(text)
    if not _is_sound(statistics) or (statistics.running is False and not once):
        context.exit(1)


def _status_lines(statistics: MirrorStatistics) -> list[str]:
    until = "" if statistics.followed_until is None else f", followed to {statistics.followed_until:%Y-%m-%dT%H:%M}"
    if statistics.newest is not None:
        until += f" in the quietest partition, newest event {statistics.newest:%Y-%m-%dT%H:%M}"
    undecided = f"{statistics.tombstones:,} deleted titles, {statistics.held:,} moves undecided"
    lines = [
        f"{_idle(statistics)}{_summary(statistics)}, {undecided}",
        f"source: {statistics.source or 'none yet'}{until}",
    ]
    for name in statistics.identifiers:
        loaded, loading = statistics.loaded.get(name), statistics.loading.get(name)
        text = "not loaded" if loaded is None else f"snapshot of {loaded.date_modified:%Y-%m-%d}"
        parts = "" if loading is None else f", {loading[0]} of {loading[1]} parts of the next"
        lines.append(f"{name}: {text}{parts}")
    lines += [f"degraded: {reason}" for reason in statistics.degraded.values()]
    lines += [f"missing: {_span(hole)}" for hole in statistics.holes]
    if statistics.doubts:
        lines.append(f"doubts: {count_text(statistics.doubts, 'title')} to look up")
    if statistics.verification is not None:
        lines.append(f"{_verified(statistics.verification)} on {statistics.verification.time:%Y-%m-%d}")
    lines += [f"consumer {name}: {behind:,} changes behind" for name, behind in statistics.consumers.items()]
    return lines


def _idle(statistics: MirrorStatistics) -> str:
    """Return what precedes the state that a process left behind."""
    if statistics.running is not False:
        return ""
    written = ""
    if statistics.written is not None:
        written = f", last written {duration_text(max(0.0, _clock.now() - statistics.written.timestamp()))} ago"
    return f"not running{written}; was "


@command.command("verify")
@click.argument("place", metavar=_STORE)
@_schema_option
@click.option("--sample", is_flag=True, help="Compare one chunk and some look-ups, instead of a whole snapshot.")
@click.pass_context
def verify_command(context: click.Context, place: str, schema: str | None, *, sample: bool) -> None:
    """Compare a mirror that is not running with the service, and merge what it has missed."""
    kind: Literal["sample", "full"] = "sample" if sample else "full"

    async def main() -> str:
        async with MirrorReader(_make_store(place, schema)) as reader:
            statistics = await reader.statistics()
        store = _make_store(place, schema)
        async with (
            base.connect(context) as client,
            Mirror(client, statistics.identifiers, store, keep=statistics.keep) as mirror,
        ):
            return _verified(await mirror.verify(kind))

    base.echo(base.run(main()))


@command.command("changes")
@click.argument("place", metavar=_STORE)
@_schema_option
@click.option("--consumer", default="cli", show_default=True, help="The name of the position, kept in the store.")
@click.option("--follow", is_flag=True, help="Wait for more changes at the end.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this number of changes.")
def changes_command(place: str, schema: str | None, consumer: str, limit: int | None, *, follow: bool) -> None:
    """Write the changes since the last call as JSON lines; a line that is written is acknowledged."""
    store = _make_store(place, schema)

    async def main() -> None:
        count = 0
        async with MirrorReader(store) as reader:
            async for change in reader.changes(consumer, wait=follow):
                base.line(
                    {
                        "seq": change.seq,
                        "kind": change.kind,
                        "project": change.project,
                        "page_id": change.page_id,
                        "title": change.title,
                        "old_title": change.old_title,
                        "revision": change.revision,
                        "digest": change.digest.hex(),
                        "hidden": change.hidden,
                    }
                )
                await change.ack()
                count += 1
                if count == limit:
                    break
            if not count:
                statistics = await reader.statistics()
                after = statistics.seq - statistics.consumers.get(consumer, statistics.seq)
                text = f"nothing new for the consumer {consumer}, which has read up to change {after:,}"
                base.echo(f"{text}; another --consumer begins with all pages", err=True)

    base.run(main())
