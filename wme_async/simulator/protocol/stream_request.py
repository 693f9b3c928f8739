"""What the stream's server makes of a request: binding, the checks in their order, and the exact texts."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from wme_async.simulator.protocol.schema import ARTICLE, Node

__all__ = ["Accepted", "Refused", "bind_stream_request", "check_stream_request"]

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:(Z)|([+-])(\d\d):(\d\d))", re.ASCII
)
_ZERO_TIME: Final = -62_135_596_800_000  # milliseconds; the first instant of year 1 counts as "not given"
_INT: Final = re.compile(r"[+-]?\d+", re.ASCII)
# Bodies of these types are not read as JSON, so the stream is unfiltered; that of the first is read as a form.
_UNREAD_BODIES: Final = {"application/x-www-form-urlencoded", "multipart/form-data", "application/xml", "text/xml"}
_KEYS: Final = ("since", "fields", "filters", "parts", "offsets", "since_per_partition")


@dataclass(frozen=True)
class Refused:
    """An error answer: `status` and the `text` of its message; the 500 of a crash has no text and no body."""

    status: int
    text: str


@dataclass(frozen=True)
class Accepted:
    """A request that will stream, after the server dropped what it drops in silence.

    Attributes:
        fields: The fields asked for; empty means all.
        filters: Field and value; of two filters on one field the last has won.
        parts: The parts asked for.
        partitions: The partitions that will be read, twice where a part was given twice.
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
        """Tell where a partition starts: ("time", milliseconds), ("offset", number) or ("live", 0)."""
        if self.since is not None:
            return "time", self.since
        if partition in self.since_per_partition:
            return "time", self.since_per_partition[partition]
        if partition in self.offsets:
            return "offset", self.offsets[partition]
        return "live", 0


