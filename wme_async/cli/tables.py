"""Records for people: tables that fit the terminal, sizes with a unit, short dates; and JSON lines for programs.

What a reader might copy, such as an identifier or an address, is never cut and never broken: a column that does not fit
is left out, which the last line says, or the records are printed one field a line.
"""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from rich.cells import cell_len
from rich.text import Text

from wme_async._text import size_text
from wme_async.cli import terminal
from wme_async.cli.terminal import json_line, one_line, text_line

_GAP: Final = 2
_LEAST_PROSE: Final = 20  # columns of a text that is folded
_DATE: Final = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)")
_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HEADINGS: Final = {
    "in_language.identifier": "language",
    "is_part_of.identifier": "project",
    "date_modified": "modified (UTC)",
    "created_at": "created (UTC)",
    "progress.percent": "%",
    "batch_id": "batch",
    "total_jobs": "jobs",
    "completed_jobs": "done",
    "failed_jobs": "failed",
}


def show(
    records: Iterable[Any],
    *,
    as_json: bool,
    columns: Sequence[str],
    title: str,
    chosen: bool = False,
    note: str | None = None,
) -> None:
    """Show records: a table on a terminal, JSON lines into a pipe.

    Args:
        records: Structs or mappings.
        as_json: JSON lines also on a terminal.
        columns: Dotted names of the fields, the most important first. From the end, those that do not fit are left out.
        title: Stands above the table.
        chosen: Whether the user chose the columns, so that none may be left out.
        note: Stands below the table in place of the number of records; empty for nothing.
    """
    stdout = terminal.stdout
    if as_json or not stdout.is_terminal:
        for record in records:
            line(record)
        return
    headings = [name if chosen else _HEADINGS.get(name, name) for name in columns]
    rows = [[_cell(msgspec.to_builtins(record), column) for column in columns] for record in records]
    shown = _columns_that_fit(headings, rows, columns[-1], stdout.width, chosen=chosen)
    _print(title, style="bold")
    if shown == 0:
        for row in rows:
            for heading, cell in zip(headings, row, strict=True):
                _print(f"{heading}: {cell}")
            _print("")
    else:
        for number, text in enumerate(_table_lines(headings, rows, shown, stdout.width)):
            _print(text, style="dim" if number == 0 else None)
    note = f"{len(rows):,} in all" if note is None else note
    if note:
        _print(note, style="dim")
    if 0 < shown < len(columns):
        _print(f"not shown here: {', '.join(headings[shown:])}; --json shows all", style="dim")


def show_one(record: Any, *, as_json: bool) -> None:
    """Show one record: indented on a terminal, one JSON line into a pipe."""
    if as_json or not terminal.stdout.is_terminal:
        line(record)
    else:
        # The console writes the other control characters as JSON does.
        terminal.stdout.print_json(msgspec.json.encode(record).decode())


def line(record: Any) -> None:
    """Write a record as one line of JSON."""
    json_line(msgspec.json.encode(record))


def values_line(record: Any, names: Sequence[str]) -> None:
    """Write the values of some fields on one line, separated by tabs; a value that is not text as JSON.

    Args:
        record: A Struct.
        names: Dotted names; an empty one is the whole record.
    """
    texts = []
    for name in names:
        value = value_at(record, name.split(".") if name else [])
        is_text = isinstance(value, str) and (len(names) == 1 or not re.search(r"[\t\r\n]", value))
        texts.append(value if is_text else msgspec.json.encode(value).decode())
    text_line("\t".join(texts))


def value_at(value: Any, names: Sequence[str]) -> Any:
    """Return the value at a dotted name: a list for each list on the way, the default of an absent field."""
    if not names or value is None:
        return value
    if isinstance(value, list | tuple):
        return [value_at(item, names) for item in value]
    if isinstance(value, dict):
        return value_at(value.get(names[0]), names[1:])
    attribute = next(field.name for field in msgspec.structs.fields(value) if field.encode_name == names[0])
    return value_at(getattr(value, attribute), names[1:])


def _columns_that_fit(
    headings: Sequence[str], rows: Sequence[Sequence[str]], last: str, width: int, *, chosen: bool
) -> int:
    """Return how many columns to show; 0 to print each field on a line of its own."""
    widths = _widths(headings, rows)
    for count in range(len(headings), 0, -1):
        room = width - sum(widths[: count - 1]) - _GAP * (count - 1)
        if widths[count - 1] <= room:
            return count
        if count < len(headings):
            continue
        # The last column of all may be longer: prose is folded between words, an address goes on in the next line.
        cells = [row[-1] for row in rows]
        longest_word = max((cell_len(word) for cell in cells for word in cell.split(" ")), default=0)
        if last == "url" or (room >= _LEAST_PROSE and longest_word <= room and any(" " in cell for cell in cells)):
            return count
        if chosen:
            return 0
    return 1


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        max(cell_len(heading), *(cell_len(row[column]) for row in rows)) if rows else cell_len(heading)
        for column, heading in enumerate(headings)
    ]


def _table_lines(headings: Sequence[str], rows: Sequence[Sequence[str]], shown: int, width: int) -> Iterable[str]:
    widths = _widths(headings, rows)[:shown]
    right = {
        column
        for column in range(shown)
        if rows and all(re.fullmatch(r"[\d.,]+( [kMGT]?B)?|", row[column]) for row in rows)
    }
    indent = sum(widths[:-1]) + _GAP * (shown - 1)
    for row in (headings, *rows):
        cells = [
            " " * (widths[column] - cell_len(cell)) + cell
            if column in right
            else cell + " " * (widths[column] - cell_len(cell))
            for column, cell in enumerate(row[: shown - 1])
        ]
        last = row[shown - 1]
        if shown - 1 in right:
            last = last.rjust(widths[-1])
        folded = [last]
        if cell_len(last) > width - indent >= _LEAST_PROSE:
            folded = textwrap.wrap(last, width - indent, break_long_words=False, break_on_hyphens=False) or [""]
        yield (" " * _GAP).join([*cells, folded[0]]).rstrip()
        for text in folded[1:]:
            yield " " * indent + text


def _print(text: str, *, style: str | None = None) -> None:
    # Soft wrap: the terminal breaks a long line, so that copying it gives the whole.
    terminal.stdout.print(Text(text), style=style, soft_wrap=True, highlight=False)


def _cell(record: Any, column: str) -> str:
    name = column.removesuffix("*").removesuffix(".")
    value = _lookup(record, name.split(".") if name else [])
    if isinstance(value, Mapping) and value.keys() <= {"value", "unit_text"}:
        unit = _UNITS.get(str(value.get("unit_text", "MB")).upper())
        if unit is not None:
            return size_text(value.get("value", 0) * unit)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        match = _DATE.fullmatch(value)
        return f"{match[1]} {match[2]}" if match else one_line(value)
    # The console does the same, but only after it has measured the column.
    return one_line("" if value is None else msgspec.json.encode(value).decode())


def _lookup(value: Any, names: Sequence[str]) -> Any:
    if not names:
        return value
    if isinstance(value, list | tuple):
        return [_lookup(item, names) for item in value]
    return _lookup(value.get(names[0], ""), names[1:]) if isinstance(value, dict) else ""
