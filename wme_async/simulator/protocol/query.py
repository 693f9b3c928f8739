"""What a request asks for, as the main host understands it: binding, validation, and the metadata back end's select.

The main host binds a JSON body only for POST with a JSON content type; everything else is read as a form, so a JSON
body under another content type is ignored without an error.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

__all__ = ["Panic", "Query", "Refused", "bind", "encode_list", "encode_row", "select_rows"]

_encode: Final = msgspec.json.Encoder().encode
_KINDS: Final = {str: "string", bool: "bool", list: "array", dict: "object", int: "number", float: "number"}


class Refused(Exception):
    """The request is answered with an error document.

    Args:
        status: The HTTP status.
        message: The text of the document.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Panic(Exception):
    """The handler of the real server panics: 500 with an empty body, or, with `fatal`, the whole process dies."""

    def __init__(self, *, fatal: bool = False) -> None:
        super().__init__("panic")
        self.fatal = fatal


@dataclass(frozen=True, slots=True)
class Query:
    """The bound parameters of a request.

    Attributes:
        fields: Field names as sent.
        filters: Pairs of field name and value; None stands for a filter that is null.
        limit: The limit, 0 when absent.
    """

    fields: Sequence[str] = ()
    filters: Sequence[tuple[str, Any] | None] = ()
    limit: int = 0


@dataclass(slots=True)
class _Raw:
    fields: list[str] = field(default_factory=list)
    filters: list[tuple[str, Any] | None] = field(default_factory=list)
    limit: int = 0


def bind(method: str, content_type: str | None, query_string: str, body: bytes) -> Query:
    """Bind and validate the parameters of one request.

    Args:
        method: The HTTP method.
        content_type: The `Content-Type` header or None.
        query_string: The query as sent.
        body: The body as sent.

    Returns:
        What the handler works with.

    Raises:
        Refused: 422 with the server's text.
    """
    media = (content_type or "").split(";", 1)[0].strip().lower()
    if method == "POST" and media == "application/json":
        raw = _bind_json(body)
    else:
        pairs = parse_qsl(query_string, keep_blank_values=True)
        if method == "POST" and media == "application/x-www-form-urlencoded":
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True) + pairs
        raw = _bind_form(pairs)
    _validate(raw)
    return Query(tuple(raw.fields), tuple(raw.filters), raw.limit)


def parse_json(body: bytes) -> Any:
    """Decode a JSON body; an error has the words of the server's decoder.

    Raises:
        Refused: 422.
    """
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as problem:
        if problem.pos >= len(text.rstrip()) or _in_string(text, problem.pos):
            raise Refused(422, "unexpected EOF") from None
        found = text[problem.pos]
        raise Refused(422, f"invalid character '{found}' looking for beginning of value") from None


def _in_string(text: str, position: int) -> bool:
    """Say whether a document that is damaged at a position ends inside the string that begins there."""
    try:
        # Two quotes: a backslash at the end takes the first.
        json.loads(text + '""')
    except json.JSONDecodeError as problem:
        return problem.pos != position
    return True


def _no_constant(name: str) -> Any:
    raise Refused(422, f"invalid character '{name[0]}' looking for beginning of value")


def _member(document: Mapping[str, Any], name: str) -> Any:
    """Look a key up as the server's decoder does: exactly, else without regard to case."""
    if name in document:
        return document[name]
    return next((value for key, value in document.items() if key.lower() == name), None)


def _mismatch(value: Any, where: str, wanted: str) -> Refused:
    kind = _KINDS.get(type(value), "value")
    if isinstance(value, float):
        kind = f"number {value!r}"
    return Refused(422, f"json: cannot unmarshal {kind} into Go struct field {where} of type {wanted}")


def _bind_json(body: bytes) -> _Raw:
    raw = _Raw()
    if not body.strip():
        return raw
    document = parse_json(body)
    if document is None:
        return raw
    if not isinstance(document, dict):
        kind = _KINDS.get(type(document), "value")
        raise Refused(422, f"json: cannot unmarshal {kind} into Go value of type proxy.Model")
    fields, filters, limit = (_member(document, name) for name in ("fields", "filters", "limit"))
    if fields is not None:
        if not isinstance(fields, list):
            raise _mismatch(fields, "Model.fields", "[]string")
        for name in fields:
            if name is not None and not isinstance(name, str):
                raise _mismatch(name, "Model.fields", "string")
        raw.fields = ["" if name is None else name for name in fields]
    if filters is not None:
        if not isinstance(filters, list):
            raise _mismatch(filters, "Model.filters", "[]*httputil.Filter")
        raw.filters = [_bind_filter(item) for item in filters]
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise _mismatch(limit, "Model.limit", "int")
        raw.limit = limit
    return raw