class _Bad(Exception):
    """Carries the text of a refusal out of nested decoding."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status = status


def bind_stream_request(method: str, query: str, content_type: str, body: bytes) -> dict[str, Any] | Refused:
    """Read the parameters of a request as the server does.

    Query parameters are read unless a POST says JSON; then a JSON body is read whatever its Content-Type, also on a
    GET. A POST that says it is a form has its body read as a form, so JSON in it is lost without an error.

    Args:
        method: GET or POST.
        query: The raw query string.
        content_type: The header's value, or "".
        body: The body.

    Returns:
        The parameters in JSON's shape, unchecked; or the refusal of a body that is no JSON.
    """
    kind = content_type.partition(";")[0].strip().lower()
    posted = method.upper() == "POST"
    model: dict[str, Any] = {}
    try:
        if not (posted and kind == "application/json"):
            form = query
            if posted and kind in _UNREAD_BODIES:
                if kind == "application/x-www-form-urlencoded":
                    form = f"{body.decode('utf-8', 'replace')}&{query}"
                body = b""
            model.update(_form(parse_qs(form, keep_blank_values=True)))
        if body.strip():
            given = _json(body)
            if given is None:
                given = {}
            if not isinstance(given, dict):
                return Refused(422, f"json: cannot unmarshal {_kind(given)} into Go value of type articles.Model")
            for key, value in given.items():
                if value is not None and key.lower() in _KEYS:
                    old = model.get(key.lower())
                    merged = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
                    model[key.lower()] = merged
    except _Bad as bad:
        return Refused(bad.status, str(bad))
    return model


def _form(form: Mapping[str, list[str]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if form.get("since", [""])[0]:
        out["since"] = form["since"][0]
    if "fields" in form:
        out["fields"] = form["fields"]
    if "parts" in form:
        out["parts"] = [_number(text) for text in form["parts"]]
    if "filters" in form:
        out["filters"] = [_json(text.encode()) for text in form["filters"]]
    for name in ("offsets", "since_per_partition"):
        if form.get(name, [""])[0]:
            out[name] = _json(form[name][0].encode())
    return out


def _number(text: str) -> int:
    if not text:
        return 0
    if not _INT.fullmatch(text):
        raise _Bad(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        pass
    text = data.decode("utf-8", "replace").lstrip()
    try:
        # Whatever follows the first value is ignored.
        return json.JSONDecoder(parse_constant=_reject_constant).raw_decode(text)[0]
    except (ValueError, RecursionError):
        pass
    if text[:1] not in {"{", "[", '"', "t", "f", "n", "-"} and not text[:1].isdigit():
        raise _Bad(f"invalid character '{text[:1]}' looking for beginning of value")
    raise _Bad("unexpected EOF")


def _reject_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def check_stream_request(
    model: Mapping[str, Any], *, now: float, schema: Node = ARTICLE, partitions: int = 50, parts: int = 10
) -> Accepted | Refused:
    """Check a request in the server's own order, and prune it as the server does.

    Offsets and times of partitions outside the requested parts are dropped without an error. Without parts that means
    all of them: such a request streams live.

    Args:
        model: The parameters in JSON's shape: since, fields, filters, parts, offsets, since_per_partition.
        now: The server's time, seconds since 1970.
        schema: The fields that the stream knows.
        partitions: How many partitions there are.
        parts: How many parts they are dealt into.

    Returns:
        What will be streamed, or the error answer.
    """
    try:
        return _check(model, int(now * 1000), schema, partitions, parts)
    except _Bad as bad:
        return Refused(bad.status, str(bad))


def _check(model: Mapping[str, Any], now: int, schema: Node, partitions: int, max_parts: int) -> Accepted:
    decoded = _decode(model)
    since = decoded["since"]
    if since == _ZERO_TIME:
        since = None
    fields, filters, parts = decoded["fields"], decoded["filters"], decoded["parts"]
    offsets, times = decoded["offsets"], decoded["since_per_partition"]
    _check_binding(fields, filters)
    for name in fields:
        _check_field(schema, name)
    for name, value in filters:
        _check_filter(schema, name, value)
    if since is not None and since > now:
        raise _Bad(f"since time {_seconds(since)} cannot be in the future")
    for partition, moment in times.items():
        if moment > now:
            raise _Bad(f"since_per_partition for partition {partition} has future time {_seconds(moment)}")
    if parts:
        _check_parts(parts, max_parts, since)
    per_part = partitions // max_parts
    chosen = [p for part in parts for p in range(part * per_part, (part + 1) * per_part)]
    for key, given in (("offsets", offsets), ("since_per_partition", times)):
        if len(given) > partitions:
            raise _Bad(f"the query param {key} has length {len(given)}, max allowed length {partitions}")
    offsets = {partition: value for partition, value in offsets.items() if partition in chosen}
    times = {partition: value for partition, value in times.items() if partition in chosen}
    if offsets.keys() & times.keys():
        raise _Bad("for a specific partion, specify either offset or time-offset (since_per_partition), not both")
    return Accepted(
        fields=tuple(fields),
        filters=dict(filters),
        parts=tuple(parts),
        partitions=tuple(chosen) if parts else tuple(range(partitions)),
        since=since,
        offsets=offsets,
        since_per_partition=times,
    )


def _decode(model: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the parameters in the order of the body: of two wrong ones the first is reported."""
    decoders: dict[str, Callable[[], Any]] = {
        "since": lambda: _time(model["since"]) if model.get("since") is not None else None,
        "fields": lambda: [_typed(item, str, "fields", "string") for item in _list(model, "fields", "[]string")],
        "filters": lambda: [_filter(item) for item in _list(model, "filters", "[]resolver.RequestFilter")],
        "parts": lambda: [_typed(item, int, "parts", "int") for item in _list(model, "parts", "[]int")],
        "offsets": lambda: _map(
            model, "offsets", "map[int]int64", lambda value: _typed(value, int, "offsets", "int64")
        ),
        "since_per_partition": lambda: _map(model, "since_per_partition", "map[int]time.Time", _time),
    }
    order = dict.fromkeys([*(key for key in model if key in decoders), *decoders])
    return {key: decoders[key]() for key in order}


def _check_binding(fields: list[str], filters: list[tuple[str, Any]]) -> None:
    failed = []
    if len(fields) > 255:
        failed.append(("Fields", "Fields", "max"))
    else:
        for number, name in enumerate(fields):
            if not 1 <= len(name) <= 255:
                failed.append((f"Fields[{number}]", f"Fields[{number}]", "max" if name else "min"))
    if len(filters) > 255:
        failed.append(("Filters", "Filters", "max"))
    if failed:
        raise _Bad(
            "\n".join(
                f"Key: 'Model.{key}' Error:Field validation for '{name}' failed on the '{tag}' tag"
                for key, name, tag in failed
            )
        )


