"""Write an archive to a Parquet file, by the package or by DuckDB, and print one line of JSON.

    python benchmarks/parquet_write.py package COLUMNS ARCHIVE TARGET
    python benchmarks/parquet_write.py duckdb COLUMNS ARCHIVE TARGET

COLUMNS is `full` (all fields of an article), `six` or `body` (id, name and the texts). DuckDB reads no tar, so the
archive is unpacked to a file for it first, by the quickest tools there are; that belongs to its time.
"""

import argparse
import asyncio
import json
import shlex
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

SELECTED = {
    "full": "*",
    "six": "name, identifier, url, date_modified, version.identifier AS revision, is_part_of.identifier AS project",
    "body": "name, identifier, article_body",
}


async def package(columns: str, archive: Path, target: Path) -> int:
    """Write by the package, and return the number of rows."""
    import msgspec  # what a case measures, and nothing else, is loaded

    from wme_async import Article, read_archive  # same
    from wme_async.integrations.arrow import write_parquet  # same

    class Version(msgspec.Struct, frozen=True):
        identifier: int = 0

    class Project(msgspec.Struct, frozen=True):
        identifier: str = ""

    class Six(msgspec.Struct):
        name: str = ""
        identifier: int = 0
        url: str = ""
        date_modified: datetime | None = None
        version: Version = Version()
        is_part_of: Project = Project()

    class Texts(msgspec.Struct):
        html: str = ""
        wikitext: str = ""

    class Body(msgspec.Struct):
        name: str = ""
        identifier: int = 0
        article_body: Texts | None = None

    kind: Any = {"full": Article, "six": Six, "body": Body}[columns]
    async with read_archive(archive, type=kind) as records:
        return (await write_parquet(records, target, type=kind)).rows


def by_duckdb(columns: str, archive: Path, target: Path) -> int:
    """Unpack and write by DuckDB, and return the number of rows."""
    import duckdb  # same

    lines = target.with_suffix(".ndjson")
    command = f"igzip -dc {shlex.quote(str(archive))} | tar -xO -f - > {shlex.quote(str(lines))}"
    subprocess.run(["sh", "-c", command], check=True)
    source = f"read_json('{lines}', format='newline_delimited', maximum_object_size=100000000)"
    connection = duckdb.connect()
    connection.execute(  # paths and columns are our own
        f"COPY (SELECT {SELECTED[columns]} FROM {source}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
    )
    lines.unlink()
    return int(connection.execute(f"SELECT count(*) FROM '{target}'").fetchall()[0][0])


def main() -> None:
    """Run one case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["package", "duckdb"])
    parser.add_argument("columns", choices=list(SELECTED))
    parser.add_argument("archive", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    if options.engine == "package":
        rows = asyncio.run(package(options.columns, options.archive, options.target))
    else:
        rows = by_duckdb(options.columns, options.archive, options.target)
    print(json.dumps({"rows": rows, "file": options.target.stat().st_size / 1e6}))


if __name__ == "__main__":
    main()
