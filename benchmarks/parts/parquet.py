"""An archive to Parquet: beside DuckDB, which needs it unpacked."""

from harness import Case, Group, Target

from parts.common import Bench, clear, lacks, script

__all__ = ["groups"]

_TITLES = {"full": "all fields", "six": "six fields", "body": "id, name and texts"}
_GOALS = {"full": 0.45, "six": 0.35, "body": 0.4}


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    return [_group(bench, columns) for columns in _TITLES]


def _group(bench: Bench, columns: str) -> Group:
    archive, size = bench.inputs.archive(), bench.inputs.sizes.archive
    target = bench.work / "out.parquet"
    ours, duckdb = f"wme_async, {_TITLES[columns]}", f"DuckDB, {_TITLES[columns]}"
    return Group(
        name=f"parquet-{columns}",
        title=f"An archive of {size / 1e9:.2f} GB to Parquet (zstd), {_TITLES[columns]}",
        cases=[
            Case(
                name=duckdb,
                command=script("parquet_write", "duckdb", columns, archive, target),
                before=clear(bench.work),
                size=size,
                lacking=lacks(programs=("igzip",), packages=("duckdb",)),
            ),
            Case(
                name=ours,
                command=script("parquet_write", "package", columns, archive, target),
                ours=True,
                before=clear(bench.work),
                size=size,
                lacking=lacks(packages=("pyarrow", "isal")),
            ),
        ],
        targets=[
            Target(
                name=f"Parquet with {_TITLES[columns]}, wall beside DuckDB",
                case=ours,
                measure="wall",
                against=duckdb,
                most=_GOALS[columns],
            ),
            Target(name=f"Parquet with {_TITLES[columns]}, peak memory", case=ours, measure="rss", most=400, unit="MB"),
        ],
        figures={"file": "file MB"},
    )
