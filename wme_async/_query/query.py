"""One query for three back ends: checked before anything is sent, translated, and made good where they answer wrongly.

A query has `fields` (what to get of each record), `filters` (which records) and, for look-ups, a `limit`. Its life:

    query = Query.build(Backend.METADATA, Batch, fields=["identifier"], filters={"size.value": 0.5})
    POST query.body()                       # what the back end answers exactly
    for record in answer:
        record = query.apply(record)        # restore, keep, project: what it does not
        if record is not None: ...

What "exactly" means: the records are those that satisfy all filters by equality, each with what `fields` names and
nothing else. An absent value equals false, zero or the empty string where its object is there; where the object is
absent too, there is no value and nothing equals it. An object of which `fields` leave nothing is left out, but on the
stream, which tells one that is empty from one that is absent.
"""

import builtins
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Struct

from wme_async._arguments import check_record_type
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


class _Nothing:
    """What is not there at all, unlike `None`, which JSON can say."""


_NOTHING = _Nothing()

_Tree = dict[str, Any]
"""Names to what is wanted below them; an empty one wants everything."""


class Condition(Struct, frozen=True):
    """One filter, and where it is applied.

    Attributes:
        field: The JSON name.
        value: What it must equal.
        here: Why it is applied on our side and not sent; `None` where the server applies it.
    """

    field: str
    value: Value
    here: str | None = None


