"""Commands for what can be listed and for archives: the same verbs, made once for every resource."""

import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Any

import click

from wme_async._client import Client, Collection, Files
from wme_async._client.archive_names import ArchiveName, uses_version
from wme_async._client.hours import is_relative
from wme_async._client.resources import RESOURCES
from wme_async._download import Download
from wme_async._tasks import in_thread
from wme_async.cli import base

__all__ = ["COMMANDS"]

Find = Callable[[Client, str | None], Awaitable[Any]]

_COLUMNS: dict[str, Sequence[str]] = {
    "codes": ("identifier", "name", "description"),
    "languages": ("identifier", "name", "alternate_name", "direction"),
    "projects": ("identifier", "name", "code", "url", "in_language.identifier"),
    "namespaces": ("identifier", "name", "description"),
}
_ARCHIVE_COLUMNS = ("identifier", "in_language.identifier", "date_modified", "size.value", "version")


async def _batches(client: Client, where: str | None) -> Files[Any, Any]:
    assert where is not None
    return client.batches(where)


async def _chunks(client: Client, where: str | None) -> Files[Any, Any]:
    assert where is not None
    return client.snapshots.chunks(where)


def _attribute(name: str) -> Find:
    async def find(client: Client, where: str | None) -> Any:
        assert where is None
        return getattr(client, name)

    return find


# Click reads a dash at the beginning as that of an option, and no dash is part of any name here with this before it.
_AGO = "ago:"


class _PlaceCommand(click.Command):
    """A command whose arguments may include `-3h`, which is an hour and not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments after those that look like options were marked.

        Args:
            ctx: Of the command.
            args: As they were typed.
        """
        return super().parse_args(
            ctx, [f"{_AGO}{text}" if text[:1] == "-" and is_relative(text) else text for text in args]
        )


