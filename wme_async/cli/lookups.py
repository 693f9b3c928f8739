"""Commands for look-ups, media files, quotas, and what a query would do."""

import io
import sys
from collections.abc import Sequence
from typing import Any, cast

import click
import msgspec
from rich.text import Text

from wme_async._client.lookup_plan import plan_lookup
from wme_async._client.resources import RESOURCES
from wme_async._query.query import Query, filter_types
from wme_async._text import decode_text
from wme_async.cli import base
from wme_async.cli.archives import told
from wme_async.cli.terminal import text_line
from wme_async.errors import NotFound

__all__ = ["explain", "files", "lookup", "quota", "structured", "wikidata"]

_limit = click.option("--limit", type=click.IntRange(1, 10), help="Records of each title; the server's default is 3.")
_one_field = click.option("--field", metavar="A.B", help="Print only this field's value, one a line.")
_COLUMNS = ("name", "is_part_of.identifier", "identifier", "date_modified", "url")


def _look_up(name: str, attribute: str, description: str) -> click.Command:
    """Make the command of one kind of look-up."""
    resource = RESOURCES[attribute]

    @click.argument("names", nargs=-1, metavar="TITLE…")
    @base.where_option
    @base.fields_option
    @_limit
    @_one_field
    @click.option("--concurrency", type=click.IntRange(1, 100), default=10, show_default=True)
    @base.json_option
    @click.pass_context
    def command(
        context: click.Context,
        /,
        *,
        names: Sequence[str],
        filters: Sequence[str],
        fields: list[str] | None,
        limit: int | None,
        field: str | None,
        concurrency: int,
        as_json: bool,
    ) -> None:
        assert resource.backend is not None
        wanted = base.conditions(filters, resource)
        asked = [field] if field is not None else fields
        shown = None
        if field is not None:
            # As records spell it, without a wildcard; empty for whole records.
            (shown,) = Query.build(resource.backend, resource.model, fields=asked).fields or ("",)
        # Before the event loop runs: reading may wait for somebody who types, and Ctrl-C has to end it.
        titles = names or _titles()

        async def find() -> None:
            missing, failures, found = 0, [], []
            async with base.connect(context) as client:
                lookups = getattr(client, attribute)
                async with lookups.lookup_many(
                    titles, filters=wanted or None, fields=asked, limit=limit, concurrency=concurrency
                ) as results:
                    async for looked in results:
                        if looked.error is not None:
                            failures.append(looked)
                        elif not looked.records:
                            missing += 1
                            base.stderr.print(f"{looked.name}: no such page", style="yellow", highlight=False)
                        if any(getattr(record, "is_raw_article", False) for record in looked.records):
                            words = "an unstructured article came in place of structured contents; ask again"
                            base.stderr.print(f"{looked.name}: {words}", style="yellow", highlight=False)
                        found += _out(looked.records, shown, as_json=as_json)
            if found:
                base.show(found, as_json=False, columns=fields or _COLUMNS, title=attribute)
            for looked in failures:
                base.stderr.print(Text.assemble((looked.name, "red"), f": {looked.error}"), highlight=False)
            if failures:
                assert failures[0].error is not None
                raise failures[0].error
            if missing:
                raise NotFound(f"{missing} of {len(titles)} titles have no page", status=404)

        base.run(find())

    return click.command(name, help=description)(command)


def _titles() -> list[str]:
    """Read titles from standard input, one a line."""
    data = bytearray()
    # Not in one call: Python looks for Ctrl-C between the steps of this loop.
    while chunk := cast("io.BufferedReader", sys.stdin.buffer).read1(1 << 16):
        data += chunk
    text = decode_text(bytes(data), "standard input")
    return [title for line in io.StringIO(text, newline=None) if (title := line.strip())]


def _out(records: Sequence[Any], field: str | None, *, as_json: bool) -> list[Any]:
    """Print records as they come; return those that a table is to be made of at the end."""
    if field is not None:
        for record in records:
            value = _at(record, field.split(".") if field else [])
            text_line(value if isinstance(value, str) else msgspec.json.encode(value).decode())
        return []
    if as_json or not base.stdout.is_terminal:
        for record in records:
            base.line(record)
        return []
    return list(records)


