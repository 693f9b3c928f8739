"""A query for any of the back ends: checked and translated before it is sent, and corrected in its results.

A query has `fields` (the parts of each record), `filters` (which records) and, for look-ups, a `limit`:

    query = Query.build(Backend.METADATA, Batch, fields=["identifier"], filters={"size.value": 0.5})
    POST query.body()                       # filters that the back end applies exactly
    for record in response:
        record = query.apply(record)        # restore, keep, project: the filters and fields that it does not
        if record is not None: ...

The results are exact: the records that equal all filters, each with its `fields` and nothing else. An absent value
equals false, zero or the empty string if its object is present; a value of an absent object equals nothing. An object
that loses all its parts is left out, but not on the stream, which distinguishes an empty object from an absent one.
"""

import builtins
import contextlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct

from wme_async._arguments import check_numbers, check_record_type, check_type, texts_of
from wme_async._query import backends as rules
from wme_async._query.backends import Backend, Value
from wme_async._query.model_fields import (
    Place,
    describe,
    fields_of,
    known_names,
    leaves,
    required_objects,
    resolve,
)
from wme_async._query.values import checked_value

__all__ = ["Backend", "Condition", "Query", "Value", "fields_of", "filter_type", "filter_types", "known_names"]

Record = TypeVar("Record", bound=dict[str, Any] | Struct)


_ABSENT: Final = object()
"""An absent value; `None` is a value of JSON."""

_Tree = dict[str, Any]
"""Names to keep, each with those below it; an empty tree keeps everything."""


class Condition(Struct, frozen=True):
    """A filter, and where it is applied.

    Attributes:
        field: The JSON name.
        value: The value to equal.
        local_reason: Why it is applied on our side and not sent; `None` if the server applies it.
    """

    field: str
    value: Value
    local_reason: str | None = None


