"""Requests to a stream: binding, the checks of the server in their order, and their exact texts."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from wme_async.simulator.errors import HTTPError
from wme_async.simulator.protocol.go import length_errors, typed, unmarshal_error
from wme_async.simulator.protocol.schema import ARTICLE, Node

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:(Z)|([+-])(\d\d):(\d\d))", re.ASCII
)
_ZERO_TIME: Final = -62_135_596_800_000  # milliseconds; the first instant of year 1 counts as absent
_INT: Final = re.compile(r"[+-]?\d+", re.ASCII)
# Bodies of these types are not read as JSON, so the stream is unfiltered; that of the first is read as a form.
_UNREAD_BODIES: Final = {"application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "text/xml"}
_KEYS: Final = ("since", "fields", "filters", "parts", "offsets", "since_per_partition")


@dataclass(frozen=True)
class Refused:
    """An error response: `status` and the `text` of its message; the 500 of a crash has neither text nor body."""

    status: int
    text: str


@dataclass(frozen=True)
class Accepted:
    """A request that will stream, without the parameters that the server drops silently.

    Attributes:
        fields: The requested fields; empty means all.
        filters: Field and value; of two filters on one field the last one applies.
        parts: The requested parts.
        partitions: The partitions to read, twice if a part was requested twice.
        since: Milliseconds since 1970, or None.
        offsets: Start offsets of partitions that are read.
        since_per_partition: Start times of partitions that are read, in milliseconds since 1970.
    """

    fields: tuple[str, ...] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[int, ...] = ()
    partitions: tuple[int, ...] = ()
    since: int | None = None
    offsets: Mapping[int, int] = field(default_factory=dict)
    since_per_partition: Mapping[int, int] = field(default_factory=dict)

    def start(self, partition: int) -> tuple[str, int]:
        """Return the start of a partition: ("time", milliseconds), ("offset", number) or ("live", 0)."""
        if self.since is not None:
            return "time", self.since
        if partition in self.since_per_partition:
            return "time", self.since_per_partition[partition]
        if partition in self.offsets:
            return "offset", self.offsets[partition]
        return "live", 0


def bind_stream_request(method: str, query: str, content_type: str, body: bytes) -> dict[str, Any]:
    """Read the parameters of a request as the server does.

    Query parameters are read unless a POST says JSON; then a JSON body is read whatever its Content-Type, also on a
    GET. A POST that says it is a form has its body read as a form, so JSON in it is lost without an error.

    Args:
        method: GET or POST.
        query: The raw query string.
        content_type: The header's value, or "".
        body: The body.

    Returns:
        The parameters in JSON's shape, unchecked.

    Raises:
        HTTPError: The body is not JSON.
    """
    kind = content_type.partition(";")[0].strip().lower()
    posted = method.upper() == "POST"
    model: dict[str, Any] = {}
    if not (posted and kind == "application/json"):
        form = query
        if posted and kind in _UNREAD_BODIES:
            if kind == "application/x-www-form-urlencoded":
                form = f"{body.decode('utf-8', 'replace')}&{query}"
            body = b""
        model.update(_form(parse_qs(form, keep_blank_values=True)))
    document = _json(body) if body.strip() else {}
    if not isinstance(document, dict | None):
        raise _invalid(unmarshal_error(document, "value of type articles.Model"))
    for key, value in (document or {}).items():
        name = key.lower()
        if value is not None and name in _KEYS:
            previous = model.get(name)
            model[name] = {**previous, **value} if isinstance(previous, dict) and isinstance(value, dict) else value
    return model


def _form(form: Mapping[str, list[str]]) -> dict[str, Any]:
    model: dict[str, Any] = {"since": form["since"][0]} if form.get("since", [""])[0] else {}
    if "fields" in form:
        model["fields"] = form["fields"]
    if "parts" in form:
        model["parts"] = [_number(text) for text in form["parts"]]
    if "filters" in form:
        model["filters"] = [_json(text.encode()) for text in form["filters"]]
    for name in ("offsets", "since_per_partition"):
        if text := form.get(name, [""])[0]:
            model[name] = _json(text.encode())
    return model


def _invalid(text: str) -> HTTPError:
    return HTTPError(422, text)


def _number(text: str) -> int:
    if not text:
        return 0
    if not _INT.fullmatch(text):
        raise _invalid(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _json(data: bytes) -> Any:
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(data)
    text = data.decode("utf-8", "replace").lstrip()
    with contextlib.suppress(ValueError, RecursionError):
        # Whatever follows the first value is ignored.
        return json.JSONDecoder(parse_constant=_reject_constant).raw_decode(text)[0]
    if text[:1] not in {"{", "[", '"', "t", "f", "n", "-"} and not text[:1].isdigit():
        raise _invalid(f"invalid character '{text[:1]}' looking for beginning of value")
    raise _invalid("unexpected EOF")


def _reject_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def check_stream_request(
    model: Mapping[str, Any], *, now: float, schema: Node = ARTICLE, partitions: int = 50, parts: int = 10
) -> Accepted | Refused:
    """Check a request in the order of the server, and prune it as the server does.

    Offsets and times of partitions outside the requested parts are dropped without an error. Without parts that means
    all of them: such a request streams live.

    Args:
        model: The parameters in JSON's shape: since, fields, filters, parts, offsets, since_per_partition.
        now: The server's time, seconds since 1970.
        schema: The fields that the stream knows.
        partitions: How many partitions there are.
        parts: How many parts they are dealt into.

    Returns:
        The request that will stream, or the error response.
    """
    try:
        return prune_stream_request(model, now, schema, partitions, parts)
    except HTTPError as error:
        return Refused(error.status, error.message)


def prune_stream_request(
    model: Mapping[str, Any], now: float, schema: Node, partitions: int, max_parts: int
) -> Accepted:
    """Check and prune as `check_stream_request` does, and raise an `HTTPError` in place of an error response."""
    values = _decode(model)
    since = None if values["since"] == _ZERO_TIME else values["since"]
    fields, filters, parts = values["fields"], values["filters"], values["parts"]
    maps = {name: values[name] for name in ("offsets", "since_per_partition")}
    if errors := length_errors(fields, filters):
        raise _invalid(errors)
    for name in fields:
        _check_field(schema, name)
    for name, value in filters:
        _check_filter(schema, name, value)
    if since is not None and since > int(now * 1000):
        raise _invalid(f"since time {_seconds(since)} cannot be in the future")
    for partition, moment in maps["since_per_partition"].items():
        if moment > int(now * 1000):
            raise _invalid(f"since_per_partition for partition {partition} has future time {_seconds(moment)}")
    if parts:
        _check_parts(parts, max_parts, since)
    size = partitions // max_parts
    selected = [p for part in parts for p in range(part * size, (part + 1) * size)]
    for name, starts in maps.items():
        if len(starts) > partitions:
            raise _invalid(f"the query param {name} has length {len(starts)}, max allowed length {partitions}")
        maps[name] = {partition: value for partition, value in starts.items() if partition in selected}
    if maps["offsets"].keys() & maps["since_per_partition"].keys():
        raise _invalid("for a specific partion, specify either offset or time-offset (since_per_partition), not both")
    chosen = tuple(selected) if parts else tuple(range(partitions))
    return Accepted(tuple(fields), dict(filters), tuple(parts), chosen, since, **maps)


def _decode(model: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the parameters in the order of the body: of two wrong ones the first is reported."""
    decoders: dict[str, Callable[[], Any]] = {
        "since": lambda: _time(model["since"]) if model.get("since") is not None else None,
        "fields": lambda: [
            typed(item, (str,), "Model.fields", "string") or "" for item in _list(model, "fields", "[]string")
        ],
        "filters": lambda: [_filter(item) for item in _list(model, "filters", "[]resolver.RequestFilter")],
        "parts": lambda: [typed(item, (int,), "Model.parts", "int") or 0 for item in _list(model, "parts", "[]int")],
        "offsets": lambda: _map(
            model, "offsets", "map[int]int64", lambda value: typed(value, (int,), "Model.offsets", "int64") or 0
        ),
        "since_per_partition": lambda: _map(model, "since_per_partition", "map[int]time.Time", _time),
    }
    order = dict.fromkeys([*(key for key in model if key in decoders), *decoders])
    return {key: decoders[key]() for key in order}


