"""A second attempt for records that do not fit their model, without cost for those that do.

Go writes `null` for an empty list unless a field omits empty values, and a failed conversion leaves `null` among the
sections of a structured content. To the services both mean the same as absence. So if, and only if, a record fails to
decode, its empty parts are removed and the same decoder tries again:

- a `null` where the type has no place for one: the key of an object, the element of a list. In a row of a table, which
  is a list within a list, an empty object keeps its place, or all that follow would stand in the wrong column;
- a single object where a list belongs, for the few keys that the published schema describes that way.

Nothing else is mended: a number in place of a string is as wrong the second time. A `null` that the type allows stays.
"""

from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

T = TypeVar("T")

Buffer: TypeAlias = bytes | bytearray | memoryview

_ONE_OR_MANY: Final = frozenset({"infobox", "license", "protection", "references", "tables"})

_ROW: Final = "[]"
"""In place of the key: the value is an element of a list."""

_OBJECTS: Final = (inspect.StructType, inspect.TypedDictType, inspect.DataclassType)

# Numbers pass through as they were written, so that the second judgement is of the same document.
_read: Final = msgspec.json.Decoder(float_hook=lambda digits: msgspec.Raw(digits.encode()))
_write: Final = msgspec.json.Encoder()
_described: Final = lru_cache(maxsize=256)(inspect.type_info)


def decode_record(decoder: msgspec.json.Decoder[T], data: Buffer) -> T:
    """Decode a record; if that fails, remove its empty parts and try again.

    If `decoder.decode(data)` succeeds, the result is the same.

    Args:
        decoder: The decoder of both attempts.
        data: One JSON document.

    Raises:
        Exception: Any error of the decoder, also after mending: call it in `models.decoding.decoding`, which
            translates it.
    """
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        return mend(decoder, data, error)


def mend(decoder: msgspec.json.Decoder[T], data: Buffer, error: msgspec.ValidationError) -> T:
    """Decode a record that failed, without its empty parts.

    Args:
        decoder: The decoder.
        data: The record.
        error: The error of the first attempt; raised again if the record has no empty parts.

    Raises:
        msgspec.ValidationError: It does not fit without them either.
    """
    type_: Any = decoder.type
    try:
        document = _read.decode(data)
        mended = _mended(document, _described(type_), "")
        repaired = None if mended is document else _write.encode(mended)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the set is open; the caller's error is raised below
        repaired = None  # an error in a part that the type skips is not that of the first attempt
    if repaired is None:
        raise error
    return decoder.decode(repaired)


def _mended(value: Any, type_: inspect.Type, key: str) -> Any:
    """Return the value in the form of its type; the same object if it has that form."""
    place = _place(value, type_, key)
    if isinstance(value, dict):
        if isinstance(place, inspect.CollectionType):
            return [_mended(value, place.item_type, "")]
        if isinstance(place, inspect.DictType):
            return _mended_object(value, dict.fromkeys(value, place.value_type))
        if isinstance(place, _OBJECTS):
            return _mended_object(value, {field.encode_name: field.type for field in place.fields})
    elif isinstance(value, list) and isinstance(place, inspect.CollectionType):
        item_type = place.item_type
        filled = (
            [{} if item is None else item for item in value]
            if key == _ROW and isinstance(item_type, _OBJECTS)
            else value
        )
        present = [item for item in filled if item is not None or _takes_null(item_type)]
        items = [_mended(item, item_type, _ROW) for item in present]
        if len(items) != len(value) or any(new is not old for new, old in zip(items, value, strict=True)):
            return items
    return value


def _mended_object(value: dict[str, Any], types: dict[str, inspect.Type]) -> dict[str, Any]:
    changed = False
    result = {}
    for key, old in value.items():
        type_ = types.get(key)
        if type_ is None:  # unknown to the model, so nothing that could have failed
            result[key] = old
        elif old is None and not _takes_null(type_):
            changed = True
        else:
            result[key] = new = _mended(old, type_, key)
            changed |= new is not old
    return result if changed else value


def _place(value: Any, type_: inspect.Type, key: str) -> inspect.Type | None:
    """Return the member of a type that a value belongs to, or `None` if that is not certain."""
    while isinstance(type_, inspect.Metadata):
        type_ = type_.type
    members = type_.types if isinstance(type_, inspect.UnionType) else (type_,)
    lists = [member for member in members if isinstance(member, inspect.CollectionType)]
    if isinstance(value, list):
        return lists[0] if lists else None
    if not isinstance(value, dict):
        return None
    for member in members:
        if isinstance(member, inspect.DictType):
            return member
        if isinstance(member, inspect.StructType) and member.tag_field is not None:
            if value.get(member.tag_field) == member.tag:
                return member
        elif isinstance(member, _OBJECTS):
            return member
    return lists[0] if lists and key in _ONE_OR_MANY else None


def _takes_null(type_: inspect.Type) -> bool:
    while isinstance(type_, inspect.Metadata):
        type_ = type_.type
    if isinstance(type_, inspect.UnionType):
        return any(_takes_null(member) for member in type_.types)
    return isinstance(type_, inspect.NoneType | inspect.AnyType | inspect.RawType | inspect.CustomType) or (
        isinstance(type_, inspect.LiteralType) and None in type_.values
    )
