"""The request of a look-up, which is the same for many titles, and the decoding of its responses."""

import builtins
import contextlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from wme_async._query.backends import COMPUTED
from wme_async._query.query import Backend, Query, known_names
from wme_async._transport import Response
from wme_async._transport.error_responses import bare_url, error_in_place_of, is_error_document, server_message
from wme_async.errors import DecodeError
from wme_async.models import StructuredContent
from wme_async.models._tolerant import decode_record
from wme_async.models.decoding import decode_json, decoding

_PROJECT: Final = "is_part_of.identifier"
_LANGUAGE: Final = "in_language.identifier"
_DEFAULT_LIMIT: Final = 3
_MAX_LIMIT: Final = 10
_RAW_KEY: Final = b'"article_body":'


class LookupPlan(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """Everything that is the same for all titles of a look-up.

    Attributes:
        query: The checked query.
        body: The JSON of the request.
        decoder: Decodes one record.
        max_records: Records to return at most, if the request has to ask for more.
        adds_project: Whether the request asks for the project's identifier only to order the records.
        notes: Facts about the request beside those of the query.
        order: A function of a record, a dict of project identifiers and places, or None.
        uses_objects: Whether records are decoded to Python objects first, rather than straight into their type.
        accepts_raw: Whether the type shows that a record is an unstructured article, and no filter needs a field that
            only structured contents have.
    """

    query: Query
    body: bytes
    decoder: Any
    max_records: int | None
    adds_project: bool
    notes: tuple[str, ...]
    order: Any
    uses_objects: bool
    accepts_raw: bool


def plan_lookup(query: Query, order: Any) -> LookupPlan:
    """Plan the request of a query and the decoding of its responses.

    Args:
        query: The query.
        order: Of the records: `"project"`, project identifiers, a function of a record, or None for the server's.

    Raises:
        ValueError: The order has another value.
    """
    # A query often serves one title after the other, and is the same object then.
    return _cached_plan(query, order) if order is None or isinstance(order, str) else _build_plan(query, order)


def _build_plan(query: Query, order: Any) -> LookupPlan:
    order = _check_order(order)
    body = query.body()
    notes = []
    max_records = _max_records(query)
    if max_records is not None:
        body["limit"] = _MAX_LIMIT
        notes.append(
            f"sent: instead, limit {_MAX_LIMIT}, so that the records of all projects of the language can be compared; "
            f"here: the first {max_records}"
        )
    names: list[str] = body.get("fields") or []
    structured = query.backend is Backend.STRUCTURED
    if names and structured:
        # The server ignores unknown fields, and whether it knows a part of a field has never been seen. The response
        # to whole fields, reduced here, is the same and certain.
        whole_names = [*dict.fromkeys(name.partition(".")[0] for name in names)]
        if whole_names != names:
            notes.append(f"sent: instead, whole fields {', '.join(whole_names)}; here: reduced")
        names = body["fields"] = whole_names
    one_project = query.limit == 1 or any(
        part.field == _PROJECT and part.local_reason is None for part in query.conditions
    )
    by_project = isinstance(order, dict) and not (one_project and max_records is None)
    adds_project = by_project and names != [] and not {"is_part_of", "is_part_of.*", _PROJECT}.intersection(names)
    if adds_project:
        project = "is_part_of" if structured else _PROJECT
        body["fields"] = [*names, project]
        notes.append(f"sent: field {project} besides, for the order of records; here: left out again")
    return LookupPlan(
        query=query,
        body=msgspec.json.encode(body),
        decoder=_decoder(query.result),
        max_records=max_records,
        adds_project=adds_project,
        notes=tuple(notes),
        order=order,
        uses_objects=adds_project or query.reshapes or query.selects,
        accepts_raw=isinstance(query.result, builtins.type)
        and issubclass(query.result, StructuredContent)
        and not any(part.field.partition(".")[0] in COMPUTED for part in query.conditions),
    )


_cached_plan: Final = lru_cache(maxsize=256)(_build_plan)


def _max_records(query: Query) -> int | None:
    """Return how many records to return if the request has to ask for more; None if the server's limit is right.

    The server picks `limit` records by project and language alone, and compares other fields afterwards: the response
    lacks the records that it picked and then rejected, although others would have matched.

    Raises:
        ValueError: The server could pick from too many records.
    """
    names = {part.field for part in query.conditions}
    compared_later = sorted(names - {_PROJECT, _LANGUAGE})
    if not compared_later or _PROJECT in names:
        return None
    if _LANGUAGE not in names:
        raise ValueError(
            f"a filter by {', '.join(compared_later)} alone gives wrong results: the server picks some of all projects "
            f"that have the title before it compares. Filter by {_PROJECT!r} or {_LANGUAGE!r} too"
        )
    # No language has more projects than the highest limit.
    return query.limit or _DEFAULT_LIMIT


def _check_order(order: Any) -> Any:
    """Return an order in the form of `LookupPlan.order`."""
    if order is None or callable(order):
        return order
    if order == "project":
        return {}
    message = f'order is "project", a list of project identifiers, a function or None, not {order!r}'
    if not isinstance(order, Iterable):
        raise TypeError(message)
    identifiers = list(order)
    if isinstance(order, str | bytes) or not all(isinstance(identifier, str) for identifier in identifiers):
        raise ValueError(message)
    return {identifier: place for place, identifier in enumerate(identifiers)}


class _Project(msgspec.Struct, frozen=True):
    identifier: str = ""


class _RecordProject(msgspec.Struct, frozen=True):
    is_part_of: _Project = _Project()


_project_decoder: Final = msgspec.json.Decoder(_RecordProject)
_array_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read_response(response: Response, plan: LookupPlan) -> tuple[list[Any], DecodeError | None]:
    """Return the records of a response in their order, and the error of its first bad record."""
    error: DecodeError | None = None
    pairs: list[tuple[bytes, Any]] = []
    for number, line in enumerate(_split(response.body), 1):
        try:
            with decoding(line):
                record = _decode(line, plan)
        except DecodeError as cause:
            error = error or _record_error(response, line, number, cause.message)
        else:
            if record is not None:
                pairs.append((line, record))
    if len(pairs) > 1 and plan.order is not None:
        pairs.sort(key=lambda pair: _sort_key(pair, plan.order))
    records = [record for _, record in pairs[: plan.max_records]]
    if error is not None:
        error.records = tuple(records)
    return records, error


def _split(body: bytes) -> list[bytes]:
    """Split a response into records: lines as requested, or else a JSON array."""
    if body[:1] == b"[":
        with contextlib.suppress(DecodeError):
            return [bytes(row) for row in decode_json(body, _array_decoder)]
    elif b"\n" in body:
        return [line for line in body.split(b"\n") if line.strip()]
    return [body] if body else []


def _decode(line: bytes, plan: LookupPlan) -> Any:
    """Return a record, or None if a local filter drops it."""
    query = plan.query
    if is_error_document(line, known_names(query.model)):
        raise DecodeError(error_in_place_of("a record", line))
    raw = query.backend is Backend.STRUCTURED and _RAW_KEY in line
    if raw and not plan.accepts_raw:
        raise DecodeError("the unstructured article was sent in place of structured contents; look it up again")
    row = msgspec.json.decode(line) if plan.uses_objects else None
    if not isinstance(row, dict):
        return decode_record(plan.decoder, line)
    # The project goes before the query adds empty objects that the type requires.
    selection = query.apply(_without_project(row, query) if plan.adds_project else row)
    if selection is None:
        return None
    if raw:
        # This field shows that the record is not structured, whether the query asks for it or not.
        selection = {**selection, "article_body": row["article_body"]}
    return decode_record(plan.decoder, msgspec.json.encode(selection))


def _without_project(row: dict[str, Any], query: Query) -> dict[str, Any]:
    """Return a record without the field that the request added for the order."""
    record = {key: value for key, value in row.items() if key != "is_part_of"}
    project = row.get("is_part_of")
    if isinstance(project, dict) and any(name.startswith("is_part_of.") for name in query.fields or ()):
        others = {key: value for key, value in project.items() if key != "identifier"}
        if others:
            record["is_part_of"] = others
    return record


def _sort_key(pair: tuple[bytes, Any], order: Any) -> Any:
    line, record = pair
    if callable(order):
        return order(record)
    try:
        project = decode_json(line, _project_decoder).is_part_of.identifier
    except DecodeError:
        project = ""
    return (order.get(project, len(order)), project.encode())


def _record_error(response: Response, line: bytes, number: int, reason: str) -> DecodeError:
    url = bare_url(response.url)
    if line.lstrip()[:1] == b"<":
        reason = server_message(line)
    return DecodeError(f"record {number} of {url} is malformed: {reason}", url=url, line=number, record=line)


@lru_cache(maxsize=256)
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)
