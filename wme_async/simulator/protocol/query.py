"""Fields, filters and limit of a request to the main host: binding, validation, and the metadata back end's select.

The main host binds a JSON body only for POST with a JSON content type; everything else is read as a form, so a JSON
body under another content type is ignored without an error.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from wme_async.simulator.errors import HTTPError, Panic
from wme_async.simulator.protocol.go import length_errors, typed, unmarshal_error

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Query:
    """The bound parameters of a request.

    Attributes:
        fields: Field names as sent.
        filters: Pairs of field name and value; None is a filter that is null.
        limit: The limit, 0 when absent.
    """

    fields: Sequence[str] = ()
    filters: Sequence[tuple[str, Any] | None] = ()
    limit: int = 0


def bind(method: str, content_type: str | None, query_string: str, body: bytes) -> Query:
    """Bind and validate the parameters of one request.

    Args:
        method: The HTTP method.
        content_type: The `Content-Type` header or None.
        query_string: The query as sent.
        body: The body as sent.

    Returns:
        The parameters.

    Raises:
        HTTPError: 422 with the text of the server.
    """
    media_type = (content_type or "").split(";", 1)[0].strip().lower()
    if method == "POST" and media_type == "application/json":
        query = _bind_json(body)
    else:
        pairs = parse_qsl(query_string, keep_blank_values=True)
        if method == "POST" and media_type == "application/x-www-form-urlencoded":
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True) + pairs
        query = _bind_form(pairs)
    errors = length_errors(query.fields, query.filters, query.limit)
    if errors:
        raise HTTPError(422, errors)
    return query


def parse_json(body: bytes) -> Any:
    """Decode a JSON body; an error has the words of the server's decoder.

    Raises:
        HTTPError: 422.
    """
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as problem:
        if problem.pos >= len(text.rstrip()) or _in_string(text, problem.pos):
            raise HTTPError(422, "unexpected EOF") from None
        raise HTTPError(422, f"invalid character '{text[problem.pos]}' looking for beginning of value") from None


def _in_string(text: str, position: int) -> bool:
    """Say whether a document that is damaged at a position ends inside the string that begins there."""
    try:
        # Two quotes: a backslash at the end takes the first.
        json.loads(text + '""')
    except json.JSONDecodeError as problem:
        return problem.pos != position
    return True


def _no_constant(name: str) -> Any:
    raise HTTPError(422, f"invalid character '{name[0]}' looking for beginning of value")


def _member(document: Mapping[str, Any], name: str) -> Any:
    """Look a key up as the server's decoder does: exactly, else without regard to case."""
    if name in document:
        return document[name]
    return next((value for key, value in document.items() if key.lower() == name), None)


def _bind_json(body: bytes) -> Query:
    document = parse_json(body) if body.strip() else None
    if document is None:
        return Query()
    if not isinstance(document, dict):
        raise HTTPError(422, unmarshal_error(document, "value of type proxy.Model"))
    fields, filters, limit = (_member(document, name) for name in ("fields", "filters", "limit"))
    names = typed(fields, (list,), "Model.fields", "[]string") or []
    items = typed(filters, (list,), "Model.filters", "[]*httputil.Filter") or []
    return Query(
        [typed(name, (str,), "Model.fields", "string") or "" for name in names],
        [_bind_filter(item) for item in items],
        typed(limit, (int,), "Model.limit", "int") or 0,
    )


def _bind_filter(item: Any) -> tuple[str, Any] | None:
    if typed(item, (dict,), "Model.filters", "httputil.Filter") is None:
        return None
    return typed(_member(item, "field"), (str,), "Filter.filters.field", "string") or "", _member(item, "value")


def _bind_form(pairs: Iterable[tuple[str, str]]) -> Query:
    values: dict[str, list[str]] = {"fields": [], "filters": [], "limit": []}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    filters = [_bind_filter(parse_json(value.encode())) for value in values["filters"]]
    limit = (values["limit"] or ["0"])[0] or "0"
    if not re.fullmatch(r"[+-]?\d+", limit):
        raise HTTPError(422, f'strconv.ParseInt: parsing "{limit}": invalid syntax')
    return Query(values["fields"], filters, int(limit))


def select_rows(rows: Iterable[Mapping[str, Any]], query: Query, *, filtered: bool = True) -> list[Mapping[str, Any]]:
    """Select metadata rows as the object store's SQL does, quirks and all.

    A dotted field comes back under a flat key with `__` for each dot. A number filter means "greater than", except for
    `namespace.identifier`. Filters by bool, null, list or object are dropped.

    Args:
        rows: The stored records.
        query: Fields and filters.
        filtered: Whether filters apply; they do not for single items.

    Returns:
        The rows.

    Raises:
        Panic: A filter is null.
        HTTPError: 400 for a field that is not a path; 500 for a value that breaks the SQL.
    """
    if filtered and any(item is None for item in query.filters):
        raise Panic
    items = [item for item in query.filters if item is not None] if filtered else []
    # A filter by a name or a value that is neither text nor a number is ignored.
    tests = [_test(name, value) for name, value in items if name and type(value) in {str, int, float}]
    selected = [row for row in rows if all(test(row) for test in tests)]
    if not query.fields or "*" in query.fields:
        return selected
    paths = [_path(name) for name in query.fields]
    return [_project(row, paths) for row in selected]


def _path(name: str) -> list[str]:
    segments = name.split(".")
    if not all(segments):
        raise HTTPError(
            400,
            "ParseInvalidPathComponent: The SQL expression contains an invalid path component.\n"
            "\tstatus code: 400, request id: 5D3F1A9C0E7B2468, host id: ",
        )
    if '"' in name:
        raise _broken_sql()
    return segments


def _broken_sql() -> HTTPError:
    return HTTPError(
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
        identifier = int(value)
        return lambda row: _number(_look_up(row, path)) == identifier
    return lambda row: (number := _number(_look_up(row, path))) is not None and number > value


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else value


def _project(row: Mapping[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    values = {"__".join(path): _look_up(row, path) for path in paths}
    return {key: value for key, value in values.items() if value is not None}


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