def _check_field(schema: Node, name: str) -> None:
    plain = name.removesuffix(".*")
    found = schema.find(plain)
    if found is None:
        raise _Bad(f"field with name '{name}' not found")
    if isinstance(found, Node) and plain == name:
        raise _Bad(f"use wildcard '{name}.*' to select all fields from the object")  # noqa: S608 - no SQL: a message


def _check_filter(schema: Node, name: str, value: Any) -> None:
    found = schema.find(name)
    if found is None:
        raise _Bad(f"there is no such field '{name}' to filter")
    if isinstance(found, Node):
        raise _Bad(f"can't filter on a '{name}' object")
    if value is None:
        raise _Bad("", status=500)  # the server crashes on it and answers with nothing
    if isinstance(value, bool):
        kind, fits = "bool", {"bool"}
    elif isinstance(value, (int, float)):
        kind, fits = "float64", {"int", "float"}
    elif isinstance(value, str):
        kind, fits = "string", {"string"}
    else:
        kind, fits = ("slice" if isinstance(value, list) else "map"), set[str]()
    if found.kind not in fits:
        raise _Bad(f"the filter '{name}' should not be of type '{kind}'")


def _check_parts(parts: list[int], max_parts: int, since: int | None) -> None:
    if len(parts) > max_parts:
        raise _Bad(f"the query param parts has length {len(parts)}, max allowed length {max_parts}")
    for part in parts:
        if not 0 <= part < max_parts:
            raise _Bad(f"the part value is {part}, allowed value should be in the range [0,{max_parts - 1}]")
    if since is not None:
        raise _Bad("for parallel consumption, specify either offsets or time-offsets (since_per_partition) parameter")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _list(model: Mapping[str, Any], key: str, kind: str) -> list[Any]:
    value = model.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise _Bad(f"json: cannot unmarshal {_kind(value)} into Go struct field Model.{key} of type {kind}")
    return list(value)


def _typed(value: Any, kind: type, key: str, name: str) -> Any:
    if value is None:
        return kind()
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    said = f"number {value}" if kind is int and isinstance(value, float) else _kind(value)
    raise _Bad(f"json: cannot unmarshal {said} into Go struct field Model.{key} of type {name}")


def _filter(value: Any) -> tuple[str, Any]:
    if not isinstance(value, dict):
        if value is None:
            return "", None
        raise _Bad(
            f"json: cannot unmarshal {_kind(value)} into Go struct field Model.filters of type resolver.RequestFilter"
        )
    lowered = {key.lower(): item for key, item in value.items()}
    return _typed(lowered.get("field"), str, "filters.field", "string"), lowered.get("value")


def _map(model: Mapping[str, Any], key: str, kind: str, read: Callable[[Any], int]) -> dict[int, int]:
    value = model.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _Bad(f"json: cannot unmarshal {_kind(value)} into Go struct field Model.{key} of type {kind}")
    out: dict[int, int] = {}
    for name, item in value.items():
        if not isinstance(name, int) and not _INT.fullmatch(name):
            raise _Bad(f"json: cannot unmarshal number {name} into Go struct field Model.{key} of type int")
        out[int(name)] = read(item)
    return out


def _time(value: Any) -> int:
    if value is None:
        return _ZERO_TIME
    if not isinstance(value, str):
        raise _Bad("Time.UnmarshalJSON: input is not a JSON string")
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise _Bad(f'parsing time "\\"{value}\\"" as "\\"2006-01-02T15:04:05Z07:00\\"": cannot parse')
    year, month, day, hour, minute, second = (int(match[n]) for n in range(1, 7))
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise _Bad(f'parsing time "\\"{value}\\"": day out of range') from None
    shift = 0 if match[8] else (int(match[10]) * 60 + int(match[11])) * (-60 if match[9] == "-" else 60)
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) - shift
    return seconds * 1000 + int((match[7] or "").ljust(3, "0")[:3])


def _seconds(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
