"""The check of filter values, with advice for those of a wrong type."""

import builtins
import math
from enum import Enum

from wme_async._query.backends import Value
from wme_async._query.model_fields import Place, Shape, describe


def checked_value(place: Place, value: object, written: str) -> Value:
    """Return the value to compare with.

    Args:
        place: The field.
        value: The caller's value.
        written: The caller's spelling of the field.

    Raises:
        TypeError: It is not a string, a number or a boolean.
        ValueError: The field never equals it; the message has the likely correction.
    """
    shape, name = place.shape, place.name
    if place.in_list or shape.is_list:
        raise ValueError(f"{name!r} is a list or inside one: a filter needs a field with one value")
    if shape.time:
        raise ValueError(
            f"{name!r} is a time, which is seldom equal to anything: get the records and compare it yourself; on the"
            " stream, start at a time with since="
        )
    if not shape.scalar:
        raise ValueError(f"{name!r} is {describe(shape)}: a filter needs a field with one value{_inside(place)}")
    if value is None:
        raise ValueError(f"{name!r} cannot be filtered by null: the server fails on it")
    plain = _plain(value)
    if plain is None:
        several = "; ask once for each of several values" if isinstance(value, list | tuple | set | frozenset) else ""
        raise TypeError(f"the filter on {name!r} must be one string, number or boolean, not {value!r}{several}")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"the filter on {name!r} is {plain}, which JSON cannot say")
    kind = builtins.type(plain)
    if kind not in shape.leaves and not (kind is int and float in shape.leaves):
        title = repr(name) if written == name else f"{written!r} ({name!r} on the server)"
        raise ValueError(f"{title} is {describe(shape)}, so {value!r} never equals it{_correction(plain, shape)}")
    if isinstance(plain, str):
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the filter on {name!r} has a lone surrogate in it, which is not text: {plain!r}"
            ) from None
    return plain


def _inside(place: Place) -> str:
    """Return advice with the fields of an object that filters can compare."""
    parts = {part: place.shape.child(part) for part in place.shape.parts}
    names = [f"{place.name}.{part}" for part, shape in parts.items() if shape is not None and shape.scalar]
    return f", such as {' or '.join(map(repr, names[:3]))}" if names else ""


def _correction(value: Value, shape: Shape) -> str:
    """Return advice with the value in the type of the field, if the conversion is certain."""
    text = str(value).strip().lower()
    if bool in shape.leaves:
        boolean = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text)
        return "" if boolean is None else f"; write {boolean}"
    if isinstance(value, str):
        try:
            return f"; write {(int if int in shape.leaves else float)(text)}, without quotes"
        except ValueError:
            return ""
    return f"; write {str(value)!r}" if str in shape.leaves and not isinstance(value, bool) else ""


def _plain(value: object) -> Value | None:
    """Return the plain value of an enumeration or another subclass."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return value
    return next((kind(value) for kind in (int, float, str) if isinstance(value, kind)), None)
