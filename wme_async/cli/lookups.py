"""Commands for look-ups, media files, quotas, and the explanation of queries."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from wme_async._client.concurrent_lookups import Looked
from wme_async._client.lookup_plan import plan_lookup
from wme_async._client.resources import RESOURCES, Resource
from wme_async._query.backends import Backend
from wme_async._query.query import Query, filter_types
from wme_async._text import did_you_mean
from wme_async.cli import base
from wme_async.cli.downloads import describe_download, lines_of
from wme_async.errors import NotFound
from wme_async.models import Article

_limit = click.option("--limit", type=click.IntRange(1, 10), help="Records of each title; the server's default is 3.")
_COLUMNS = ("name", "is_part_of.identifier", "identifier", "date_modified", "url")


def _look_up(name: str, attribute: str, description: str) -> click.Command:
    """Make the command of one kind of look-up."""
    resource = RESOURCES[attribute]

    @click.argument("names", nargs=-1, metavar="TITLE…")
    @base.where_option
    @base.all_of(*base.values_options)
    @_limit
    @click.option(
        "--concurrency", type=click.IntRange(1, 100), default=10, show_default=True, help="Requests at once at most."
    )
    @base.json_option
    @click.pass_context
    def command(
        context: click.Context,
        /,
        *,
        names: Sequence[str],
        filters: Sequence[str],
        as_json: bool,
        **options: Any,
    ) -> None:
        base.merge_field(options)
        options["filters"] = base.parse_filters(filters, resource)
        fields = options["fields"]
        output = _Output(attribute, fields or _COLUMNS, chosen=fields is not None, as_json=as_json)
        if options.pop("raw"):
            assert resource.backend is not None
            # As records spell them, without a wildcard; empty for whole records.
            output.values = Query.build(resource.backend, resource.model, fields=fields).fields or ("",)
        # Before the event loop runs: input may come from a person who types, and Ctrl-C must stop it.
        titles = names or lines_of("-")

        async def find() -> None:
            async with (
                base.connect(context) as client,
                getattr(client, attribute).lookup_many(titles, **options) as results,
            ):
                async for result in results:
                    output.add(result)

        base.run(find())
        output.finish(len(titles))

    return click.command(name, help=description)(command)


class _Output:
    """Prints the results of look-ups as they come, tables and errors at the end.

    Args:
        title: Title of the table.
        columns: Columns of the table.
        chosen: Whether the user chose the columns.
        as_json: Print JSON lines also on a terminal.

    Attributes:
        values: The fields whose values alone are printed; None for records.
    """

    def __init__(self, title: str, columns: Sequence[str], *, chosen: bool, as_json: bool) -> None:
        self._title = title
        self._columns = columns
        self._chosen = chosen
        self._as_table = not as_json and base.stdout.is_terminal
        self._rows: list[Any] = []
        self._failures: list[Looked[Any]] = []
        self._missing = 0
        self.values: Sequence[str] | None = None

    def add(self, result: Looked[Any]) -> None:
        """Print a result, or keep its records for the table."""
        if result.error is not None:
            self._failures.append(result)
        elif not result.records:
            self._missing += 1
            _warn(result.name, "no such page")
        if any(getattr(record, "is_raw_article", False) for record in result.records):
            _warn(result.name, "an unstructured article came in place of structured contents; ask again")
        if self.values is not None:
            for record in result.records:
                base.values_line(record, self.values)
        elif self._as_table:
            self._rows += result.records
        else:
            for record in result.records:
                base.line(record)

    def finish(self, total: int) -> None:
        """Print the table and the errors.

        Args:
            total: Number of titles.

        Raises:
            WMEError: The first error of a look-up.
            NotFound: Pages are missing.
        """
        if self._rows:
            base.show(self._rows, as_json=False, columns=self._columns, title=self._title, chosen=self._chosen)
        for result in self._failures:
            base.stderr.print(Text.assemble((result.name, "red"), f": {result.error}"), highlight=False)
        for result in self._failures:
            assert result.error is not None
            raise result.error
        if self._missing:
            raise NotFound(f"{self._missing} of {total} titles have no page", status=404)


def _warn(name: str, message: str) -> None:
    base.stderr.print(f"{name}: {message}", style="yellow", highlight=False)


lookup: click.Command = _look_up(
    "lookup",
    "articles",
    "Look articles up by exact title; without titles they are read from standard input, one a line.",
)
structured: click.Command = _look_up("structured", "structured_contents", "The same for structured contents.")


@click.group("wikidata", cls=base.Group)
def wikidata() -> None:
    """Wikidata entities by id, and their archives (beta)."""


def _entity(kind: str, letter: str) -> None:
    @wikidata.command(kind)
    @click.argument("identifiers", nargs=-1, required=True, metavar=f"{letter}…")
    @base.fields_option
    @base.json_option
    @click.pass_context
    def command(context: click.Context, /, identifiers: Sequence[str], fields: list[str] | None, as_json: bool) -> None:
        """Look up by id. All ids are checked before the first is requested."""
        missing: list[str] = []

        async def find() -> None:
            async with base.connect(context) as client:
                entities = getattr(client.wikidata, kind)
                entities.check(*identifiers)
                async with entities.get_many(identifiers, fields=fields) as results:
                    async for result in results:
                        if result.error is not None:
                            raise result.error
                        for entity in result.records:
                            base.show_one(entity, as_json=as_json)
                        if not result.records:
                            missing.append(result.name)

        base.run(find())
        if missing:
            raise NotFound(
                f"not in the main graph of Wikidata: {', '.join(missing)}; scholarly items are not served", status=404
            )


for _kind, _letter in (("items", "Q42"), ("properties", "P31"), ("labels", "Q42")):
    _entity(_kind, _letter)


@click.group("files", cls=base.Group)
def files() -> None:
    """Media files of Wikimedia Commons (not in the published reference: may vanish)."""


@files.command("get")
@click.argument("name")
@base.json_option
@click.pass_context
def _get(context: click.Context, /, name: str, as_json: bool) -> None:
    """Show the description of a file."""
    base.show_one(base.run_connected(context, lambda client: client.files.get(name)), as_json=as_json)


@files.command("download")
@click.argument("name")
@click.option("--to", default=".", show_default=True, help="Folder, or path of the file.")
@click.option("--force", is_flag=True, help="Replace an existing file, of whatever upload.")
@click.option("--if-changed", is_flag=True, help="Replace a file of another upload; skip one of the same.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def _download(context: click.Context, /, name: str, to: str, force: bool, if_changed: bool, quiet: bool) -> None:
    """Download a file."""
    base.when_stopped(base.CONTINUES)

    async def fetch() -> Any:
        async with base.connect(context) as client:
            with base.progress_bar(name, quiet=quiet) as progress:
                return await client.files.download(name, to, progress=progress, overwrite=force, if_changed=if_changed)

    base.echo(describe_download(base.run(fetch()), checksum="SHA-1"))


@click.command("quota")
@base.json_option
@click.pass_context
def quota(context: click.Context, /, as_json: bool) -> None:
    """Show the used and the remaining requests of this month's allowances."""
    usage = base.run_connected(context, lambda client: client.auth.quota())
    if as_json or not base.stdout.is_terminal:
        base.line(usage)
        return
    rows = [
        {
            "pool": pool.pool,
            "used": pool.used,
            "limit": "unlimited" if pool.limit is None else pool.limit,
            "left": "unlimited" if pool.left is None else pool.left,
        }
        for pool in (usage.ondemand, usage.snapshot, usage.chunk)
    ]
    base.show(rows, as_json=False, columns=("pool", "used", "limit", "left"), title=usage.month, note="")