def _check_field(schema: Node, name: str) -> None:
    path = name.removesuffix(".*")
    field = schema.find(path)
    if field is None:
        raise _invalid(f"field with name '{name}' not found")
    if isinstance(field, Node) and path == name:
        raise _invalid(f"use wildcard '{name}.*' to select all fields from the object")  # noqa: S608 - no SQL: a message


_FILTER_TYPES: Final = (
    (bool, "bool", {"bool"}),
    ((int, float), "float64", {"int", "float"}),
    (str, "string", {"string"}),
    (list, "slice", set[str]()),
    (object, "map", set[str]()),
)
"""For each type of a value its name in Go, and the kinds of fields that it fits."""


def _check_filter(schema: Node, name: str, value: Any) -> None:
    field = schema.find(name)
    if field is None:
        raise _invalid(f"there is no such field '{name}' to filter")
    if isinstance(field, Node):
        raise _invalid(f"can't filter on a '{name}' object")
    if value is None:
        raise HTTPError(500, "")  # the server crashes on it and answers without a body
    go_type, kinds = next(row[1:] for row in _FILTER_TYPES if isinstance(value, row[0]))
    if field.kind not in kinds:
        raise _invalid(f"the filter '{name}' should not be of type '{go_type}'")


def _check_parts(parts: list[int], max_parts: int, since: int | None) -> None:
    if len(parts) > max_parts:
        raise _invalid(f"the query param parts has length {len(parts)}, max allowed length {max_parts}")
    for part in parts:
        if not 0 <= part < max_parts:
            raise _invalid(f"the part value is {part}, allowed value should be in the range [0,{max_parts - 1}]")
    if since is not None:
        raise _invalid(
            "for parallel consumption, specify either offsets or time-offsets (since_per_partition) parameter"
        )


