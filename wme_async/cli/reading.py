"""The command `read`: the records of an archive of the service or of the disk, as JSON lines or Parquet."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from wme_async._archive import ArchiveReader, read_archive
from wme_async._query.backends import Backend
from wme_async._query.query import Query
from wme_async._text import count_text, size_text
from wme_async.cli import base
from wme_async.errors import DecodeError
from wme_async.models import Article, StructuredContent, WikidataArticle
from wme_async.models.decoding import make_decoder

# Opens the archive for records of a type; the second argument chooses members.
Open = Callable[..., "ArchiveReader[Any]"]

KINDS: Final[dict[str, type[Any]]] = {
    "articles": Article,
    "structured": StructuredContent,
    "wikidata": WikidataArticle,
}

OPTIONS: Final = (
    base.where_option,
    *base.values_options,
    click.option("--limit", type=click.IntRange(1), help="Stop after so many records."),
    click.option("--count", is_flag=True, help="Print only the number of records."),
    click.option(
        "--to", metavar="PATH|URL", help="Write Parquet there instead: a file, a folder/, s3://, gs://, az://."
    ),
    base.skip_bad_option,
)


class Selection:
    """The records and fields that a command reads of an archive, which comes whole: both are chosen here.

    Args:
        model: The type of the records.
        fields: Dotted names; None for all.
        filters: Dotted name to value.

    Attributes:
        names: The fields, as records spell them; an empty name for whole records.
        type: The type to decode into, with no more top-level fields than necessary.

    Raises:
        ValueError: A name does not exist, or a value cannot be compared.
    """

    def __init__(self, model: type[Any], fields: list[str] | None, filters: dict[str, Any] | None) -> None:
        self._query = Query.build(Backend.ARCHIVE, model, fields=fields, filters=filters)
        self.names: tuple[str, ...] = self._query.fields or ("",)
        self.type: type[Any] = _with_fields(model, self._query.fields)
        dotted = any("." in name for name in self.names)
        self._project = self._query.for_unfiltered().project if dotted or self.type is model else None

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The fields that a table has, in the order of its columns; None for all."""
        return self._query.fields

    @property
    def filtered(self) -> bool:
        """Whether some records are left out."""
        return self._query.selects

    async def records(self, open_archive: Open, limit: int | None, on_bad_record: str, counts: "Counts") -> Any:
        """Yield the records."""
        decode = make_decoder(self.type) if self.filtered else None
        async with open_archive(type=self.type if decode is None else dict, on_bad_record=on_bad_record) as reader:
            try:
                async for record in reader:
                    if decode is not None and not self._query.keep(record):
                        continue
                    if decode is not None:
                        try:
                            record = decode(msgspec.json.encode(record))  # noqa: PLW2901  # the same record
                        except DecodeError:
                            if on_bad_record == "raise":
                                raise
                            counts.bad += 1
                            continue
                    if limit is not None and counts.records >= limit:
                        break
                    counts.records += 1
                    yield record if self._project is None else self._project(record)
            finally:
                counts.bad += reader.statistics().bad_records


class Counts:
    """The numbers of records that were read, and that did not decode."""

    records = 0
    bad = 0


async def read_records(
    open_archive: Open,
    model: type[Any],
    *,
    fields: list[str] | None,
    filters: dict[str, Any] | None,
    raw: bool,
    limit: int | None,
    count: bool,
    to: str | None,
    on_bad_record: str,
) -> None:
    """Print the records of an archive, count them, or write them to Parquet.

    Args:
        open_archive: Opens it, with the arguments `type`, `on_bad_record` and perhaps `select`.
        model: The type of its records.
        fields: Dotted names of the fields.
        filters: Values by dotted name.
        raw: Print the values of the fields alone.
        limit: Records at most.
        count: Print the number alone.
        to: Where to write Parquet.
        on_bad_record: `raise` or `skip`.
    """
    selection = Selection(model, fields, filters)
    if to not in {None, "-"}:
        if count or raw:
            raise click.UsageError("--to writes Parquet; leave out --count and --raw")
        await _to_parquet(open_archive, selection, str(to), limit, on_bad_record)
        return
    counts, began = Counts(), time.monotonic()
    records = selection.records(open_archive, limit, on_bad_record, counts)
    try:
        async for record in records:
            if raw:
                base.values_line(record, selection.names)
            elif not count:
                base.line(record)
    finally:
        await records.aclose()
    if count:
        base.echo(counts.records)
    note = f", {counts.bad} bad ones skipped" if counts.bad else ""
    base.stderr.print(f"{count_text(counts.records, 'record')} in {time.monotonic() - began:.1f} s{note}", style="dim")


async def _to_parquet(open_archive: Open, selection: Selection, to: str, limit: int | None, on_bad_record: str) -> None:
    from wme_async.integrations.arrow import unwritten, write_parquet  # noqa: PLC0415  # an extra

    in_folder = to.endswith("/") and "://" not in to
    if selection.filtered or limit is not None:
        if in_folder:
            raise click.UsageError("--to a folder/ writes whole archives; with --where or --limit name a file")
        records: AsyncGenerator[Any] = selection.records(open_archive, limit, on_bad_record, Counts())
        parquet = await write_parquet(records, to, type=selection.type, fields=selection.columns)
    else:
        if in_folder:
            base.when_stopped("the same command skips the members that are complete")
        # A folder gets a file for each member of the archive, so that a second run can skip complete members.
        select = unwritten(to) if in_folder else None
        async with open_archive(type=selection.type, on_bad_record=on_bad_record, select=select) as reader:
            parquet = await write_parquet(reader, to, type=selection.type, fields=selection.columns)
    rows, files = count_text(parquet.rows, "record"), count_text(len(parquet.files), "file")
    base.echo(f"{to}  {rows}, {size_text(parquet.bytes)} in {files}")


@click.command("read")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--kind", type=click.Choice(list(KINDS)), help="Of its records; otherwise by the path, or articles.")
@base.all_of(*OPTIONS)
def read(*, file: str, kind: str | None, **options: Any) -> None:
    """Write the records of an archive on the disk as JSON lines, or to Parquet.

    --where and --fields are applied here: an archive has all records and fields.
    """
    base.merge_field(options)
    model = KINDS[kind or _kind_of(file)]
    options["filters"] = base.parse_record_filters(options["filters"], model)
    base.run(read_records(partial(read_archive, file), model, **options))


def _kind_of(file: str) -> str:
    """Return the kind of an archive by its path, as `download` names it."""
    parts = set(Path(file).parts)
    if "wikidata" in parts:
        return "wikidata"
    return "structured" if "structured_snapshots" in parts else "articles"


def _with_fields(model: type[Any], names: Sequence[str] | None) -> type[Any]:
    """Return a type with some fields of a model alone, which is faster to decode; objects in them stay whole."""
    if names is None or hasattr(model, "__post_init__"):  # it combines fields
        return model
    tops = {name.partition(".")[0] for name in names}
    fields = []
    for field in msgspec.structs.fields(model):
        if field.encode_name in tops:
            settings: Any = {"name": field.encode_name, "default": field.default}
            if field.default_factory is not msgspec.NODEFAULT:
                settings = {"name": field.encode_name, "default_factory": field.default_factory}
            fields.append((field.name, field.type, msgspec.field(**settings)))
    return msgspec.defstruct(model.__name__, fields, omit_defaults=True)
