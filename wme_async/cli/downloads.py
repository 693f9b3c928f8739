"""The command `download` of archives: one, several, those of a filter, or all."""

import asyncio
import io
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import click

from wme_async._client.archive_names import ArchiveName, uses_version
from wme_async._client.resources import Resource
from wme_async._download import Budget, Download
from wme_async._tasks import in_thread
from wme_async._text import decode_text, size_text
from wme_async.cli import base
from wme_async.errors import DataError, NotFound, ServerError, TransportError

_CONCURRENCY: Final = 4
# Errors of one archive. Others, such as a full disk or an exhausted allowance, would be those of all.
_ITS_OWN: Final = (NotFound, DataError, TransportError, ServerError)

OPTIONS: Final = (
    base.where_option,
    click.option("--all", "everything", is_flag=True, help="All archives of the list."),
    click.option("-i", "--input", "source", metavar="FILE", help="Identifiers from a file, one a line; - for a pipe."),
    click.option(
        "--to", default=".", show_default=True, help="Folder, or a file with an extension; - writes to standard output."
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
    click.option("--connections", type=click.IntRange(1, 64), help="Concurrent byte ranges at most, of all together."),
    base.max_rate_option("Bandwidth of all together."),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)


async def download_archives(
    files: Any,
    resource: Resource,
    *,
    identifiers: Sequence[str],
    filters: dict[str, Any] | None,
    everything: bool,
    source: str | None,
    to: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Download the archives that the arguments name.

    Args:
        files: The archives of the client.
        resource: Their row of the table.
        identifiers: Names of archives.
        filters: Those of the list with these values.
        everything: All of the list.
        source: A file with names.
        to: The folder or file.
        quiet: Without a progress bar.
        **options: As for `Files.download`.

    Raises:
        WMEError: A download failed.
    """
    names = [*identifiers, *(lines_of(source) if source is not None else ())]
    listed = everything or filters is not None
    if not names and not listed:
        raise click.UsageError("name the archives, or give --where FIELD=VALUE, --all or -i FILE")
    if to == "-":
        if listed or len(names) > 1:
            raise _one_to_stdout()
        await _to_stdout(files, names[0], **options)
        return
    base.when_stopped(base.CONTINUES)
    if listed:
        names += [record.identifier for record in await files.list(filters=filters, fields=["identifier"])]
        if not names:
            raise click.UsageError("no archive has these values; see `ls`")
    names = list(dict.fromkeys(names))
    check_names(resource, options["name"], names)
    if len(names) == 1 and not listed and source is None:
        with base.progress_bar(names[0], quiet=quiet) as progress:
            download = await files.download(names[0], _target(to), progress=progress, **options)
        base.echo(describe_download(download))
    else:
        await _download_many(files, names, to if to.endswith("/") else f"{to}/", quiet=quiet, **options)


def _target(to: str) -> str:
    """Return a path that the library takes for a folder unless it has an extension, or is a file already."""
    return to if to.endswith("/") or Path(to).suffix or Path(to).is_file() else f"{to}/"


async def _download_many(files: Any, names: Sequence[str], folder: str, *, quiet: bool, **options: Any) -> None:
    """Download some at a time; the failure of one does not stop the others."""
    failures: list[Exception] = []
    connections, max_rate = options.pop("connections"), options.pop("max_rate")
    options["budget"] = Budget(max_rate=max_rate) if connections is None else Budget(connections, max_rate=max_rate)
    slots = asyncio.Semaphore(_CONCURRENCY)
    with base.progress_bar("", quiet=quiet) as bars:

        async def fetch(name: str) -> None:
            async with slots:
                try:
                    with bars.add(name) as progress:
                        download = await files.download(name, folder, progress=progress, **options)
                except _ITS_OWN as error:
                    failures.append(error)
                    base.say_error(f"{name}: {base.message_of(error)}")
                else:
                    base.echo(describe_download(download))

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(fetch(name))
    if failures:
        base.echo(f"{len(names) - len(failures):,} of {len(names):,} archives; {len(failures):,} failed", err=True)
        raise base.Reported(failures[0])


def check_names(resource: Resource, template: str | None, identifiers: Sequence[str]) -> None:
    """Raise if two archives would get one name.

    Raises:
        click.UsageError: They would.
    """
    if template is None or uses_version(template):
        return
    place = "0000-00-00/00" if resource.name.endswith("batches") else "snapshot"
    paths: dict[PurePosixPath, str] = {}
    for identifier in identifiers:
        path = ArchiveName(kind=resource.name, identifier=identifier, place=place).path(template)
        if path in paths:
            raise click.UsageError(
                f"--name {template} gives {identifier} and {paths[path]} the same name; add {{identifier}}"
            )
        paths[path] = identifier


def _one_to_stdout() -> click.UsageError:
    return click.UsageError(
        "--to - writes one archive to standard output; leave out --name, --force, --if-changed and --no-verify"
    )


async def _to_stdout(
    files: Any, identifier: str, *, name: str | None, overwrite: bool, if_changed: bool, verify: bool, **options: Any
) -> None:
    """Write an archive to standard output as it arrives. If its MD5 differs, the end is an error."""
    if name is not None or overwrite or if_changed or not verify:
        raise _one_to_stdout()
    if sys.stdout.isatty():
        raise click.UsageError("--to - writes an archive to standard output, which is a terminal; pipe it")
    output = sys.stdout.buffer

    def write(data: bytes) -> None:
        output.write(data)
        output.flush()

    async with files.content(identifier, **options) as content:
        async for data in content:
            await in_thread(write, data)


def lines_of(source: str) -> list[str]:
    """Return the lines of a file, or of standard input for `-`; empty ones are left out.

    Args:
        source: The path, or `-`.

    Raises:
        ValueError: It is not text in a Unicode encoding.
        OSError: The file cannot be read.
    """
    if source == "-":
        data = bytearray()
        # Not in one call: Python handles Ctrl-C between the steps of this loop.
        while chunk := cast("io.BufferedReader", sys.stdin.buffer).read1(1 << 16):
            data += chunk
        text = decode_text(bytes(data), "standard input")
    else:
        text = decode_text(Path(source).read_bytes(), source)
    return [name for line in io.StringIO(text, newline=None) if (name := line.strip())]


def describe_download(download: Download, *, checksum: str = "MD5") -> str:
    """Return one line about a finished download.

    Args:
        download: The result.
        checksum: The hash that was compared.
    """
    if download.unchanged:
        return f"{download.path}  unchanged"
    check = {True: f"{checksum} matches", None: "newer than its metadata, so not compared", False: "not compared"}
    resumed = f", {size_text(download.resumed)} of them were there already" if download.resumed else ""
    size = f"{size_text(download.size)}{resumed}"
    return f"{download.path}  {size} in {download.seconds:.2f} s, {check[download.verified]}"
