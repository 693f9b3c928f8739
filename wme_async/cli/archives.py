"""Commands for lists and archives: the same verbs for every resource."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import click

from wme_async._client.archive_names import ArchiveName, uses_version
from wme_async._client.client import Client
from wme_async._client.collection import Collection
from wme_async._client.resources import RESOURCES
from wme_async._download import Download
from wme_async._tasks import in_thread
from wme_async.cli import base

__all__ = ["COMMANDS", "describe_download"]

# Returns a collection of a client; the second argument is the hour or the snapshot, for commands that have one.
Getter = Callable[[Client, Any], Any]

_COLUMNS: dict[str, Sequence[str]] = {
    "codes": ("identifier", "name", "description"),
    "languages": ("identifier", "name", "alternate_name", "direction"),
    "projects": ("identifier", "name", "code", "url", "in_language.identifier"),
    "namespaces": ("identifier", "name", "description"),
}
_ARCHIVE_COLUMNS = ("identifier", "in_language.identifier", "date_modified", "size.value", "version")


class _Commands:
    """The commands of one resource.

    Args:
        name: Name on the command line.
        row: Name of its row in the table of resources.
        getter: Returns its collection; by default the attribute of the client with the name of the row.
        place: Name of a first argument for an hour or a snapshot.
    """

    def __init__(self, name: str, row: str, getter: Getter | None = None, *, place: str | None = None) -> None:
        self._resource = RESOURCES[row]
        self._getter = getter or (lambda client, _: getattr(client, row))
        self._place = place
        verbs = self._resource.verbs
        self.group = click.Group(name, help=f"{self._resource.product.capitalize() or name}: {', '.join(verbs)}.")
        self._add("ls", self._list, base.where_option, base.fields_option, base.json_option)
        self._add("get", self._get, _identifier, base.fields_option, base.json_option)
        if "download" in verbs:
            self._add("head", self._head, _identifier, base.json_option)
            self._add("download", self._download, _identifiers, *_DOWNLOAD_OPTIONS)
            self._add("read", self._read, _identifier, *_READ_OPTIONS)

    def _add(self, verb: str, function: Callable[..., Any], *decorators: Callable[..., Any]) -> None:
        @click.pass_context
        def command(context: click.Context, /, *, place: str | None = None, **options: Any) -> None:
            if "filters" in options:
                options["filters"] = base.parse_filters(options["filters"], self._resource)

            async def main() -> None:
                async with base.connect(context) as client:
                    await function(self._getter(client, place and base.place_text(place)), **options)

            base.run(main())

        decorated: Any = command
        for decorate in reversed(decorators):
            decorated = decorate(decorated)
        if self._place is not None:
            decorated = click.argument("place", metavar=self._place)(decorated)
        self.group.command(verb, cls=base.PlaceCommand, help=function.__doc__)(decorated)

    async def _list(self, collection: Any, /, *, as_json: bool, **query: Any) -> None:
        """List all records: a table on a terminal, JSON lines into a pipe."""
        records = await collection.list(**query)
        columns = query["fields"] or _COLUMNS.get(self._resource.name, _ARCHIVE_COLUMNS)
        base.show(records, as_json=as_json, columns=columns, title=self.group.name or "")

    async def _get(self, collection: Any, /, *, identifier: str, fields: list[str] | None, as_json: bool) -> None:
        """Show one record."""
        record: Any = await Collection.get(collection, identifier, fields=fields)
        base.show_one(record, as_json=as_json)

    async def _head(self, files: Any, /, *, identifier: str, as_json: bool) -> None:
        """Show size, ETag and dates of an archive; free of charge."""
        base.show_one(await files.head(identifier), as_json=as_json)

    async def _download(
        self, files: Any, /, *, identifiers: Sequence[str], to: str, quiet: bool, max_rate: float | None, **options: Any
    ) -> None:
        """Download archives; after an interruption the same command resumes the download."""
        options["max_rate"] = None if max_rate is None else max_rate * 1e6
        if to == "-":
            await _to_stdout(files, identifiers, **options)
            return
        base.when_stopped(base.CONTINUES)
        self._check_names(options["name"], identifiers)
        folder = to if to.endswith("/") or len(identifiers) == 1 else f"{to}/"
        for identifier in identifiers:
            with base.download_bar(identifier, quiet=quiet) as progress:
                download = await files.download(identifier, folder, progress=progress, **options)
            base.echo(describe_download(download))

    def _check_names(self, template: str | None, identifiers: Sequence[str]) -> None:
        """Raise if two archives would get one name."""
        if template is None or uses_version(template):
            return
        place = "0000-00-00/00" if self._place == "HOUR" else "snapshot"
        paths: dict[PurePosixPath, str] = {}
        for identifier in dict.fromkeys(identifiers):
            path = ArchiveName(kind=self._resource.name, identifier=identifier, place=place).path(template)
            if path in paths:
                raise ValueError(
                    f"--name {template} gives {identifier} and {paths[path]} the same name; add {{identifier}}"
                )
            paths[path] = identifier

    async def _read(
        self,
        files: Any,
        /,
        *,
        identifier: str,
        limit: int | None,
        count: bool,
        to: str | None,
        **options: Any,
    ) -> None:
        """Write an archive's records as JSON lines, or to Parquet, while it downloads, without a temporary file."""
        if to is not None:
            await self._to_parquet(files, identifier, to, **options)
            return
        began = time.monotonic()
        number = 0
        async with files.read(identifier, **options) as records:
            async for record in records:
                if limit is not None and number >= limit:
                    break
                number += 1
                if not count:
                    base.line(record)
            bad_records = records.statistics().bad_records
        if count:
            base.echo(number)
        note = f", {bad_records} bad ones skipped" if bad_records else ""
        base.stderr.print(f"{number} records in {time.monotonic() - began:.1f} s{note}", style="dim", highlight=False)

    async def _to_parquet(self, files: Any, identifier: str, to: str, **options: Any) -> None:
        from wme_async.integrations.arrow import unwritten, write_parquet  # noqa: PLC0415  # an extra

        record = self._resource.record
        assert record is not None
        # A folder gets a file for each member of the archive, so that a second run can skip complete members.
        select = None
        if to.endswith("/") and "://" not in to:
            select = unwritten(to)
            base.when_stopped("the same command skips the members that are complete")
        async with files.read(identifier, select=select, **options) as records:
            parquet = await write_parquet(records, to, type=record)
        base.echo(f"{to}  {parquet.rows} records, {parquet.bytes / 1e6:.3f} MB in {len(parquet.files)} files")