def _place_of(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    return value.removeprefix(_AGO)


class _Commands:
    """The commands of one resource.

    Args:
        name: On the command line.
        row: Name of its row in the table.
        find: Gets the collection from a client.
        place: A first argument that says where, such as an hour.
    """

    def __init__(self, name: str, row: str, find: Find, *, place: str | None = None) -> None:
        self._row = row
        self._find = find
        self._place = place
        resource = RESOURCES[row]
        self._columns = _COLUMNS.get(row, _ARCHIVE_COLUMNS)
        self.group = click.Group(name, help=f"{resource.product.capitalize() or name}: {', '.join(resource.verbs)}.")
        self._add("ls", self._list, base.where_option, base.fields_option, base.json_option)
        self._add("get", self._get, _identifier, base.fields_option, base.json_option)
        if "download" in resource.verbs:
            self._add("head", self._head, _identifier, base.json_option)
            self._add("download", self._download, _identifiers, *_DOWNLOAD_OPTIONS)
            self._add("read", self._read, _identifier, *_READ_OPTIONS)

    def _add(self, verb: str, function: Callable[..., Any], *decorators: Callable[..., Any]) -> None:
        @click.pass_context
        def command(context: click.Context, /, **options: Any) -> None:
            base.run(function(context, **options))

        made: Any = command
        for decorate in reversed(decorators):
            made = decorate(made)
        if self._place is not None:
            made = click.argument("place", metavar=self._place, callback=_place_of)(made)
        self.group.command(verb, cls=_PlaceCommand, help=function.__doc__)(made)

    @asynccontextmanager
    async def _open(self, context: click.Context, place: str | None) -> AsyncIterator[Any]:
        async with base.connect(context) as client:
            yield await self._find(client, place)

    async def _list(
        self,
        context: click.Context,
        *,
        filters: Sequence[str],
        fields: list[str] | None,
        as_json: bool,
        place: str | None = None,
    ) -> None:
        """List what there is: a table on a terminal, JSON lines into a pipe."""
        resource = RESOURCES[self._row]
        assert resource.backend is not None
        wanted = base.conditions(filters, resource)
        async with self._open(context, place) as collection:
            records = await collection.list(fields=fields, filters=wanted or None)
        base.show(records, as_json=as_json, columns=fields or self._columns, title=self.group.name or "")

    async def _get(
        self,
        context: click.Context,
        *,
        identifier: str,
        fields: list[str] | None,
        as_json: bool,
        place: str | None = None,
    ) -> None:
        """Show one record."""
        async with self._open(context, place) as collection:
            found: Any = await Collection.get(collection, identifier, fields=fields)
        base.show_one(found, as_json=as_json)

    async def _head(self, context: click.Context, *, identifier: str, as_json: bool, place: str | None = None) -> None:
        """Show size, ETag and dates of an archive; free of charge."""
        async with self._open(context, place) as files:
            info = await files.head(identifier)
        base.show_one(info, as_json=as_json)

    async def _download(
        self,
        context: click.Context,
        *,
        identifiers: Sequence[str],
        to: str,
        name: str | None,
        force: bool,
        verify: bool,
        if_changed: bool,
        connections: int | None,
        max_rate: float | None,
        quiet: bool,
        place: str | None = None,
    ) -> None:
        """Download archives; interrupted at any point, the same command goes on from there."""
        options: dict[str, Any] = {} if connections is None else {"connections": connections}
        if max_rate is not None:
            options["max_rate"] = max_rate * 1e6
        if to == "-":
            if len(identifiers) > 1 or name is not None or force or if_changed or not verify:
                raise click.UsageError(
                    "--to - writes one archive to standard output; leave out --name, --force, --if-changed and "
                    "--no-verify"
                )
            if sys.stdout.isatty():
                raise click.UsageError("--to - writes an archive to standard output, which is a terminal; pipe it")
            async with self._open(context, place) as files, files.content(identifiers[0], **options) as content:
                await _to_stdout(content)
            return
        self._check_names(name, identifiers)
        folder = to if to.endswith("/") or len(identifiers) == 1 else f"{to}/"
        async with self._open(context, place) as files:
            for identifier in identifiers:
                with base.bar(identifier, shown=not quiet) as progress:
                    done = await files.download(
                        identifier,
                        folder,
                        name=name,
                        overwrite=force,
                        progress=progress,
                        verify=verify,
                        if_changed=if_changed,
                        **options,
                    )
                base.echo(told(done))

    def _check_names(self, template: str | None, identifiers: Sequence[str]) -> None:
        """Raise if two archives would get one name."""
        if template is None or uses_version(template):
            return
        place = "0000-00-00/00" if self._place == "HOUR" else "snapshot"
        paths: dict[PurePosixPath, str] = {}
        for identifier in dict.fromkeys(identifiers):
            path = ArchiveName(kind=self._row, identifier=identifier, place=place).path(template)
            if path in paths:
                raise ValueError(
                    f"--name {template} gives {identifier} and {paths[path]} the same name; add {{identifier}}"
                )
            paths[path] = identifier

    async def _read(
        self,
        context: click.Context,
        *,
        identifier: str,
        limit: int | None,
        count: bool,
        tee: str | None,
        skip_bad: bool,
        to: str | None,
        place: str | None = None,
    ) -> None:
        """Write an archive's records as JSON lines, or to Parquet, while it downloads, without a temporary file."""
        if to is not None:
            await self._to_parquet(context, identifier, to, place, tee=tee, skip_bad=skip_bad)
            return
        began = time.monotonic()
        seen = 0
        async with (
            self._open(context, place) as files,
            files.read(identifier, tee=tee, on_bad_record="skip" if skip_bad else "raise") as records,
        ):
            async for record in records:
                if limit is not None and seen >= limit:
                    break
                seen += 1
                if not count:
                    base.line(record)
            bad = records.statistics().bad_records
        if count:
            base.echo(seen)
        note = f", {bad} bad ones skipped" if bad else ""
        base.stderr.print(f"{seen} records in {time.monotonic() - began:.1f} s{note}", style="dim", highlight=False)

    async def _to_parquet(
        self,
        context: click.Context,
        identifier: str,
        to: str,
        place: str | None,
        *,
        tee: str | None,
        skip_bad: bool,
    ) -> None:
        from wme_async.integrations.arrow import unwritten, write_parquet  # noqa: PLC0415  # an extra

        record = RESOURCES[self._row].record
        assert record is not None
        # A folder gets a file for each member of the archive, so that a second run can leave out what is there.
        folder = to.endswith("/") and "://" not in to
        async with (
            self._open(context, place) as files,
            files.read(
                identifier,
                tee=tee,
                on_bad_record="skip" if skip_bad else "raise",
                select=unwritten(to) if folder else None,
            ) as records,
        ):
            written = await write_parquet(records, to, type=record)
        base.echo(f"{to}  {written.rows} records, {written.bytes / 1e6:.3f} MB in {len(written.files)} files")


async def _to_stdout(content: AsyncIterable[bytes]) -> None:
    """Write bytes to standard output as they arrive. An error at the end tells that they are not those promised."""
    output = sys.stdout.buffer

    def write(data: bytes) -> None:
        output.write(data)
        output.flush()

    async for data in content:
        await in_thread(write, data)


def told(done: Download) -> str:
    """Say in one line what became of a download."""
    if done.unchanged:
        return f"{done.path}  unchanged"
    checked = {True: "MD5 matches", None: "newer than its metadata, so not compared", False: "not compared"}
    resumed = f", {done.resumed / 1e6:.1f} MB of them were there already" if done.resumed else ""
    return f"{done.path}  {done.size / 1e6:.3f} MB{resumed} in {done.seconds:.2f} s, {checked[done.verified]}"


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
    click.option("--force", is_flag=True, help="Replace a file that is there, of whatever version."),
    click.option("--verify/--no-verify", default=True, show_default=True, help="Check the MD5 of the metadata."),
    click.option("--if-changed", is_flag=True, help="Replace a file of another version; skip one of the same."),
    click.option("--connections", type=click.IntRange(1, 64), help="Concurrent byte ranges at most."),
    click.option("--max-rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="Bandwidth limit."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)
_READ_OPTIONS = (
    click.option("--limit", type=click.IntRange(1), help="Stop after so many records."),
    click.option("--count", is_flag=True, help="Print only how many there are."),
    click.option("--tee", metavar="PATH", help="Keep the archive too."),
    click.option(
        "--to", metavar="PATH|URL", help="Write Parquet there instead: a file, a folder/, s3://, gs://, az://."
    ),
    click.option("--skip-bad", is_flag=True, help="Skip and count records that do not decode, rather than fail."),
)


def _made() -> list[click.Group]:
    plain = [_Commands(name, name, _attribute(name)).group for name in ("projects", "languages", "namespaces", "codes")]
    return [
        *plain,
        _Commands("batches", "batches", _batches, place="HOUR").group,
        _Commands("snapshots", "snapshots", _attribute("snapshots")).group,
        _Commands("chunks", "snapshots.chunks", _chunks, place="SNAPSHOT").group,
        _Commands("structured-snapshots", "structured_snapshots", _attribute("structured_snapshots")).group,
    ]


COMMANDS = _made()
"""One group of commands for each resource."""