def _at(value: Any, names: Sequence[str]) -> Any:
    """Return what stands at a dotted name: what was left out as the zero that it means, a list for each list passed."""
    if not names or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_at(each, names) for each in value]
    if isinstance(value, dict):
        return _at(value.get(names[0]), names[1:])
    attribute = next(each.name for each in msgspec.structs.fields(value) if each.encode_name == names[0])
    return _at(getattr(value, attribute), names[1:])


lookup: click.Command = _look_up(
    "lookup",
    "articles",
    "Look articles up by exact title; without titles they are read from standard input, one a line.",
)
structured: click.Command = _look_up("structured", "structured_contents", "The same for structured contents.")


@click.group("wikidata")
def wikidata() -> None:
    """Wikidata entities by id (beta)."""


def _entity(kind: str, letter: str) -> None:
    @wikidata.command(kind)
    @click.argument("identifiers", nargs=-1, required=True, metavar=f"{letter}…")
    @base.fields_option
    @base.json_option
    @click.pass_context
    def command(context: click.Context, /, identifiers: Sequence[str], fields: list[str] | None, as_json: bool) -> None:
        """Look up by id."""

        async def find() -> None:
            async with base.connect(context) as client:
                for identifier in identifiers:
                    found = await getattr(client.wikidata, kind).get(identifier, fields=fields)
                    base.show_one(found, as_json=as_json)

        base.run(find())


for _kind, _letter in (("items", "Q42"), ("properties", "P31"), ("labels", "Q42")):
    _entity(_kind, _letter)


@click.group("files")
def files() -> None:
    """Media files of Wikimedia Commons (not in the published reference: may vanish)."""


@files.command("get")
@click.argument("name")
@base.json_option
@click.pass_context
def _get(context: click.Context, /, name: str, as_json: bool) -> None:
    """Show what is known of a file."""

    async def find() -> Any:
        async with base.connect(context) as client:
            return await client.files.get(name)

    base.show_one(base.run(find()), as_json=as_json)


@files.command("download")
@click.argument("name")
@click.option("--to", default=".", show_default=True, help="Folder, or path of the file.")
@click.option("--force", is_flag=True, help="Replace a file that is there, of whatever upload.")
@click.option("--if-changed", is_flag=True, help="Replace a file of another upload; skip one of the same.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def _download(context: click.Context, /, name: str, to: str, force: bool, if_changed: bool, quiet: bool) -> None:
    """Download a file."""

    async def fetch() -> Any:
        async with base.connect(context) as client:
            with base.bar(name, shown=not quiet) as progress:
                return await client.files.download(name, to, progress=progress, overwrite=force, if_changed=if_changed)

    base.echo(told(base.run(fetch())))


@click.command("quota")
@base.json_option
@click.pass_context
def quota(context: click.Context, /, as_json: bool) -> None:
    """Show what was used of this month's allowances, and what is left."""

    async def ask() -> Any:
        async with base.connect(context) as client:
            return await client.auth.quota()

    found = base.run(ask())
    if as_json or not base.stdout.is_terminal:
        base.line(found)
        return
    rows = [
        {
            "pool": each.pool,
            "used": each.used,
            "limit": "none" if each.limit is None else each.limit,
            "left": "any" if each.left is None else each.left,
        }
        for each in (found.ondemand, found.snapshot, found.chunk)
    ]
    base.show(rows, as_json=False, columns=("pool", "used", "limit", "left"), title=found.month)


@click.command("explain")
@click.argument("resource", metavar="RESOURCE")
@base.where_option
@base.fields_option
@_limit
def explain(resource: str, filters: Sequence[str], fields: list[str] | None, limit: int | None) -> None:
    """Say what a query would send, and what would be applied on this side. Nothing is sent.

    RESOURCE is a name such as batches, projects, articles, structured_contents or realtime.articles.
    """
    row = RESOURCES.get(resource)
    if row is None or row.backend is None:
        known = ", ".join(sorted(name for name, each in RESOURCES.items() if each.backend is not None))
        raise click.BadParameter(f"{resource!r} takes no query; those that do are {known}")
    known_fields = filter_types(row.model, row.backend)
    query = Query.build(
        row.backend, row.model, fields=fields, filters=base.conditions(filters, row) or None, limit=limit
    )
    base.echo(query.explain())
    if "lookup" in row.verbs:
        for note in plan_lookup(query, "project").notes:
            base.echo(note)
    if not filters:
        base.echo(f"it can be filtered by: {', '.join(sorted(known_fields))}")