def _list(model: Mapping[str, Any], key: str, go_type: str) -> list[Any]:
    return list(typed(model.get(key), (list, tuple), f"Model.{key}", go_type) or ())


def _filter(value: Any) -> tuple[str, Any]:
    item = typed(value, (dict,), "Model.filters", "resolver.RequestFilter") or {}
    lowered = {key.lower(): part for key, part in item.items()}
    return typed(lowered.get("field"), (str,), "Model.filters.field", "string") or "", lowered.get("value")


def _map(model: Mapping[str, Any], key: str, go_type: str, read: Callable[[Any], int]) -> dict[int, int]:
    items = typed(model.get(key), (dict,), f"Model.{key}", go_type) or {}
    numbers: dict[int, int] = {}
    for name, item in items.items():
        if not isinstance(name, int) and not _INT.fullmatch(name):
            raise _invalid(f"json: cannot unmarshal number {name} into Go struct field Model.{key} of type int")
        numbers[int(name)] = read(item)
    return numbers


def _time(value: Any) -> int:
    if value is None:
        return _ZERO_TIME
    if not isinstance(value, str):
        raise _invalid("Time.UnmarshalJSON: input is not a JSON string")
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise _invalid(f'parsing time "\\"{value}\\"" as "\\"2006-01-02T15:04:05Z07:00\\"": cannot parse')
    year, month, day, hour, minute, second = (int(match[n]) for n in range(1, 7))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _invalid(f'parsing time "\\"{value}\\"": day out of range') from None
    shift = 0 if match[8] else (int(match[10]) * 60 + int(match[11])) * (-60 if match[9] == "-" else 60)
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) - shift
    return seconds * 1000 + int((match[7] or "").ljust(3, "0")[:3])


def _seconds(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