class Query(Struct, frozen=True, kw_only=True, eq=False):
    """What to ask of a back end, and what to do with its answer. Make one with `build`.

    Attributes:
        backend: Whose rules it follows.
        model: The model of what the server sends.
        fields: What the caller gets, as JSON names; `None` for everything.
        fetched: What is asked for, as JSON names: more than `fields` where the back end or a filter needs it.
        sent_fields: The same as the back end spells it, as it is sent.
        conditions: The filters.
        limit: The most records to return, for look-ups; `None` for the server's default of 3.
        result: The type to decode records into: the user's, or the model.
    """

    backend: Backend
    model: Any
    fields: tuple[str, ...] | None
    fetched: tuple[str, ...]
    sent_fields: tuple[str, ...]
    conditions: tuple[Condition, ...]
    limit: int | None
    result: Any
    _restore: Mapping[str, tuple[str, ...]]
    _wanted: _Tree | None
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
        """Check what the caller asks for, and decide what to send and what to apply here.

        Args:
            backend: Whose rules to follow.
            model: The model of what the server sends.
            fields: JSON names joined by dots: values, objects (with or without `.*`), what is inside lists. `*` or
                `None` for everything.
            filters: JSON name to the one string, number or boolean that it must equal.
            limit: 1 to 10; for on-demand articles and structured contents alone.
            type: A Struct of the caller's to decode into. Without `fields`, exactly its fields are asked for.

        Raises:
            TypeError: An argument has the wrong type, such as one string for `fields`.
            ValueError: A name that the model does not have; a filter that neither the server nor we can apply
                exactly, a filter by an object, a list, a time or a value of another type; a limit that is out of range
                or has no effect.
        """
        if type is not None:
            check_record_type(type)
        names = None if fields is None else _checked_names(fields)
        given = _checked_filters(filters)
        user: Any = type
        try:
            return _plan(Backend(backend), model, names, given, limit, user)
        except TypeError:
            # Either an argument is wrong, which is told again, or it cannot be a key of the cache, and is refused then.
            return _plan.__wrapped__(Backend(backend), model, names, given, limit, user)

    @property
    def selects(self) -> bool:
        """`keep` may refuse a record. Otherwise it need not be called."""
        return any(condition.here is not None for condition in self.conditions)

    @property
    def reshapes(self) -> bool:
        """`restore` or `project` may change a record. Otherwise it can be decoded into `result` as it arrives."""
        return bool(self._restore or self._required) or self._wanted is not None

    def body(self) -> dict[str, Any]:
        """Return the JSON object to POST; empty keys are absent. It must be sent as `application/json`."""
        body: dict[str, Any] = {}
        if self.sent_fields:
            body["fields"] = list(self.sent_fields)
        spell = rules.avro if self.backend is Backend.REALTIME else str
        sent = [{"field": spell(one.field), "value": one.value} for one in self.conditions if one.here is None]
        if sent:
            body["filters"] = sent
        if self.limit is not None:
            body["limit"] = self.limit
        return body

    def restore(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of the answer with flat keys (`a__b`, metadata alone has them) nested again."""
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
        """Say whether a record satisfies the filters that are applied here.

        Args:
            record: As `restore` returns it; or decoded, into the model or any Struct that has the filtered fields. A
                Struct that stands in an empty object for an absent one makes the two the same.

        Raises:
            TypeError: The Struct lacks a filtered field: decode into the model, or look before decoding.
        """
        for condition in self.conditions:
            if condition.here is not None and _value(record, condition) != condition.value:
                return False
        return True

    def project(self, record: Record) -> Record:
        """Return a record with what `fields` names and nothing else, whatever had to be fetched besides.

        An object that the caller's type cannot do without is given an empty one: absent means empty. On the stream
        `event` stays whatever was asked for, since it has the position.

        Args:
            record: As `restore` returns it; or decoded, in which case what was not asked for becomes the default.
        """
        if self._wanted is None and not self._required:
            return record
        kept: Any = msgspec.to_builtins(record) if isinstance(record, Struct) else record
        if self._wanted is not None:
            kept = _pruned(kept, self._wanted, hollow=self.backend is Backend.REALTIME)
            kept = {} if kept is _NOTHING else kept
        _fill(kept, self._required)
        return cast("Record", msgspec.convert(kept, builtins.type(record)) if isinstance(record, Struct) else kept)

    def apply(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Return a record of the answer as the caller asked for it, or `None` if the filters refuse it."""
        record = self.restore(record)
        return self.project(record) if self.keep(record) else None

    def for_unfiltered(self) -> "Query":
        """Return the query for records that nobody has filtered or reduced yet, such as those of an archive.

        They are reduced to what would have been fetched: to `fields` and whatever else the filters compare here.
        """
        own = tuple(Condition(one.field, one.value, one.here or "nobody else does") for one in self.conditions)
        wanted = _tree(rules.kept(self.backend, self.fetched)) if self.fetched else None
        return msgspec.structs.replace(self, conditions=own, _wanted=wanted)

    def explain(self) -> str:
        """Say in words, one fact a line, what is sent where and what is applied here."""
        lines = [f"to {rules.TITLES[self.backend]}"]
        if self.sent_fields:
            lines.append(f"sent: fields {', '.join(self.sent_fields)}")
        else:
            lines.append("sent: no fields, so records come whole")
        spell = rules.avro if self.backend is Backend.REALTIME else str
        lines += [f"sent: filter {spell(one.field)} = {one.value!r}" for one in self.conditions if one.here is None]
        if self.limit is not None:
            lines.append(f"sent: limit {self.limit}")
        elif self.backend in rules.LIMITED:
            lines.append("not sent: a limit, so the server returns at most 3")
        lines += [
            f"here: filter {one.field} = {one.value!r}, because {one.here}" for one in self.conditions if one.here
        ]
        if self.selects:
            narrowed = any(one.here is None for one in self.conditions)
            what = "what the filters above let through" if narrowed else "everything"
            lines.append(f"here: {rules.COST[self.backend].format(what=what)}")
        if self._restore:
            lines.append(f"here: {', '.join(self._restore)} become nested again")
        if self._wanted is not None:
            assert self.fields is not None
            if self.backend is Backend.REALTIME:
                # Taking it off would mean to decode and encode each event once more.
                besides = [name for name in self.fetched if name not in {*self.fields, "event"}]
                lines.append(f"here: not taken off again where the type has room for it: {', '.join(besides)}")
            else:
                lines.append(f"here: reduced to {', '.join(self.fields)}")
        return "\n".join(lines)


# A service asks the same of many names: a plan is made once. The types of values are part of the key, since True == 1.
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
        _shows(user, conditions)
    needed = list(selected or ())
    if selected is not None:
        here = [condition.field for condition in conditions if condition.here is not None]
        needed += [resolve(model, rules.evidence(backend, resolve(model, name))) for name in here]
    fetched = _outermost(name for place in needed for name in rules.reach(backend, place))
    if len(fetched) > rules.MAX_ITEMS:
        raise ValueError(f"{len(fetched)} fields, {rules.MAX_ITEMS} at most: name whole objects instead")
    names = None if selected is None else tuple(place.name for place in selected)
    return Query(
        backend=backend,
        model=model,
        fields=names,
        fetched=fetched,
        sent_fields=tuple(rules.spelled(backend, resolve(model, name)) for name in fetched),
        conditions=conditions,
        limit=_limit(backend, limit),
        result=model if user is None else user,
        _restore=_flat_names(fetched) if backend is Backend.METADATA else {},
        _wanted=None if names is None else _wanted(backend, names, fetched),
        _required=required_objects(user) if names and backend is not Backend.REALTIME else {},
    )


def filter_types(model: Any, backend: Backend | str) -> dict[str, type]:
    """Return the names that can be filtered by, and the type of the value each takes.

    Args:
        model: The model of what the server sends.
        backend: Whose rules to follow.

    Returns:
        JSON names to `str`, `int`, `float` or `bool`, in the order of the model. Whether the server or this side
        applies a filter may depend on its value; `Query.explain` tells.
    """
    backend = Backend(backend)
    found: dict[str, type] = {}
    if backend is Backend.LOOKUP_FIELDS_ONLY:
        return found
    for place in leaves(model):
        try:
            rules.served(backend, place.name)
        except ValueError:
            continue
        found[place.name] = next(kind for kind in (str, float, int, bool) if kind in place.shape.leaves)
    return found


def filter_type(model: Any, backend: Backend | str, name: str) -> type:
    """Return the type of the value that a filter takes, for who has it as text; `str` for what cannot be filtered by.

    Args:
        model: The model of what the server sends.
        backend: Whose rules to follow.
        name: As a caller may write it: other spellings of the documentation included.
    """
    return filter_types(model, backend).get(_alias(Backend(backend), name), str)


def _selected(backend: Backend, model: Any, fields: tuple[str, ...] | None, user: Any) -> list[Place] | None:
    """The places that the caller wants, none inside another; `None` for everything."""
    derived = fields_of(user, model) if user is not None else []
    names = derived if fields is None else fields
    if not names:
        return None
    places = [_field(backend, model, name) for name in names if name != "*"]
    if "*" in names:
        return None
    outermost = _outermost(place.name for place in places)
    if fields is not None and derived:
        _covers(user, outermost)
    return [resolve(model, name) for name in outermost]


def _checked_names(fields: Iterable[str]) -> tuple[str, ...]:
    if isinstance(fields, str | bytes | Mapping) or not isinstance(fields, Iterable):
        raise TypeError(f"fields must be a list of names, not {fields!r}")
    names = tuple(fields)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"fields must be a list of names, and {name!r} is not")
        if not name:
            raise ValueError("an empty name among fields")
    if not names:
        raise ValueError("no fields are named: leave fields out to get everything")
    return names


