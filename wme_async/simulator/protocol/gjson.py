"""Filters and fields of the on-demand back end: path expressions over stored JSON.

The service applies a path library to the stored text. A list is indexed by number or by `#`, never by name; values that
the stored JSON leaves out (false, zero, the empty string) do not exist; equality is typed.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Final

from wme_async.simulator.errors import Panic
from wme_async.simulator.protocol.query import Query

MISSING: Final = object()
"""The value of a path that does not exist, as opposed to null."""

_SEGMENT = re.compile(r"(?:\\.|[^.|\\])+")


def _segments(path: str) -> list[str]:
    return _SEGMENT.findall(path)


def get(value: Any, path: str) -> Any:
    """Follow a path.

    Args:
        value: Decoded JSON.
        path: Names joined by dots; a digit string indexes a list, `#` is its length or, with a path behind it, the
            list of that path of each element; `*` and `?` match names.

    Returns:
        The value, or `MISSING`.
    """
    return _get(value, _segments(path))


def _get(value: Any, segments: Sequence[str]) -> Any:
    if not segments:
        return value
    first, below = segments[0], segments[1:]
    if first == "@this":
        return _get(value, below)
    if isinstance(value, Mapping):
        name = re.sub(r"\\(.)", r"\1", first)
        if name in value:
            return _get(value[name], below)
        if "*" in first or "?" in first:
            key = next((key for key in value if fnmatchcase(key, first)), None)
            return MISSING if key is None else _get(value[key], below)
        return MISSING
    if isinstance(value, list):
        if first == "#":
            if not below:
                return len(value)
            return [inner for item in value if (inner := _get(item, below)) is not MISSING]
        if first.isdigit() and int(first) < len(value):
            return _get(value[int(first)], below)
    return MISSING


def matches(record: Mapping[str, Any], query: Query) -> bool:
    """Return whether a stored record passes all filters that are not null.

    Raises:
        Panic: Two lists or two objects are to be compared, which ends the real process.
    """
    return all(_equal(get(record, item[0]), item[1]) for item in query.filters if item is not None)


def _equal(value: Any, expected: Any) -> bool:
    if value is MISSING or value is None:
        return expected is None
    if type(value) is type(expected) and isinstance(value, (list, dict)):
        raise Panic(fatal=True)
    if isinstance(value, bool) or isinstance(expected, bool):
        return value is expected
    if isinstance(value, (int, float)) and isinstance(expected, (int, float)):
        return float(value) == float(expected)
    return isinstance(value, str) and bool(value == expected)


def project(record: Mapping[str, Any], fields: Sequence[str], rnd: Random) -> dict[str, Any]:
    """Reduce a record to the requested fields.

    Of two entries in conflict the later wins, and the order of keys is random. An object with selected fields is
    always there, even if empty: a name below a list makes the list an empty object, an index or `#` becomes its key.

    Args:
        record: The stored record.
        fields: Field names; an empty list selects everything.
        rnd: Orders the keys.
    """
    if not fields:
        return dict(record)
    tree: dict[str, Any] = {}
    for name in fields:
        segments = _segments(name)
        if len(segments) > 1 and segments[-1] == "*":
            segments = segments[:-1]
        node = tree
        for segment in segments[:-1]:
            if not isinstance(node.get(segment), dict):
                node[segment] = {}
            node = node[segment]
        if segments:
            node[segments[-1]] = None
    return _cut(record, tree, rnd)


def _cut(value: Any, tree: Mapping[str, Any], rnd: Random) -> dict[str, Any]:
    names = list(tree)
    rnd.shuffle(names)
    selected: dict[str, Any] = {}
    for name in names:
        inner = get(value, name) if isinstance(value, (Mapping, list)) else MISSING
        if tree[name] is not None:
            # An object with selected fields is written even if it is empty; an index and `#` are keys like others.
            selected[name] = _cut(inner, tree[name], rnd)
        elif inner is not MISSING:
            selected[name] = inner
    return selected
