"""URLs from CSV files as spreadsheets and scripts write them. A row that would lose or cut a URL is an error."""

import csv
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from wme_async._arguments import check_path
from wme_async._text import decode_text

_DELIMITERS: Final = ",;\t"
_LONGEST_FIELD: Final = 1 << 24  # characters; without a closing quote the file is one field
_limit_lock = threading.Lock()


def from_csv(path: str | os.PathLike[str], column: str = "url") -> list[str]:
    """Read URLs from a CSV file. It blocks, so use a thread for a large one.

    The first row that is not blank names the columns; case and blanks around a name do not matter. Fields are
    separated by commas, semicolons or tabs, which the first row shows, and quoted by `"`. The encoding is UTF-8, or
    UTF-16 or UTF-32 with a byte order mark or recognisable by its zero bytes.

    Args:
        path: The file.
        column: The column that holds the URLs.

    Returns:
        The URLs in order, without empty cells.

    Raises:
        ValueError: The column is missing or there are two of its name, the encoding is another one, or a row is
            malformed: a missing closing quote, or more cells than columns, such as by an unquoted comma in a URL. The
            message has the name of the file and the line.
        OSError: The file cannot be read.
    """
    check_path("path", path)
    name = os.fspath(path)
    rows, delimiter = _rows(decode_text(Path(path).read_bytes(), name), name)
    if not rows:
        raise ValueError(f"{name} has no column {column!r}: it is empty")
    (first, header), *rows = rows
    index = _index(header, column, name, first)
    for line, row in rows:
        # Spreadsheets end each row with the separators of empty columns.
        if any(cell.strip() for cell in row[len(header) :]):
            mark = {",": "a comma", ";": "a semicolon"}.get(delimiter, "a tab")
            raise ValueError(
                f"{name}, line {line}: {len(row)} cells for {len(header)} columns; put quotes around a cell that"
                f" contains {mark}"
            )
    return [url for _, row in rows if index < len(row) and (url := row[index].strip())]


def _delimiter(text: str) -> tuple[str, int]:
    """Return the delimiter, and the number of lines of a note about it before the first row.

    It is the one that the first row contains most often outside quotes, or that of a line `sep=;`, which Excel reads.
    """
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        content = line.strip()
        if len(content) == 5 and content.lower().startswith("sep="):
            return content[4], number
        if content:
            outside = "".join(line.split('"')[::2])
            return max(_DELIMITERS, key=outside.count), 0
    return ",", 0


def _rows(text: str, name: str) -> tuple[list[tuple[int, list[str]]], str]:
    """Return each row that is not blank with the number of its first line, and the delimiter."""
    delimiter, skipped = _delimiter(text)
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        next(lines)
    rows: list[tuple[int, list[str]]] = []
    # The limit is one for the process, and other users of it rely on theirs.
    with _limit_lock:
        limit = csv.field_size_limit(_LONGEST_FIELD)
        line = skipped + 1
        try:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append((line, row))
                line = skipped + reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{name}, line {line}: {error}; is a quote left open?") from None
        finally:
            csv.field_size_limit(limit)
    return rows, delimiter


def _index(header: Sequence[str], column: str, name: str, line: int) -> int:
    names = [cell.strip() for cell in header]
    matches = [at for at, cell in enumerate(names) if cell == column]
    matches = matches or [at for at, cell in enumerate(names) if cell.casefold() == column.strip().casefold()]
    if not matches:
        raise ValueError(f"{name}, line {line}: the column {column!r} is missing; the columns are {', '.join(names)}")
    if len(matches) > 1:
        raise ValueError(f"{name}, line {line}: the column {column!r} is there {len(matches)} times; rename one")
    return matches[0]