async def _to_stdout(
    files: Any,
    identifiers: Sequence[str],
    *,
    name: str | None,
    overwrite: bool,
    if_changed: bool,
    verify: bool,
    **options: Any,
) -> None:
    """Write an archive to standard output as it arrives. If its MD5 differs, the end is an error."""
    if len(identifiers) > 1 or name is not None or overwrite or if_changed or not verify:
        raise click.UsageError(
            "--to - writes one archive to standard output; leave out --name, --force, --if-changed and --no-verify"
        )
    if sys.stdout.isatty():
        raise click.UsageError("--to - writes an archive to standard output, which is a terminal; pipe it")
    output = sys.stdout.buffer

    def write(data: bytes) -> None:
        output.write(data)
        output.flush()

    async with files.content(identifiers[0], **options) as content:
        async for data in content:
            await in_thread(write, data)


def describe_download(download: Download) -> str:
    """Return one line about a finished download."""
    if download.unchanged:
        return f"{download.path}  unchanged"
    check = {True: "MD5 matches", None: "newer than its metadata, so not compared", False: "not compared"}
    resumed = f", {download.resumed / 1e6:.1f} MB of them were there already" if download.resumed else ""
    size = f"{download.size / 1e6:.3f} MB{resumed}"
    return f"{download.path}  {size} in {download.seconds:.2f} s, {check[download.verified]}"


_identifier = click.argument("identifier")
_identifiers = click.argument("identifiers", nargs=-1, required=True, metavar="IDENTIFIER…")
_DOWNLOAD_OPTIONS = (
    click.option(
        "--to", default=".", show_default=True, help="Folder, or path of the file; - writes to standard output."
    ),
    click.option(
        "--name",
        metavar="TEMPLATE",
        help="Path below the folder, of {kind} {date} {hour} {snapshot} {chunk} {identifier} {version} {ext}; "
        "'{identifier}' for a flat folder.",
    ),
    click.option("--force", "overwrite", is_flag=True, help="Replace an existing file, of whatever version."),
    click.option("--verify/--no-verify", default=True, show_default=True, help="Check the MD5 of the metadata."),
    click.option("--if-changed", is_flag=True, help="Replace a file of another version; skip one of the same."),
    click.option("--connections", type=click.IntRange(1, 64), help="Concurrent byte ranges at most."),
    click.option("--max-rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="Bandwidth limit."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)
_READ_OPTIONS = (
    click.option("--limit", type=click.IntRange(1), help="Stop after so many records."),
    click.option("--count", is_flag=True, help="Print only the number of records."),
    click.option("--tee", metavar="PATH", help="Keep the archive too."),
    click.option(
        "--to", metavar="PATH|URL", help="Write Parquet there instead: a file, a folder/, s3://, gs://, az://."
    ),
    base.skip_bad_option,
)


COMMANDS: list[click.Group] = [
    commands.group
    for commands in (
        *(_Commands(name, name) for name in ("projects", "languages", "namespaces", "codes")),
        _Commands("batches", "batches", lambda client, hour: client.batches(hour), place="HOUR"),
        _Commands("snapshots", "snapshots"),
        _Commands("chunks", "snapshots.chunks", lambda client, name: client.snapshots.chunks(name), place="SNAPSHOT"),
        _Commands("structured-snapshots", "structured_snapshots"),
    )
]
"""One group of commands for each resource."""