def _field(backend: Backend, model: Any, name: str) -> Place:
    bare = name.removesuffix(".*")
    if "*" in bare:
        raise ValueError(f"a wildcard stands at the end, as in 'version.*', got {name!r}")
    place = _place(backend, model, bare)
    if bare != name and not place.shape.whole:
        raise ValueError(f"{bare!r} is {describe(place.shape)} and has nothing below it: leave out the '.*'")
    rules.served(backend, place.name)
    return place


def _place(backend: Backend, model: Any, name: str) -> Place:
    """Return what stands at a name as the caller writes it; one that is not there is refused as it was written."""
    known = _alias(backend, name)
    try:
        return resolve(model, known)
    except ValueError:
        if known == name:
            raise
    return resolve(model, name)


def _alias(backend: Backend, name: str) -> str:
    aliases = {**rules.ALIASES, **(rules.STRUCTURED_ALIASES if backend is Backend.STRUCTURED else {})}
    for other, ours in aliases.items():
        if name == other or name.startswith(f"{other}."):
            return ours + name[len(other) :]
    return name


def _covers(user: Any, names: Iterable[str]) -> None:
    """Check that a type can be decoded from records with these fields alone."""
    tops = {name.partition(".")[0] for name in names}
    described = msgspec.inspect.type_info(user)
    missing = [f.encode_name for f in getattr(described, "fields", ()) if f.required and f.encode_name not in tops]
    if missing:
        raise ValueError(f"{user.__name__} cannot do without {', '.join(map(repr, missing))}, which fields leave out")


def _shows(user: Any, conditions: Iterable[Condition]) -> None:
    """Check that records of a type, which the stream decodes at once, still have what is compared here."""
    for condition in conditions:
        if condition.here is not None:
            try:
                resolve(user, condition.field)
            except ValueError:
                raise ValueError(
                    f"the filter on {condition.field!r} is applied here, because {condition.here}: give"
                    f" {user.__name__} that field, to have something to compare"
                ) from None


def _outermost(names: Iterable[str]) -> tuple[str, ...]:
    """The names in order, without repetition and without those that lie inside another one."""
    distinct = dict.fromkeys(names)
    return tuple(name for name in distinct if not any(name.startswith(f"{other}.") for other in distinct))