_EXPLAINED: Mapping[str, Resource] = {
    **RESOURCES,
    "lookup": RESOURCES["articles"],
    "structured": RESOURCES["structured_contents"],
    "stream": RESOURCES["realtime.articles"],
    "chunks": RESOURCES["snapshots.chunks"],
    "structured-snapshots": RESOURCES["structured_snapshots"],
    "read": Resource(name="read", path="", model=Article, verbs=(), backend=Backend.ARCHIVE),
}
"""What takes a query, by the name of its command and that of the library."""


def _complete_explained(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    return [name for name, row in _EXPLAINED.items() if row.backend is not None and name.startswith(text)]


@click.command("explain")
@click.argument("resource", metavar="RESOURCE", shell_complete=_complete_explained)
@base.where_option
@base.fields_option
@_limit
def explain(resource: str, filters: Sequence[str], fields: list[str] | None, limit: int | None) -> None:
    """Explain which parts of a query are sent, and which are applied on this side. Nothing is sent.

    RESOURCE is a command such as batches, projects, lookup, structured, stream or read, or a name of the library such
    as realtime.articles.
    """
    row = _EXPLAINED.get(resource)
    if row is None or row.backend is None:
        names = sorted(name for name, row in _EXPLAINED.items() if row.backend is not None)
        raise click.BadParameter(
            f"{resource!r} takes no query{did_you_mean(resource, names)}; those that do are {', '.join(names)}"
        )
    query = Query.build(row.backend, row.model, fields=fields, filters=base.parse_filters(filters, row), limit=limit)
    base.echo(query.explain())
    if "lookup" in row.verbs:
        for note in plan_lookup(query, "project").notes:
            base.echo(note)
    if not filters:
        base.echo(f"it can be filtered by: {', '.join(sorted(filter_types(row.model, row.backend)))}")
