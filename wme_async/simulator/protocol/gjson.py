"""Filters and fields as the on-demand back end understands them: path expressions over stored JSON.

The service asks a path library about the stored text. A list is reached by index or by `#`, never by name; what the
stored JSON leaves out (false, zero, the empty string) does not exist; equality is typed.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import Any, Final

from wme_async.simulator.protocol.query import Panic, Query

__all__ = ["MISSING", "get", "matches", "project"]

MISSING: Final = object()
"""Stands for what does not exist, which null is not."""

_SEGMENT = re.compile(r"(?:\\.|[^.|\\])+")


def _segments(path: str) -> list[str]:
    return _SEGMENT.findall(path)


def get(value: Any, path: str) -> Any:
    """Follow a path.

    Args:
        value: Decoded JSON.
        path: Names joined by dots; a digit string indexes a list, `#` is its length or, with more behind it, the list
            of what each element has; `*` and `?` match names.

    Returns:
        What is there, or `MISSING`.
    """
    return _get(value, _segments(path))


def _get(value: Any, segments: Sequence[str]) -> Any:
    if not segments:
        return value
    first, rest = segments[0], segments[1:]
    if first == "@this":
        return _get(value, rest)
    if isinstance(value, Mapping):
        name = re.sub(r"\\(.)", r"\1", first)
        if name in value:
            return _get(value[name], rest)
        if "*" in first or "?" in first:
            found = next((key for key in value if fnmatchcase(key, first)), None)
            return MISSING if found is None else _get(value[found], rest)
        return MISSING
    if isinstance(value, list):
        if first == "#":
            if not rest:
                return len(value)
            return [found for item in value if (found := _get(item, rest)) is not MISSING]
        if first.isdigit() and int(first) < len(value):
            return _get(value[int(first)], rest)
    return MISSING


def matches(record: Mapping[str, Any], query: Query) -> bool:
    """Say whether a stored record passes all filters.

    Raises:
        Panic: A filter is null, or two lists or two objects are to be compared, which ends the real process.
    """
    for item in query.filters:
        if item is None:
            raise Panic(fatal=True)
        name, wanted = item
        if not _equal(get(record, name), wanted):
            return False
    return True


def _equal(found: Any, wanted: Any) -> bool:
    if found is MISSING or found is None:
        return wanted is None
    for kind in (list, dict):
        if isinstance(wanted, kind) and isinstance(found, kind):
            raise Panic(fatal=True)
    if isinstance(wanted, bool) or isinstance(found, bool):
        return isinstance(wanted, bool) and isinstance(found, bool) and wanted == found
    if isinstance(wanted, (int, float)):
        return isinstance(found, (int, float)) and float(wanted) == float(found)
    return isinstance(wanted, str) and isinstance(found, str) and wanted == found


def project(record: Mapping[str, Any], fields: Sequence[str], rnd: Random) -> dict[str, Any]:
    """Reduce a record to the fields asked for.

    Where two entries conflict the later wins, and the order of keys is random. An object of which fields are selected
    is always there, if only empty: a name below a list makes the list an empty object, an index or `#` becomes its key.

    Args:
        record: The stored record.
        fields: Field names; none means everything.
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
            below = node.get(segment)
            if not isinstance(below, dict):
                below = node[segment] = {}
            node = below
        if segments:
            node[segments[-1]] = None
    return _cut(record, tree, rnd)


def _cut(value: Any, tree: Mapping[str, Any], rnd: Random) -> dict[str, Any]:
    names = list(tree)
    rnd.shuffle(names)
    found: dict[str, Any] = {}
    for name in names:
        below = tree[name]
        inner = get(value, name) if isinstance(value, (Mapping, list)) else MISSING
        if below is not None:
            # An object that was selected is written even if nothing is in it; an index and `#` are keys like others.
            found[name] = _cut(inner, below, rnd)
        elif inner is not MISSING:
            found[name] = inner
    return found
