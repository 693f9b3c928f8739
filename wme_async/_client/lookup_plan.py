"""One question put to many titles: what is sent for it, and how its answers are read."""

import builtins
from collections.abc import Iterable, Sequence
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

__all__ = ["LookupPlan", "plan_lookup", "read_response"]

_PROJECT: Final = "is_part_of.identifier"
_LANGUAGE: Final = "in_language.identifier"
_DEFAULT_LIMIT: Final = 3
_MOST: Final = 10
_RAW_KEY: Final = b'"article_body":'


class LookupPlan(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What is the same for all names of a job.

    Attributes:
        query: What is asked.
        body: What is sent.
        decoder: Of one record.
        cut: Records to return at most, where more had to be asked for.
        extra: The project's identifier is fetched for the order alone.
        notes: What is done beside what the query says of itself.
        order: A function of a record, a dict of projects and places, or None.
        slow: Records go through Python objects, rather than straight into their type.
        tells: The type can show that a record is not structured, and no filter needs what only a structured one has.
    """

    query: Query
    body: bytes
    decoder: Any
    cut: int | None
    extra: bool
    notes: tuple[str, ...]
    order: Any
    slow: bool
    tells: bool


def plan_lookup(query: Query, order: Any) -> LookupPlan:
    """Decide what to send for a query, and how to read the answers.

    Args:
        query: What is asked.
        order: Of the records: `"project"`, project identifiers, a function of a record, or None for the server's.

    Raises:
        ValueError: The order is none of these.
    """
    # The same question is often put about one title after the other, and is then the same object.
    return _cached_plan(query, order) if order is None or isinstance(order, str) else _build_plan(query, order)


@lru_cache(maxsize=256)
def _cached_plan(query: Query, order: str | None) -> LookupPlan:
    return _build_plan(query, order)


def _build_plan(query: Query, order: Any) -> LookupPlan:
    order = _order(order)
    body = query.body()
    notes = []
    cut = _max_records(query)
    if cut is not None:
        body["limit"] = _MOST
        notes.append(
            f"sent: instead, limit {_MOST}, so that the records of all projects of the language are there to be "
            f"compared; here: the first {cut}"
        )
    extra = ""
    single = query.limit == 1 or any(one.field == _PROJECT and one.local_reason is None for one in query.conditions)
    names = body.get("fields")
    if names and query.backend is Backend.STRUCTURED:
        # The server knows these fields by name, and ignores what it does not know: whether a part of one counts as
        # known has never been seen. Asked for whole and reduced here, the answer is the same and certain.
        whole = [*dict.fromkeys(name.partition(".")[0] for name in names)]
        if whole != names:
            notes.append(f"sent: instead, whole fields {', '.join(whole)}; here: reduced")
        names = body["fields"] = whole
    ordered = order is not None and not callable(order) and not (single and cut is None)
    if ordered and names and not _names_project(names):
        extra = "is_part_of" if query.backend is Backend.STRUCTURED else _PROJECT
        body["fields"] = [*names, extra]
        notes.append(f"sent: field {extra} besides, for the order of records; here: left out again")
    return LookupPlan(
        query=query,
        body=msgspec.json.encode(body),
        decoder=_decoder(query.result),
        cut=cut,
        extra=bool(extra),
        notes=tuple(notes),
        order=order,
        slow=bool(extra) or query.reshapes or query.selects,
        tells=isinstance(query.result, builtins.type)
        and issubclass(query.result, StructuredContent)
        and not any(one.field.partition(".")[0] in COMPUTED for one in query.conditions),
    )


def _max_records(query: Query) -> int | None:
    """Return how many records to return, where more are needed to be sure of them; None where the server limits them.

    The server picks `limit` records by project and language alone, and compares the rest afterwards: what it picked and
    then refused is missing from the answer, though others would have matched.

    Raises:
        ValueError: It has too many to pick from.
    """
    names = {one.field for one in query.conditions}
    later = sorted(names - {_PROJECT, _LANGUAGE})
    if not later or _PROJECT in names:
        return None
    if _LANGUAGE not in names:
        raise ValueError(
            f"a filter by {', '.join(later)} alone cannot be answered: the server picks some of all projects that have "
            f"the title before it compares. Filter by {_PROJECT!r} or {_LANGUAGE!r} too"
        )
    # No language has more projects than the highest limit.
    return query.limit or _DEFAULT_LIMIT


def _names_project(names: Sequence[str]) -> bool:
    return any(name in {"is_part_of", "is_part_of.*", _PROJECT} for name in names)


def _order(order: Any) -> Any:
    """Check an order; project lists become a dict of places."""
    if order is None or callable(order):
        return order
    if order == "project":
        return {}
    words = f'order is "project", a list of project identifiers, a function or None, got {order!r}'
    if not isinstance(order, Iterable):
        raise TypeError(words)
    places = list(order)
    if isinstance(order, str | bytes) or not all(isinstance(each, str) for each in places):
        raise ValueError(words)
    return {identifier: place for place, identifier in enumerate(places)}


class _Project(msgspec.Struct, frozen=True):
    identifier: str = ""


class _RecordProject(msgspec.Struct, frozen=True):
    is_part_of: _Project = _Project()


_project_decoder: Final = msgspec.json.Decoder(_RecordProject)
_array_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read_response(response: Response, plan: LookupPlan) -> tuple[list[Any], DecodeError | None]:
    """Return the records of an answer in their order, or the first thing that was wrong with it."""
    body = response.body
    if not body:
        return [], None
    first: DecodeError | None = None
    found: list[Any] = []
    known = known_names(plan.query.model)
    for number, line in enumerate(_rows(body), 1):
        if is_error_document(line, known):
            first = first or _record_error(response, line, number, error_in_place_of("a record", line))
            continue
        try:
            with decoding(line):
                record = _record(line, plan)
        except DecodeError as error:
            first = first or _record_error(response, line, number, error.message)
        else:
            if record is not None:
                found.append((line, record))
    if len(found) > 1 and plan.order is not None:
        found.sort(key=lambda pair: _sort_key(pair, plan.order))
    records = [record for _, record in found[: plan.cut]]
    if first is not None:
        first.records = tuple(records)
    return records, first


def _rows(body: bytes) -> list[bytes]:
    """Split an answer into records, which are asked for as lines; a JSON array is understood too."""
    if body[:1] != b"[":
        return [line for line in body.split(b"\n") if line.strip()] if b"\n" in body else [body]
    try:
        return [bytes(row) for row in decode_json(body, _array_decoder)]
    except DecodeError:
        return [body]


def _record(line: bytes, plan: LookupPlan) -> Any:
    query = plan.query
    raw = query.backend is Backend.STRUCTURED and _RAW_KEY in line
    if raw and not plan.tells:
        raise DecodeError("the unstructured article was sent in place of structured contents; ask again")
    if not plan.slow:
        return decode_record(plan.decoder, line)
    row = msgspec.json.decode(line)
    if not isinstance(row, dict):
        # The judge of what is wrong with it.
        return decode_record(plan.decoder, line)
    # Before the query puts empty objects where the type cannot do without.
    kept = query.apply(_without_project(row, query) if plan.extra else row)
    if kept is None:
        return None
    if raw:
        # What shows that this is no structure must not be left out with what was not asked for.
        kept = {**kept, "article_body": row["article_body"]}
    return decode_record(plan.decoder, msgspec.json.encode(kept))


def _without_project(row: dict[str, Any], query: Query) -> dict[str, Any]:
    """Take out again what was fetched for the order alone."""
    inner = row.get("is_part_of")
    wanted = [name for name in query.fields or () if name.startswith("is_part_of.")]
    if not isinstance(inner, dict) or not wanted:
        return {key: value for key, value in row.items() if key != "is_part_of"}
    left = {key: value for key, value in inner.items() if key != "identifier"}
    rest = {key: value for key, value in row.items() if key != "is_part_of"}
    return {**rest, "is_part_of": left} if left else rest


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
    shown = bare_url(response.url)
    if line.lstrip()[:1] == b"<":
        reason = server_message(line)
    return DecodeError(
        f"record {number} of {shown} is not what was asked for: {reason}", url=shown, line=number, record=line
    )


@lru_cache(maxsize=256)
def _decoder(type: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(type)