def _bind_filter(item: Any) -> tuple[str, Any] | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise _mismatch(item, "Model.filters", "httputil.Filter")
    name = _member(item, "field")
    if name is not None and not isinstance(name, str):
        raise _mismatch(name, "Filter.filters.field", "string")
    return (name or "", _member(item, "value"))


def _bind_form(pairs: Iterable[tuple[str, str]]) -> _Raw:
    raw = _Raw()
    limit_seen = False
    for key, value in pairs:
        if key == "fields":
            raw.fields.append(value)
        elif key == "filters":
            raw.filters.append(_bind_filter(parse_json(value.encode())))
        elif key == "limit" and not limit_seen:
            limit_seen = True
            if value and not re.fullmatch(r"[+-]?\d+", value):
                raise Refused(422, f'strconv.ParseInt: parsing "{value}": invalid syntax')
            raw.limit = int(value or 0)
    return raw


def _validate(raw: _Raw) -> None:
    problems = []
    if len(raw.fields) > 255:
        problems.append(_failed("Fields", "max"))
    else:
        for number, name in enumerate(raw.fields):
            if not 1 <= len(name) <= 255:
                problems.append(_failed(f"Fields[{number}]", "min" if not name else "max"))
    if len(raw.filters) > 255:
        problems.append(_failed("Filters", "max"))
    if raw.limit > 100:
        problems.append(_failed("Limit", "max"))
    if problems:
        raise Refused(422, "\n".join(problems))


def _failed(name: str, tag: str) -> str:
    return f"Key: 'Model.{name}' Error:Field validation for '{name}' failed on the '{tag}' tag"


def select_rows(rows: Iterable[Mapping[str, Any]], query: Query, *, filtered: bool = True) -> list[Mapping[str, Any]]:
    """Select metadata rows as the object store's SQL does, quirks and all.

    A dotted field comes back under a flat key with `__` for each dot. A number filter means "greater than", except for
    `namespace.identifier`. Filters by bool, null, list or object are dropped.

    Args:
        rows: The stored records.
        query: Fields and filters.
        filtered: Whether filters count at all; for single items they do not.

    Returns:
        The rows.

    Raises:
        Panic: A filter is null.
        Refused: 400 for a field that is no path; 500 where the SQL breaks.
    """
    if filtered and any(item is None for item in query.filters):
        raise Panic
    tests = [_test(*item) for item in query.filters if item is not None and _kept(*item)] if filtered else []
    chosen = [row for row in rows if all(test(row) for test in tests)]
    if not query.fields or "*" in query.fields:
        return chosen
    paths = [_path(name) for name in query.fields]
    return [_project(row, paths) for row in chosen]


def _kept(name: str, value: Any) -> bool:
    return bool(name) and not isinstance(value, bool) and isinstance(value, (str, int, float))


def _path(name: str) -> list[str]:
    segments = name.split(".")
    if not all(segments):
        raise Refused(
            400,
            "ParseInvalidPathComponent: The SQL expression contains an invalid path component.\n"
            "\tstatus code: 400, request id: 5D3F1A9C0E7B2468, host id: ",
        )
    if '"' in name:
        raise _broken_sql()
    return segments


def _broken_sql() -> Refused:
    return Refused(
        500,
        "ParseUnexpectedToken: The SQL expression contains an unexpected token.\n"
        "\tstatus code: 400, request id: 5D3F1A9C0E7B2468, host id: ",
    )


def _look_up(row: Any, path: Sequence[str]) -> Any:
    for segment in path:
        if not isinstance(row, Mapping):
            return None
        row = row.get(segment)
    return row


def _test(name: str, value: str | float) -> Any:
    path = _path(name)
    if isinstance(value, str):
        if "'" in value:
            raise _broken_sql()
        return lambda row: _look_up(row, path) == value
    if "namespace.identifier" in name:
        wanted = int(value)
        return lambda row: _number(_look_up(row, path)) == wanted
    return lambda row: (found := _number(_look_up(row, path))) is not None and found > value


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else value


def _project(row: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    found = {}
    for path in paths:
        value = _look_up(row, path)
        if value is not None:
            found["__".join(path)] = value
    return found


def _exponents(value: Any) -> Any:
    """Write numbers with a fraction as the store's query engine does: `5551.221e0`."""
    if isinstance(value, float):
        return msgspec.Raw(str(int(value)).encode() if value.is_integer() else f"{value!r}e0".encode())
    if isinstance(value, dict):
        return {key: _exponents(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exponents(item) for item in value]
    return value


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Encode one selected row."""
    return _encode(_exponents(dict(row)))


def encode_list(rows: Iterable[bytes], kind: str) -> bytes:
    """Join encoded records: a JSON array, lines without a last line feed, or, for an unknown type, nothing between."""
    if kind == "application/json":
        return b"[" + b",".join(rows) + b"]"
    return (b"\n" if kind == "application/x-ndjson" else b"").join(rows)