def _checked_filters(filters: Mapping[str, Value] | None) -> tuple[tuple[str, Any, Any], ...]:
    """The filters as names, types of values, and values."""
    if filters is None:
        return ()
    if not isinstance(filters, Mapping):
        raise TypeError(f"filters must be a dict of name and value, not {filters!r}")
    for name in filters:
        if not isinstance(name, str):
            raise TypeError(f"filters must be a dict of name and value, and {name!r} is not")
    return tuple((name, type(value), value) for name, value in filters.items())


def _conditions(backend: Backend, model: Any, filters: tuple[tuple[str, Any, Any], ...]) -> tuple[Condition, ...]:
    if filters and backend is Backend.LOOKUP_FIELDS_ONLY:
        raise ValueError("Wikidata look-ups take fields only: the server has no filters for them")
    if len(filters) > rules.MAX_ITEMS:
        raise ValueError(f"{len(filters)} filters, {rules.MAX_ITEMS} at most")
    conditions: dict[str, Condition] = {}
    for name, _, given in filters:
        place = _place(backend, model, name)
        rules.served(backend, place.name)
        value = checked_value(place, given, name)
        if place.name in conditions:
            raise ValueError(f"{place.name!r} is filtered twice, under two names: a record has one value of it")
        conditions[place.name] = Condition(place.name, value, rules.not_sent(backend, place, value))
    found = tuple(conditions.values())
    sent = {one.field for one in found if one.here is None}
    for one in found:
        if one.here is not None and backend in rules.LIMITED and rules.ONE_RECORD not in sent:
            raise ValueError(
                f"a filter {one.field} = {one.value!r} cannot be answered: {one.here}, and it has picked the records it"
                f" returns before we could look. Filter by {rules.ONE_RECORD!r} too: then there is one record at most"
            )
    return found


def _limit(backend: Backend, limit: int | None) -> int | None:
    if limit is None:
        return None
    if backend not in rules.LIMITED:
        raise ValueError(f"limit has no effect on {rules.TITLES[backend]}: leave it out")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number, not {limit!r}")
    if not 1 <= limit <= rules.MAX_LIMIT:
        raise ValueError(f"limit is 1 to {rules.MAX_LIMIT}, got {limit}")
    return int(limit)


def _flat_names(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name.replace(".", "__"): tuple(name.split(".")) for name in names if "." in name}


def _wanted(backend: Backend, names: tuple[str, ...], fetched: tuple[str, ...]) -> _Tree | None:
    """What to reduce records to, or `None` where they arrive so."""
    return None if rules.as_asked(backend, names, fetched) else _tree(rules.kept(backend, names))


def _tree(names: Iterable[str]) -> _Tree:
    tree: _Tree = {}
    for name in names:
        inner = tree
        for segment in name.split("."):
            inner = inner.setdefault(segment, {})
    return tree


def _pruned(value: Any, wanted: _Tree, *, hollow: bool) -> Any:
    """What is wanted of a value; unless `hollow`, an object of which nothing is left is nothing outside a list."""
    if not wanted:
        return value
    if isinstance(value, list | tuple):  # a tuple where a decoded record was turned back
        return [_element(item, wanted, hollow=hollow) for item in value]
    if not isinstance(value, dict):
        return _NOTHING
    kept = {key: _pruned(value[key], below, hollow=hollow) for key, below in wanted.items() if key in value}
    left = {key: inner for key, inner in kept.items() if inner is not _NOTHING}
    return left if left or hollow else _NOTHING


def _element(item: Any, wanted: _Tree, *, hollow: bool) -> Any:
    if not isinstance(item, dict | list | tuple):
        return item
    kept = _pruned(item, wanted, hollow=hollow)
    return {} if kept is _NOTHING else kept


def _fill(record: Any, required: Mapping[str, Any]) -> None:
    for key, below in required.items():
        inner = record.setdefault(key, {})
        if isinstance(inner, dict):
            _fill(inner, below)


def _value(record: Any, condition: Condition) -> Any:
    """What a record has where a condition looks: the empty value where it has its object and nothing in it."""
    at = record
    *objects, last = condition.field.split(".")
    for segment in objects:
        at = _step(at, segment)
        if not isinstance(at, Mapping | Struct):
            return _NOTHING
    found = _step(at, last)
    return builtins.type(condition.value)() if found is None or found is UNSET else found


def _step(at: Any, segment: str) -> Any:
    if isinstance(at, Mapping):
        return at.get(segment)
    cls: Any = builtins.type(at)
    attribute = _attributes(cls).get(segment)
    if attribute is None:
        raise TypeError(f"{cls.__name__} has no field for {segment!r}, which is filtered by")
    return getattr(at, attribute)


@lru_cache(maxsize=256)
def _attributes(cls: Any) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(cls)}
