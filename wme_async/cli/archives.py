"""Commands for lists and archives: the same verbs for every resource."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from wme_async._client.client import Client
from wme_async._client.collection import Collection
from wme_async._client.resources import RESOURCES
from wme_async._client.sync_plan import size_of
from wme_async._query.query import Query
from wme_async._text import size_text
from wme_async.cli import base, downloads, reading
from wme_async.cli.tables import value_at
from wme_async.models.metadata import Size

# Returns a collection of a client; the second argument is the hour or the snapshot, for commands that have one.
Getter = Callable[[Client, Any], Any]

_COLUMNS: dict[str, Sequence[str]] = {
    "codes": ("identifier", "name", "description"),
    "languages": ("identifier", "name", "alternate_name", "direction"),
    "projects": ("identifier", "name", "in_language.identifier", "url"),
    "namespaces": ("identifier", "name", "description"),
}
_ARCHIVE_COLUMNS = ("identifier", "size", "date_modified", "in_language.identifier")


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
        verbs = ["ls" if verb == "list" else verb for verb in self._resource.verbs]
        title = self._resource.product[:1].upper() + self._resource.product[1:]
        if self._resource.product == "metadata":
            title = f"{name.capitalize()} of the service"
        self.group = base.Group(name, help=f"{title}: {', '.join(verbs)}.")
        self._add("ls", self._list, base.where_option, *_LIST_OPTIONS, *base.values_options, base.json_option)
        self._add("get", self._get, _identifier, *base.values_options, base.json_option)
        if "download" in verbs:
            self._add("head", self._head, _identifier, base.json_option)
            self._add("download", self._download, _identifiers, *downloads.OPTIONS)
            self._add("read", self._read, _identifier, _tee_option, *reading.OPTIONS)

    def _add(self, verb: str, function: Callable[..., Any], *decorators: Callable[..., Any]) -> None:
        @click.pass_context
        def command(context: click.Context, /, *, place: str | None = None, **options: Any) -> None:
            base.merge_field(options)
            if "filters" in options:
                options["filters"] = self._filters(verb, options["filters"])
            base.run_connected(context, lambda client: function(self._getter(client, place), **options))

        if self._place is not None:
            decorators = (click.argument("place", metavar=self._place, shell_complete=_complete_place), *decorators)
        add = self.group.command(verb, cls=base.PlaceCommand, help=function.__doc__)
        add(base.all_of(*decorators)(command))

    def _filters(self, verb: str, texts: Sequence[str]) -> dict[str, Any] | None:
        if verb != "read":
            return base.parse_filters(texts, self._resource)
        assert self._resource.record is not None
        return base.parse_record_filters(texts, self._resource.record)

    def _query(self, fields: list[str] | None) -> Query:
        assert self._resource.backend is not None
        return Query.build(self._resource.backend, self._resource.model, fields=fields)

    async def _list(
        self,
        collection: Any,
        /,
        *,
        fields: list[str] | None,
        filters: dict[str, Any] | None,
        sort: str | None,
        limit: int | None,
        raw: bool,
        as_json: bool,
    ) -> None:
        """List all records: a table on a terminal, JSON lines into a pipe."""
        key = None if sort is None else (self._query([sort.removeprefix("-")]).fields or ("",))[0]
        requested = fields if fields is None or key is None else [*fields, key]
        records = await collection.list(filters=filters, fields=requested)
        if key is not None and sort is not None:
            records.sort(key=lambda record: _sort_key(record, key), reverse=sort.startswith("-"))
        total = len(records)
        records = records[:limit]
        query = self._query(fields)
        if requested != fields:
            records = list(map(query.for_unfiltered().project, records))
        if raw:
            for record in records:
                base.values_line(record, query.fields or ("",))
            return
        note = f"{len(records):,} of {total:,}" if len(records) < total else f"{total:,} in all"
        if fields is None and "download" in self._resource.verbs:
            note += f", {size_text(sum(size_of(record) or 0 for record in records))}"
        columns = fields or _COLUMNS.get(self._resource.name, _ARCHIVE_COLUMNS)
        title = self.group.name or ""
        base.show(records, as_json=as_json, columns=columns, title=title, chosen=fields is not None, note=note)

    async def _get(
        self, collection: Any, /, *, identifier: str, fields: list[str] | None, raw: bool, as_json: bool
    ) -> None:
        """Show one record."""
        record: Any = await Collection.get(collection, identifier, fields=fields)
        if raw:
            base.values_line(record, self._query(fields).fields or ("",))
        else:
            base.show_one(record, as_json=as_json)

    async def _head(self, files: Any, /, *, identifier: str, as_json: bool) -> None:
        """Show size, ETag and dates of an archive; free of charge."""
        base.show_one(await files.head(identifier), as_json=as_json)

    async def _download(self, files: Any, /, **options: Any) -> None:
        """Download archives: those named, those that --where selects, or --all.

        After an interruption the same command resumes the download. --where is sent to the service where it applies it
        rightly, and else applied here: `wme-async explain` tells.
        """
        await downloads.download_archives(files, self._resource, **options)

    async def _read(self, files: Any, /, *, identifier: str, tee: str | None, **options: Any) -> None:
        """Write an archive's records as JSON lines, or to Parquet, while it downloads, without a temporary file.

        --where and --fields are applied here: an archive comes whole.
        """
        record = self._resource.record
        assert record is not None
        await reading.read_records(partial(files.read, identifier, tee=tee), record, **options)


def _complete_place(_context: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    return [hour for hour in ("latest", "-1h") if parameter.metavar == "HOUR" and hour.startswith(text)]


def _sort_key(record: Any, name: str) -> tuple[bool, Any]:
    """Return a value that orders records by a field; those without it come first."""
    value = value_at(record, name.split("."))
    if isinstance(value, Size):
        value = value.bytes
    if isinstance(value, dict | list | tuple):
        value = str(value)
    return value is not None, value


_identifier = click.argument("identifier")
_identifiers = click.argument("identifiers", nargs=-1, metavar="[IDENTIFIER]…")
_LIST_OPTIONS = (
    click.option("--sort", metavar="[-]FIELD", help="Order by a field; -size for the largest first."),
    click.option("--limit", type=click.IntRange(1), help="Show so many records at most."),
)
_tee_option = click.option("--tee", metavar="PATH", help="Keep the archive too.")


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

WIKIDATA: list[click.Group] = [
    commands.group
    for commands in (
        _Commands("snapshots", "wikidata.snapshots", lambda client, _: client.wikidata.snapshots),
        _Commands(
            "chunks",
            "wikidata.snapshots.chunks",
            lambda client, name: client.wikidata.snapshots.chunks(name),
            place="SNAPSHOT",
        ),
        _Commands("batches", "wikidata.batches", lambda client, hour: client.wikidata.batches(hour), place="HOUR"),
    )
]
"""The archives of Wikidata, below the command `wikidata`."""