class Query(Struct, frozen=True, kw_only=True, eq=False):
    """The request to a back end, and the processing of its response. Make one with `build`.

    Attributes:
        backend: The back end.
        model: The model of the server's records.
        fields: JSON names of the parts that the caller gets; `None` for everything.
        requested: JSON names of the parts to request: more than `fields` if the back end or a filter needs them.
        sent_fields: `requested` as the back end spells it.
        conditions: The filters.
        limit: The most records to return, for look-ups; `None` for the server's default of 3.
        result: The type to decode records into: the user's, or the model.
    """

    backend: Backend
    model: Any
    fields: tuple[str, ...] | None
    requested: tuple[str, ...]
    sent_fields: tuple[str, ...]
    conditions: tuple[Condition, ...]
    limit: int | None
    result: Any
    _restore: Mapping[str, tuple[str, ...]]
    _projection: _Tree | None
    _required: Mapping[str, Any]

    @classmethod
    def build(
        cls,
        backend: Backend | str,
        model: Any,
        *,
        fields: Iterable[str] | None = None,
        filters: Mapping[str, Value] | None = None,
        limit: int | None = None,
        type: builtins.type[Any] | None = None,
    ) -> "Query":
        """Check the arguments, and decide which filters to send and which to apply here.

        Args:
            backend: The back end.
            model: The model of the server's records.
            fields: JSON names joined by dots: values, objects (with or without `.*`), items of lists. `*` or `None`
                for everything.
            filters: JSON name to the one string, number or boolean that it must equal.
            limit: 1 to 10; for on-demand articles and structured contents alone.
            type: A Struct of the caller's to decode into. Without `fields`, exactly its fields are requested.

        Raises:
            TypeError: An argument has the wrong type, such as one string for `fields`.
            ValueError: A name that the model does not have; a filter that neither the server nor we can apply
                exactly, a filter by an object, a list, a time or a value of another type; a limit that is out of range
                or has no effect.
        """
        if type is not None:
            check_record_type(type)
        names = None if fields is None else _checked_names(fields)
        values = _checked_filters(filters)
        user: Any = type
        try:
            return _plan(Backend(backend), model, names, values, limit, user)
        except TypeError:
            # An argument may be wrong, or only not be hashable, which the cache requires.
            return _plan.__wrapped__(Backend(backend), model, names, values, limit, user)

    @property
    def selects(self) -> bool:
        """Whether `keep` may return False. Otherwise it need not be called."""
        return any(condition.local_reason is not None for condition in self.conditions)

    @property
    def reshapes(self) -> bool:
        """Whether `restore` or `project` may change a record. Otherwise it can be decoded into `result` at once."""
        return bool(self._restore or self._required) or self._projection is not None

    def body(self) -> dict[str, Any]:
        """Return the JSON object to POST as `application/json`, without empty keys."""
        body: dict[str, Any] = {}
        if self.sent_fields:
            body["fields"] = list(self.sent_fields)
        filters = [
            {"field": self._spelled(condition), "value": condition.value}
            for condition in self.conditions
            if condition.local_reason is None
        ]
        if filters:
            body["filters"] = filters
        if self.limit is not None:
            body["limit"] = self.limit
        return body

    def restore(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of the response with flat keys (`a__b`, metadata alone has them) nested again."""
        if not self._restore:
            return record
        nested: dict[str, Any] = {}
        for key, value in record.items():
            path = self._restore.get(key)
            if path is None:
                nested[key] = value
            elif value is not None:
                inner = nested
                for segment in path[:-1]:
                    inner = inner.setdefault(segment, {})
                inner[path[-1]] = value
        return nested

    def keep(self, record: Mapping[str, Any] | Struct) -> bool:
        """Return whether a record satisfies the filters that are applied here.

        Args:
            record: As `restore` returns it; or decoded, into the model or any Struct that has the filtered fields. A
                Struct whose default for an absent object is an empty one does not distinguish the two.

        Raises:
            TypeError: The Struct lacks a filtered field: decode into the model, or filter before decoding.
        """
        return all(
            condition.local_reason is None or _value(record, condition) == condition.value
            for condition in self.conditions
        )

    def project(self, record: Record) -> Record:
        """Return a record with its `fields` and nothing else.

        Objects that the caller's type requires are added, empty, if they are absent. On the stream `event` always
        stays, since it has the position.

        Args:
            record: As `restore` returns it; or decoded, in which case other fields get their defaults.
        """
        if self._projection is None and not self._required:
            return record
        plain: Any = msgspec.to_builtins(record) if isinstance(record, Struct) else record
        if self._projection is not None:
            plain = _pruned(plain, self._projection, keep_empty=self.backend is Backend.REALTIME)
            plain = {} if plain is _ABSENT else plain
        _fill(plain, self._required)
        return cast("Record", msgspec.convert(plain, builtins.type(record)) if isinstance(record, Struct) else plain)

    def apply(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Return a record of the response with the caller's fields, or `None` if it does not satisfy the filters."""
        record = self.restore(record)
        return self.project(record) if self.keep(record) else None

    def for_unfiltered(self) -> "Query":
        """Return the query for records that are neither filtered nor reduced yet, such as those of an archive.

        It applies all filters here, and reduces records to the fields that the server would have sent.
        """
        conditions = tuple(
            Condition(condition.field, condition.value, condition.local_reason or "no server does")
            for condition in self.conditions
        )
        return msgspec.structs.replace(
            self,
            conditions=conditions,
            _projection=_tree(rules.kept(self.backend, self.requested)) if self.requested else None,
        )

    def _spelled(self, condition: Condition) -> str:
        return rules.avro(condition.field) if self.backend is Backend.REALTIME else condition.field

    def explain(self) -> str:
        """Describe, one fact a line, the request and the filters and fields that are applied here."""
        lines = [f"to {rules.TITLES[self.backend]}"]
        if self.backend is Backend.ARCHIVE:
            lines.append("sent: neither fields nor filters, since an archive comes whole")
        elif self.sent_fields:
            lines.append(f"sent: fields {', '.join(self.sent_fields)}")
        else:
            lines.append("sent: no fields, so records come whole")
        lines += [
            f"sent: filter {self._spelled(condition)} = {condition.value!r}"
            for condition in self.conditions
            if condition.local_reason is None
        ]
        if self.limit is not None:
            lines.append(f"sent: limit {self.limit}")
        elif self.backend in rules.LIMITED:
            lines.append("not sent: a limit, so the server returns at most 3")
        lines += [
            f"here: filter {condition.field} = {condition.value!r}, because {condition.local_reason}"
            for condition in self.conditions
            if condition.local_reason
        ]
        if self.selects:
            is_narrowed = any(condition.local_reason is None for condition in self.conditions)
            records = "each such record" if is_narrowed else "each record"
            lines.append(f"here: {rules.COST[self.backend].format(records=records)}")
        if self._restore:
            lines.append(f"here: {', '.join(self._restore)} become nested again")
        if self.backend is Backend.ARCHIVE and self.fields is not None:
            lines.append(f"here: reduced to {', '.join(self.fields)}")
        elif self._projection is not None:
            assert self.fields is not None
            if self.backend is Backend.REALTIME:
                # To remove it, each event would have to be decoded and encoded once more.
                besides = [name for name in self.requested if name not in {*self.fields, "event"}]
                lines.append(f"here: not taken off again where the type has room for it: {', '.join(besides)}")
            else:
                lines.append(f"here: reduced to {', '.join(self.fields)}")
        return "\n".join(lines)


# Services repeat their queries, so plans are cached. The types of values are part of the key, since True == 1.
@lru_cache(maxsize=512, typed=True)
def _plan(
    backend: Backend,
    model: Any,
    fields: tuple[str, ...] | None,
    filters: tuple[tuple[str, Any, Any], ...],
    limit: int | None,
    user: Any,
) -> Query:
    selected = _selected(backend, model, fields, user)
    conditions = _conditions(backend, model, filters)
    if backend is Backend.REALTIME and user is not None:
        _check_comparable(user, conditions)
    needed = list(selected or ())
    if selected is not None:
        needed += [
            resolve(model, rules.evidence(backend, resolve(model, condition.field)))
            for condition in conditions
            if condition.local_reason is not None
        ]
    requested = _outermost(name for place in needed for name in rules.reach(backend, place))
    if len(requested) > rules.MAX_ITEMS:
        raise ValueError(f"{len(requested)} fields, {rules.MAX_ITEMS} at most: name whole objects instead")
    names = None if selected is None else tuple(place.name for place in selected)
    return Query(
        backend=backend,
        model=model,
        fields=names,
        requested=requested,
        sent_fields=tuple(rules.spelled(backend, resolve(model, name)) for name in requested),
        conditions=conditions,
        limit=_limit(backend, limit),
        result=model if user is None else user,
        _restore={name.replace(".", "__"): tuple(name.split(".")) for name in requested if "." in name}
        if backend is Backend.METADATA
        else {},
        _projection=None
        if names is None or rules.as_asked(backend, names, requested)
        else _tree(rules.kept(backend, names)),
        _required=required_objects(user) if names and backend is not Backend.REALTIME else {},
    )


def filter_types(model: Any, backend: Backend | str) -> dict[str, type]:
    """Return the fields that filters can compare, each with the type of its value.

    Args:
        model: The model of the server's records.
        backend: The back end.

    Returns:
        JSON names to `str`, `int`, `float` or `bool`, in the order of the model. Whether the server or this side
        applies a filter may depend on its value; `Query.explain` tells.
    """
    backend = Backend(backend)
    types: dict[str, type] = {}
    for place in leaves(model) if backend is not Backend.LOOKUP_FIELDS_ONLY else ():
        with contextlib.suppress(ValueError):
            rules.check_served(backend, place.name)
            types[place.name] = next(kind for kind in (str, float, int, bool) if kind in place.shape.leaves)
    return types


def filter_type(model: Any, backend: Backend | str, name: str) -> type:
    """Return the type of a filter's value, to convert it from text; `str` for a field that filters cannot compare.

    Args:
        model: The model of the server's records.
        backend: The back end.
        name: The field, in any spelling of the documentation.
    """
    return filter_types(model, backend).get(_alias(Backend(backend), name), str)


def _selected(backend: Backend, model: Any, fields: tuple[str, ...] | None, user: Any) -> list[Place] | None:
    """Return the places of the caller's fields, none inside another; `None` for everything."""
    derived = fields_of(user, model) if user is not None else []
    names = derived if fields is None else fields
    if not names:
        return None
    places = [_field(backend, model, name) for name in names if name != "*"]
    if "*" in names:
        return None
    outermost = _outermost(place.name for place in places)
    if fields is not None and derived:
        _check_required(user, outermost)
    return [resolve(model, name) for name in outermost]


def _checked_names(fields: Iterable[str]) -> tuple[str, ...]:
    if isinstance(fields, Mapping):
        raise TypeError(f"fields must be a list of names, not {fields!r}")
    names = texts_of("fields", fields, "names")
    if "" in names:
        raise ValueError("fields has an empty name")
    if not names:
        raise ValueError("fields is empty: leave it out to get everything")
    return names


def _field(backend: Backend, model: Any, name: str) -> Place:
    bare = name.removesuffix(".*")
    if "*" in bare:
        raise ValueError(f"a wildcard stands at the end, as in 'version.*', got {name!r}")
    place = _place(backend, model, bare)
    if bare != name and not place.shape.whole:
        raise ValueError(f"{bare!r} is {describe(place.shape)} and has nothing below it: leave out the '.*'")
    rules.check_served(backend, place.name)
    return place


def _place(backend: Backend, model: Any, name: str) -> Place:
    """Return the place of a name in any spelling; an error has the name as the caller spells it."""
    try:
        return resolve(model, _alias(backend, name))
    except ValueError:
        return resolve(model, name)


def _alias(backend: Backend, name: str) -> str:
    structured = rules.STRUCTURED_ALIASES if backend is Backend.STRUCTURED else {}
    return rules.renamed(name, {**rules.ALIASES, **structured})


def _check_required(user: Any, names: Iterable[str]) -> None:
    """Raise if a type requires a field that is not among these."""
    tops = {name.partition(".")[0] for name in names}
    fields = getattr(msgspec.inspect.type_info(user), "fields", ())
    missing = [field.encode_name for field in fields if field.required and field.encode_name not in tops]
    if missing:
        raise ValueError(f"{user.__name__} cannot do without {', '.join(map(repr, missing))}, which fields leave out")


def _check_comparable(user: Any, conditions: Iterable[Condition]) -> None:
    """Raise if a type, which the stream decodes at once, lacks a field that a filter here compares."""
    for condition in conditions:
        if condition.local_reason is not None:
            try:
                resolve(user, condition.field)
            except ValueError:
                raise ValueError(
                    f"the filter on {condition.field!r} is applied here, because {condition.local_reason}: give"
                    f" {user.__name__} that field, to have something to compare"
                ) from None


def _outermost(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names in order, without duplicates and without those inside another one."""
    distinct = dict.fromkeys(names)
    return tuple(name for name in distinct if not any(name.startswith(f"{other}.") for other in distinct))


def _checked_filters(filters: Mapping[str, Value] | None) -> tuple[tuple[str, Any, Any], ...]:
    """Return the filters as names, types of values, and values."""
    if filters is None:
        return ()
    check_type("filters", filters, Mapping, "a dict of name and value")
    for name in filters:
        check_type("a name in filters", name, str, "text")
    return tuple((name, type(value), value) for name, value in filters.items())


def _conditions(backend: Backend, model: Any, filters: tuple[tuple[str, Any, Any], ...]) -> tuple[Condition, ...]:
    if filters and backend is Backend.LOOKUP_FIELDS_ONLY:
        raise ValueError("Wikidata look-ups take fields only: the server has no filters for them")
    if len(filters) > rules.MAX_ITEMS:
        raise ValueError(f"{len(filters)} filters, {rules.MAX_ITEMS} at most")
    conditions: dict[str, Condition] = {}
    for name, _, raw in filters:
        place = _place(backend, model, name)
        rules.check_served(backend, place.name)
        value = checked_value(place, raw, name)
        if place.name in conditions:
            raise ValueError(f"{place.name!r} is filtered twice, under two names: a record has one value of it")
        conditions[place.name] = Condition(place.name, value, rules.not_sent(backend, place, value))
    sent = {condition.field for condition in conditions.values() if condition.local_reason is None}
    for condition in conditions.values():
        if condition.local_reason is not None and backend in rules.LIMITED and rules.ONE_RECORD not in sent:
            raise ValueError(
                f"a filter {condition.field} = {condition.value!r} cannot be answered: {condition.local_reason}, and it"
                " selects the records of the response before this side can filter them. Filter by"
                f" {rules.ONE_RECORD!r} too: then there is one record at most"
            )
    return tuple(conditions.values())


def _limit(backend: Backend, limit: int | None) -> int | None:
    if limit is None:
        return None
    if backend not in rules.LIMITED:
        raise ValueError(f"limit has no effect on {rules.TITLES[backend]}: leave it out")
    check_numbers(whole=True, limit=limit)
    if not 1 <= limit <= rules.MAX_LIMIT:
        raise ValueError(f"limit must be 1 to {rules.MAX_LIMIT}, not {limit}")
    return int(limit)


def _tree(names: Iterable[str]) -> _Tree:
    tree: _Tree = {}
    for name in names:
        inner = tree
        for segment in name.split("."):
            inner = inner.setdefault(segment, {})
    return tree


def _pruned(value: Any, tree: _Tree, *, keep_empty: bool) -> Any:
    """Return the parts of a value that a tree names; an object without any is absent, unless `keep_empty`."""
    if not tree:
        return value
    if isinstance(value, list | tuple):  # a tuple in a decoded record
        return [_pruned_item(item, tree, keep_empty=keep_empty) for item in value]
    if not isinstance(value, dict):
        return _ABSENT
    parts = {key: _pruned(value[key], below, keep_empty=keep_empty) for key, below in tree.items() if key in value}
    present = {key: part for key, part in parts.items() if part is not _ABSENT}
    return present if present or keep_empty else _ABSENT


def _pruned_item(item: Any, tree: _Tree, *, keep_empty: bool) -> Any:
    if not isinstance(item, dict | list | tuple):
        return item
    part = _pruned(item, tree, keep_empty=keep_empty)
    return {} if part is _ABSENT else part


def _fill(record: Any, required: Mapping[str, Any]) -> None:
    for key, below in required.items():
        inner = record.setdefault(key, {})
        if isinstance(inner, dict):
            _fill(inner, below)


def _value(record: Any, condition: Condition) -> Any:
    """Return the value of a condition's field; the empty value if the object is present without it."""
    *objects, last = condition.field.split(".")
    for segment in objects:
        record = _child(record, segment)
        if not isinstance(record, Mapping | Struct):
            return _ABSENT
    value = _child(record, last)
    return builtins.type(condition.value)() if value is None or value is UNSET else value


def _child(record: Any, segment: str) -> Any:
    if isinstance(record, Mapping):
        return record.get(segment)
    cls: Any = builtins.type(record)
    attribute = _attributes(cls).get(segment)
    if attribute is None:
        raise TypeError(f"{cls.__name__} has no field for {segment!r}, which a filter compares")
    return getattr(record, attribute)


@lru_cache(maxsize=256)
def _attributes(cls: Any) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(cls)}
