"""The dotted names of a model and the shape of each, derived from the models."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct, inspect
from msgspec.structs import replace

from wme_async._text import closest

_SCALARS: Final[Mapping[type[inspect.Type], type]] = {
    inspect.StrType: str,
    inspect.IntType: int,
    inspect.FloatType: float,
    inspect.BoolType: bool,
}
_LISTS: Final = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)
_OBJECTS: Final = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)
_MAPS: Final = (inspect.DictType, inspect.FrozenDictType)
_FOLDED: Final = {"folded": True}
_TIMES: Final = (inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType)


class Shape(Struct, frozen=True, eq=False):
    """The shape of the value at a name. It may be several at once: some values are one object or a list.

    Attributes:
        leaves: Scalar types: `str`, `int`, `float`, `bool`.
        parts: Names and types of an object's fields.
        always_sent: Those of its fields that the server always sends, false and zero too.
        values: Type of the values of an open object (any key), or `None`.
        classes: Classes behind the objects.
        is_list: It is a list; the other attributes describe its items.
        time: It is a time.
        opaque: It is not described.
        folded: The service may send it in another form; the rest describes the one that the model folds it into.
    """

    leaves: frozenset[type] = frozenset()
    parts: Mapping[str, inspect.Type] = {}
    always_sent: frozenset[str] = frozenset()
    values: inspect.Type | None = None
    classes: tuple[type, ...] = ()
    is_list: bool = False
    time: bool = False
    opaque: bool = False
    folded: bool = False

    @property
    def scalar(self) -> bool:
        """It is a string, a number or a boolean, and nothing else."""
        return bool(self.leaves) and not (self.parts or self.values or self.is_list or self.time or self.opaque)

    @property
    def whole(self) -> bool:
        """It has, or may have, something below it."""
        return bool(self.parts or self.values or self.is_list or self.opaque)

    def child(self, name: str) -> "Shape | None":
        """Return the shape one step below, or `None`."""
        child = self.parts.get(name, self.values)
        return None if child is None else shape_of(child)


class Place(Struct, frozen=True, eq=False):
    """One dotted name of a model.

    Attributes:
        name: The name.
        shape: The shape of its value.
        above: The shape at each step, from the model itself down to the parent.
    """

    name: str
    shape: Shape
    above: tuple[Shape, ...]

    @property
    def in_list(self) -> bool:
        """A list is on the way to it, so that it has many values or none."""
        # The first step is the record itself: that an answer is a list of records does not count.
        return any(shape.is_list for shape in self.above[1:])

    def ancestor(self, steps: int) -> str:
        """Return the name of its first `steps` segments."""
        return ".".join(self.name.split(".")[:steps])


def shape_of(type_: inspect.Type) -> Shape:
    """Return the shape of a type, with lists and alternatives folded into one description."""
    if isinstance(type_, inspect.Metadata):
        shape = shape_of(type_.type)
        return replace(shape, folded=True) if type_.extra == _FOLDED else shape
    if isinstance(type_, inspect.UnionType):
        return _either([shape_of(one) for one in type_.types])
    if isinstance(type_, _LISTS):
        return _either([shape_of(type_.item_type), Shape(is_list=True)])
    if isinstance(type_, _OBJECTS):
        public = [field for field in type_.fields if not _private(field)]
        return Shape(
            parts={field.encode_name: _visible_type(field) for field in public},
            # A factory in place of a plain default marks the fields that are never left out.
            always_sent=frozenset(
                f.encode_name for f in public if getattr(f, "default_factory", None) in {bool, int, float}
            ),
            classes=(type_.cls,),
        )
    if isinstance(type_, _MAPS):
        return Shape(values=type_.value_type)
    if isinstance(type_, inspect.EnumType):
        return Shape(leaves=frozenset(_plain(member.value) for member in type_.cls))
    if isinstance(type_, inspect.LiteralType):
        return Shape(leaves=frozenset(_plain(value) for value in type_.values if value is not None))
    if isinstance(type_, inspect.NoneType):
        return Shape()
    leaf = _SCALARS.get(type(type_))
    return (
        Shape(leaves=frozenset([leaf]))
        if leaf
        else Shape(time=isinstance(type_, _TIMES), opaque=not isinstance(type_, _TIMES))
    )


def _visible_type(field: inspect.Field) -> inspect.Type:
    """Return the type of a field; of an object or a list the form that the model folds the other into: its default."""
    forms = field.type.types if isinstance(field.type, inspect.UnionType) else ()
    maps, lists = ([form for form in forms if isinstance(form, kinds)] for kinds in (_MAPS, _LISTS))
    if not (maps and lists):
        return field.type
    return inspect.Metadata((maps if field.default_factory is dict else lists)[0], extra=_FOLDED)


def _private(field: inspect.Field) -> bool:
    # Another spelling that some payloads use; the models fold it into the public field.
    return field.name.startswith("_") and not field.required


def _plain(value: Any) -> type:
    return next(kind for kind in (bool, int, float, str) if isinstance(value, kind))


def _either(shapes: list[Shape]) -> Shape:
    return Shape(
        leaves=frozenset[type]().union(*(shape.leaves for shape in shapes)),
        parts={name: type_ for shape in reversed(shapes) for name, type_ in shape.parts.items()},
        always_sent=frozenset[str]().union(*(shape.always_sent for shape in shapes)),
        values=next((shape.values for shape in shapes if shape.values is not None), None),
        classes=tuple(cls for shape in shapes for cls in shape.classes),
        is_list=any(shape.is_list for shape in shapes),
        time=any(shape.time for shape in shapes),
        opaque=any(shape.opaque for shape in shapes),
    )


@lru_cache(maxsize=256)
def _root(model: Any) -> Shape:
    return shape_of(inspect.type_info(model))


@lru_cache(maxsize=4096)
def resolve(model: Any, name: str) -> Place:
    """Return the place of a dotted name in a model.

    Args:
        model: A Struct, or a dict for answers whose keys are data.
        name: Names as they are on the wire, joined by dots.

    Raises:
        ValueError: There is no such name; the message has similar ones.
    """
    shape = _root(model)
    above: list[Shape] = []
    for step, segment in enumerate(name.split("."), 1):
        below = shape.child(segment) if segment else None
        if below is None:
            raise ValueError(_unknown(model, name, step, shape))
        above.append(shape)
        shape = below
    return Place(name, shape, tuple(above))


def _unknown(model: Any, name: str, step: int, shape: Shape) -> str:
    title = getattr(model, "__name__", str(model))
    parent = ".".join(name.split(".")[: step - 1])
    message = f"{title} has no field {name!r}"
    if parent and not (shape.parts or shape.values):
        return f"{message}: {parent!r} {'is not described further' if shape.opaque else 'has nothing below it'}"
    names = [place.name for place in _walk(model)]
    last = name.rpartition(".")[2]
    similar = closest(name, names, 3, 0.75)
    similar += [other for other in names if other.rpartition(".")[2] == last and other not in similar]
    if similar:
        return f"{message}; did you mean {' or '.join(map(repr, similar[:3]))}?"
    return f"{message}; {repr(parent) if parent else 'it'} has {', '.join(sorted(shape.parts))}"


def _walk(model: Any) -> Iterator[Place]:
    """All names that do not depend on data, objects before their fields, each class once on a way."""

    def below(prefix: str, shape: Shape, above: tuple[Shape, ...]) -> Iterator[Place]:
        for segment, type_ in shape.parts.items():
            child = shape_of(type_)
            place = Place(f"{prefix}{segment}", child, (*above, shape))
            yield place
            if not any(cls in outer.classes for cls in child.classes for outer in place.above):
                yield from below(f"{place.name}.", child, place.above)

    yield from below("", _root(model), ())


def leaves(model: Any) -> Iterator[Place]:
    """Yield the places of a model that hold exactly one string, number or boolean, which filters can compare."""
    return (place for place in _walk(model) if place.shape.scalar and not place.in_list)


def fields_of(type: type, model: Any) -> list[str]:
    """Return the fields to request for a user's own type, and no more.

    Nested Structs are followed, through lists too; if one has all fields of the model there, or is a dict, the whole
    object is requested. The server leaves out false, zero and empty values, so give such fields a default.

    Args:
        type: A Struct (a dataclass or TypedDict will do). Its names are those of the wire: renaming is honoured.
        model: The model of the server's records.

    Returns:
        Dotted names in the order of the type's fields; empty if it has all fields, as the model itself and its
        subclasses do.

    Raises:
        TypeError: `type` is not a class with fields.
        ValueError: It has a field that the model lacks, or an object where the model has a value or the reverse; it
            has no fields at all; or it is decoded from arrays.
    """
    return list(_fields_of(type, model))


@lru_cache(maxsize=256)
def _fields_of(user: Any, model: Any) -> tuple[str, ...]:
    if isinstance(user, type) and isinstance(model, type) and issubclass(user, model):
        return ()
    described = inspect.type_info(user)
    if not isinstance(described, _OBJECTS):
        raise TypeError(f"type must be a Struct, not {user!r}")
    names = tuple(dict.fromkeys(_requested(described, model, "", ())))
    if not names:
        raise ValueError(f"{user.__name__} has no fields, so there is nothing to request")
    return () if _root(model).parts.keys() <= set(names) else names


def _requested(described: inspect.Type, model: Any, prefix: str, inside: tuple[type, ...]) -> Iterator[str]:
    assert isinstance(described, _OBJECTS)
    title = described.cls.__name__
    if isinstance(described, inspect.StructType) and described.array_like:
        raise ValueError(f"{title} is array_like, and the server sends objects")
    for field in described.fields:
        name = f"{prefix}{field.encode_name}"
        try:
            place = resolve(model, name)
        except ValueError as error:
            if _private(field):
                continue
            raise ValueError(f"{title}.{field.name}: {error}") from None
        shape = shape_of(field.type)
        _check_fit(f"{title}.{field.name}", shape, place.shape, place.name)
        objects = list(_objects(field.type))
        recursive = any(cls in {*inside, described.cls, *place.shape.classes} for cls in shape.classes)
        if not objects or recursive or shape.values or shape.opaque or not place.shape.parts:
            yield name
            continue
        below = [part for nested in objects for part in _requested(nested, model, f"{name}.", (*inside, described.cls))]
        everything = {f"{name}.{part}" for part in place.shape.parts}
        yield from [name] if not below or everything <= set(below) else dict.fromkeys(below)


@lru_cache(maxsize=256)
def known_names(model: Any) -> frozenset[str]:
    """Return the names that the records of a model may have at the top, other spellings included.

    Args:
        model: A Struct, or a dict for answers whose keys are data: it knows none.
    """
    return frozenset(field.encode_name for field in getattr(inspect.type_info(model), "fields", ()))


@lru_cache(maxsize=256)
def required_objects(user: Any) -> Mapping[str, Any]:
    """Return the names of the objects without which a type cannot be decoded, each with those inside it.

    Args:
        user: A type, or `None`.
    """
    return {} if user is None else _required(inspect.type_info(user), ())


def _required(described: inspect.Type, inside: tuple[type, ...]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for field in getattr(described, "fields", ()):
        objects = [] if not field.required or shape_of(field.type).is_list else list(_objects(field.type))
        if len(objects) == 1 and not any(cls in inside for cls in shape_of(objects[0]).classes):
            names[field.encode_name] = _required(objects[0], (*inside, *shape_of(objects[0]).classes))
    return names


def _objects(type_: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(type_, inspect.Metadata):
        yield from _objects(type_.type)
    elif isinstance(type_, inspect.UnionType):
        for one in type_.types:
            yield from _objects(one)
    elif isinstance(type_, _LISTS):
        yield from _objects(type_.item_type)
    elif isinstance(type_, _OBJECTS):
        yield type_


def _check_fit(title: str, shape: Shape, served: Shape, name: str) -> None:
    """Raise if a field of the user's type has another shape than the model."""
    if shape.opaque or served.opaque or (served.folded and (shape.is_list or shape.values)):
        return
    is_object, served_object = bool(shape.parts or shape.values), bool(served.parts or served.values)
    if (
        (is_object and not served_object)
        or (shape.leaves and not is_object and not (served.leaves or served.time))
        or shape.is_list != served.is_list
    ):
        expected = "an object" if is_object and not served_object else describe(shape)
        raise ValueError(f"{title} is {expected}, but {name!r} is {describe(served)}")


def describe(shape: Shape) -> str:
    """Return a description of a shape."""
    if shape.is_list:
        return "a list"
    if shape.parts or shape.values:
        return "an object"
    if shape.time:
        return "a time"
    words = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(words[kind] for kind in words if kind in shape.leaves) or "not described"
