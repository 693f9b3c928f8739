"""`wme-async sync`: folders made equal to listings, once or hour by hour."""

import asyncio
import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from wme_async._client.client import Client
from wme_async._client.hour_feed import last_hour, position_name
from wme_async._client.quota import Cost
from wme_async._client.resources import RESOURCES, Resource
from wme_async._client.sync_report import SyncFile, SyncReport
from wme_async._text import count_text, size_text
from wme_async.cli import base
from wme_async.errors import StreamError
from wme_async.offsets import SQLiteOffsets

Filters = dict[str, Any] | None

_SPAN: Final = re.compile(r"(?P<count>[0-9]{1,6})(?P<unit>[hd])")
_POSITIONS: Final = ".wme-hours.db"
# An hour whose files failed is tried so often before the next one is followed.
_ATTEMPTS: Final = 3
_PAUSE: Final = 30.0
# The reader of everything, and of whatever was followed before positions knew their filters.
_READER: Final = "sync"


def _parse_span(_context: click.Context, _option: click.Parameter, text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = _SPAN.fullmatch(text)
    if match is None or not int(match["count"]):
        raise click.BadParameter(f"{text!r} is not a time such as 7d or 48h")
    return timedelta(hours=int(match["count"]) * (24 if match["unit"] == "d" else 1))


def _parse_since(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Return an hour; `3h` is three hours ago, as for `stream --since`."""
    return f"-{text}" if text is not None and re.fullmatch("[0-9]{1,4}h", text) else text


_OPTIONS: Final = (
    click.option("--to", required=True, metavar="DIR", help="The folder."),
    click.option(
        "--where",
        "filters",
        metavar="FIELD=VALUE",
        multiple=True,
        help="Only archives with this value; repeatable, also for several values of a field.",
    ),
    click.option(
        "--name",
        metavar="TEMPLATE",
        help="Path below the folder, of {kind} {date} {hour} {snapshot} {chunk} {identifier} {version} {ext}.",
    ),
    click.option(
        "--dry-run", is_flag=True, help="Show the files to fetch and remove, with bytes and quota; change nothing."
    ),
    click.option("--delete", is_flag=True, help="Remove files of earlier syncs that are no longer listed."),
    click.option(
        "--max-delete",
        type=click.FloatRange(0, 1),
        default=0.1,
        show_default=True,
        help="Share of those files above which nothing is removed.",
    ),
    click.option("--concurrency", type=click.IntRange(1, 256), default=32, show_default=True, help="Files at once."),
    base.max_rate_option("Bandwidth limit."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
    base.json_option,
)
_HOURLY: Final = (
    click.option("--keep", metavar="7d", callback=_parse_span, help="Remove files of hours that are older than this."),
    click.option("--follow", is_flag=True, help="Go on with each hour as its list appears, missed ones first."),
    click.option(
        "--since",
        metavar="HOUR",
        callback=_parse_since,
        help="With --follow: where to begin without a saved position, such as -24h.",
    ),
    click.option(
        "--offsets", metavar="FILE.db", help=f"With --follow: the file of the position; DIR/{_POSITIONS} by default."
    ),
)


@click.group("sync", cls=base.Group)
def command() -> None:
    """Make a folder equal to a listing: fetch new and changed files."""


def _add(name: str, row: str, getter: Callable[[Client, Any], Any], *, place: str | None = None) -> None:
    resource = RESOURCES[row]

    @click.pass_context
    def run(context: click.Context, /, *, place: str | None = None, **options: Any) -> None:
        filters = _filter_sets(options.pop("filters"), resource)
        follow = options.pop("follow", False)
        feed = {key: options.pop(key, None) for key in ("since", "offsets")}
        if not follow and any(feed.values()):
            raise click.UsageError("--since and --offsets are for --follow")
        if follow and (options["dry_run"] or place is not None):
            raise click.UsageError("--follow begins with --since, and has neither an hour nor --dry-run")
        hour = place or "latest"
        base.when_stopped(None if options["dry_run"] else base.CONTINUES)

        async def main() -> bool:
            async with base.connect(context) as client:
                if follow:
                    return await _follow(client, filters, options, **feed)
                report = await _sync(getter(client, hour), filters, **options)
                if options["dry_run"]:
                    await _show_plan(client, report, as_json=options["as_json"])
                return report.complete

        if not base.run(main()):
            context.exit(1)

    decorators = (*_OPTIONS, *(_HOURLY if name == "batches" else ()))
    if place is not None:
        decorators = (click.argument("place", metavar=place, required=name != "batches"), *decorators)
    hours = " HOUR is 2025-07-16T05, latest (the default) or -3h." if name == "batches" else ""
    text = f"Sync {resource.product} to a folder.{hours}"
    command.command(name, cls=base.PlaceCommand, help=text)(base.all_of(*decorators)(run))


_add("batches", "batches", lambda client, hour: client.batches(hour), place="[HOUR]")
_add("snapshots", "snapshots", lambda client, _: client.snapshots)
_add("chunks", "snapshots.chunks", lambda client, name: client.snapshots.chunks(name), place="SNAPSHOT")
_add("structured-snapshots", "structured_snapshots", lambda client, _: client.structured_snapshots)
_add("wikidata", "wikidata.snapshots", lambda client, _: client.wikidata.snapshots)


def _filter_sets(texts: Sequence[str], resource: Resource) -> list[Filters]:
    """Return the filters of each listing: the service takes one value of a field, so that two are two listings.

    Args:
        texts: `FIELD=VALUE` each.
        resource: The resource that is listed.

    Raises:
        click.BadParameter: As for `parse_filters`.
    """
    values: dict[str, list[str]] = {}
    for text in dict.fromkeys(texts):
        values.setdefault(text.partition("=")[0], []).append(text)
    return [base.parse_filters(combination, resource) for combination in product(*values.values())]


async def _sync(
    files: Any, filter_sets: Sequence[Filters], *, quiet: bool, as_json: bool, hint: bool = True, **options: Any
) -> SyncReport:
    """Sync each listing in turn, and print one report.

    Args:
        files: The archives.
        filter_sets: The filters of each listing.
        quiet: Show no progress.
        as_json: Print the report as JSON.
        hint: Say which filters select nothing.
        **options: As for `Files.sync`.

    Raises:
        QuotaExceeded: The allowance is used up.
    """
    reports: list[SyncReport] = []
    for filters in filter_sets:
        with base.progress_bar("", quiet=quiet or options["dry_run"]) as progress:
            report: SyncReport = await files.sync(progress=progress, filters=filters, **options)
        reports.append(report)
        if hint and filters and _is_empty(report):
            values = ", ".join(f"{name}={value}" for name, value in filters.items())
            base.echo(f"nothing is listed with {values}: is it spelled as `wme-async projects ls` shows it?", err=True)
        if report.stopped is not None:
            break
    report = _joined(reports)
    if quiet or not base.stderr.is_terminal:
        for file in report.failed:
            base.stderr.print(f"{file.identifier}: {file.error}", style="red", highlight=False)
    if options["dry_run"]:
        return report
    if as_json:
        base.line(_plain(report))
    else:
        base.echo(f"{options['to']}  {_summary(report)}")
    if report.stopped is not None:
        raise report.stopped
    return report


def _is_empty(report: SyncReport) -> bool:
    return not (report.new or report.changed or report.unchanged or report.failed or report.pending)


def _joined(reports: Sequence[SyncReport]) -> SyncReport:
    """Return the reports of several listings as one."""
    joined = reports[0]
    for report in reports[1:]:
        sums: dict[str, Any] = {
            name: getattr(joined, name) + getattr(report, name)
            for name in ("new", "changed", "unchanged", "failed", "pending", "removed", "bytes", "requests", "seconds")
        }
        pool = joined.cost.pool or report.cost.pool
        cost = Cost(pool=pool, requests=joined.cost.requests + report.cost.requests)
        joined = msgspec.structs.replace(joined, **sums, cost=cost, stopped=joined.stopped or report.stopped)
    return joined


async def _follow(
    client: Client, filter_sets: Sequence[Filters], options: dict[str, Any], *, since: str | None, offsets: str | None
) -> bool:
    folder = Path(options["to"])
    if offsets is None:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    path = Path(offsets or folder / _POSITIONS)
    name = _reader_name(filter_sets, options["name"], None if offsets is None else folder)
    store = SQLiteOffsets(path)
    feed = client.hours(since, offsets=store, name=name)
    if not options["quiet"]:
        base.echo(await _beginning(store, path, name, since), err=True)
    complete = hint = True
    async with feed as hours:
        try:
            async for hour in hours:
                for attempt in range(_ATTEMPTS):
                    if attempt:
                        await asyncio.sleep(_PAUSE)
                    report = await _sync(hour, filter_sets, hint=hint, **options)
                    hint = False
                    if report.complete:
                        break
                complete = complete and report.complete
                await hours.commit()
        except StreamError as error:
            if not hint:
                raise
            raise StreamError(
                f"another process follows the hours with these positions ({path}): stop that one, or give this one "
                "another folder or another --offsets"
            ) from error
    return complete


def _reader_name(filter_sets: Sequence[Filters], template: str | None, folder: Path | None) -> str:
    """Return the name of the positions: another one for what another command would not fetch, or put elsewhere.

    Args:
        filter_sets: The filters of each listing.
        template: Of file names; None for the default.
        folder: The folder, if the positions are not kept in it.
    """
    sets = sorted(sorted((key, value) for key, value in (filters or {}).items()) for filters in filter_sets)
    if not any(sets) and template is None and folder is None:
        return _READER
    parts = msgspec.json.encode([sets, template, None if folder is None else str(folder.resolve())])
    return f"{_READER}-{hashlib.sha256(parts).hexdigest()[:16]}"


async def _beginning(store: SQLiteOffsets, path: Path, name: str, since: str | None) -> str:
    """Return where following begins, in words."""
    last = await last_hour(store, position_name(name, "batches"))
    if last is not None:
        unused = "" if since is None else "; --since is not used"
        return f"goes on after {last:%Y-%m-%dT%H} ({path}){unused}"
    text = f"begins with {since or 'latest'}: {path} has no position for these filters and names yet"
    other = await last_hour(store, position_name(_READER, "batches"))
    if other is not None:
        text += f"; one without filters, or of an earlier version, is after {other:%Y-%m-%dT%H} and is not used"
        text += "" if since is not None else ": --since names another hour to begin with"
    return text


def _summary(report: SyncReport) -> str:
    counts = [
        (len(report.new), "new"),
        (len(report.changed), "changed"),
        (len(report.unchanged), "unchanged"),
        (len(report.removed), "removed"),
        (len(report.failed), "failed"),
        (len(report.pending), "not tried"),
    ]
    words = ", ".join(f"{count:,} {word}" for count, word in counts if count) or "nothing is listed"
    requests = count_text(report.requests, "request")
    metered = "" if report.cost.pool is None else f" ({report.cost.requests:,} metered)"
    return f"{words}; {size_text(report.bytes)} in {report.seconds:.1f} s, {requests}{metered}"


def _plain(report: SyncReport) -> dict[str, Any]:
    files = {
        kind: [_plain_file(file) for file in getattr(report, kind)]
        for kind in ("new", "changed", "failed", "pending", "removed")
    }
    return {
        **files,
        "unchanged": len(report.unchanged),
        "bytes": report.bytes,
        "requests": report.requests,
        "seconds": round(report.seconds, 3),
    }


def _plain_file(file: SyncFile) -> dict[str, Any]:
    plain: dict[str, Any] = {"identifier": file.identifier, "path": str(file.path), "size": file.size}
    return plain if file.error is None else {**plain, "error": str(file.error)}


async def _show_plan(client: Client, report: SyncReport, *, as_json: bool) -> None:
    """Show the plan of a sync as a table, with bytes and cost."""
    rows: list[dict[str, Any]] = [
        {"identifier": file.identifier, "action": action, "bytes": file.size, "path": str(file.path)}
        for action, files in (
            ("fetch", report.new),
            ("replace", report.changed),
            ("remove", report.removed),
            ("fail", report.failed),
        )
        for file in files
    ]
    if not as_json and base.stdout.is_terminal:
        rows = [{**row, "size": size_text(int(row["bytes"]))} for row in rows]
    base.show(rows, as_json=as_json, columns=("identifier", "action", "size"), title="dry run")
    text = (
        f"{len(report.new):,} to fetch, {len(report.changed):,} to replace, {len(report.removed):,} to remove, "
        f"{len(report.unchanged):,} unchanged; {size_text(report.bytes)}"
    )
    if report.cost.pool is not None:
        text += f"; {await base.metered_text(client, report.cost.pool, report.cost.requests)}"
    base.echo(text, err=True)
