"""Text for people and from them: sizes with a unit, similar names, and files in any Unicode encoding."""

import codecs
import difflib
from collections.abc import Iterable
from typing import Final

_MARKS: Final = (
    # The mark of UTF-32 begins with that of UTF-16.
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode_text(data: bytes, name: str) -> str:
    """Decode a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    UTF-16 without a mark is recognised if its first character is ASCII, by its zero byte. Older encodings such as
    Latin-1 cannot be told apart from each other, so they are an error.

    Args:
        data: All of the file.
        name: The file, for the error.

    Raises:
        ValueError: It has another encoding; with the name and the line.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        start = data[:2]
        encoding = "utf-16-le" if start[1:] == b"\0" else "utf-16-be" if start[:1] == b"\0" else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}, line {line}: the text is not {encoding.partition('-sig')[0].upper()}; save the file as UTF-8"
        ) from None


def size_text(size: float) -> str:
    """Return a number of bytes with a unit: `812 B`, `3.14 MB`, `120 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    digits = 0 if units[0] == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {units[0]}"


def duration_text(seconds: float) -> str:
    """Return a duration in the unit that people use: seconds below two minutes, minutes below two hours, hours."""
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"


def count_text(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural by an `s`: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def closest(name: str, names: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Return the names that are most similar to another one, all of them equally.

    Args:
        name: The other one.
        names: All names.
        count: Of names to return, at most.
        cutoff: The least similarity, 0 to 1.
    """
    similar = difflib.get_close_matches(name, names, count, cutoff)
    ratios = [difflib.SequenceMatcher(None, other, name).ratio() for other in similar]
    return [other for other, ratio in zip(similar, ratios, strict=True) if ratio == ratios[0]]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the names that exist and are most similar, two at most.

    The second is as similar as the first: two names that begin with it, or that differ from it equally.

    Args:
        name: The unknown name.
        names: All that exist.
    """
    every = list(names)
    # The beginning of a longer name, such as the project of an archive, is meant rather than another one like it.
    longer = [other for other in every if len(name) > 2 and other.startswith(name)]
    similar = longer[:2] or closest(name, every, 2, 0.6)
    return f"; did you mean {' or '.join(similar)}?" if similar else ""


class ShownText(str):
    """Text that a notebook and the interpreter show with its lines, not as a literal."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
