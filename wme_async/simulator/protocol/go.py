"""Error texts of the libraries that the services are written with: JSON decoding and validation in Go."""

from collections.abc import Sequence
from typing import Any, Final

from wme_async.simulator.errors import HTTPError

_KINDS: Final = {
    str: "string",
    bool: "bool",
    list: "array",
    tuple: "array",
    dict: "object",
    int: "number",
    float: "number",
}


def unmarshal_error(value: Any, target: str) -> str:
    """Return the text about a JSON value of the wrong type.

    Args:
        value: The decoded value.
        target: Where it was to go, ending in "of type" and the name of the type.
    """
    kind = _KINDS.get(type(value), "value")
    if isinstance(value, float) and target.rpartition(" ")[2].startswith("int"):
        kind = f"number {value}"
    return f"json: cannot unmarshal {kind} into Go {target}"


def typed(value: Any, kinds: tuple[type, ...], field: str, go_type: str) -> Any:
    """Return a value that is null or of one of some types.

    Raises:
        HTTPError: It is of another type.
    """
    if value is not None and type(value) not in kinds:
        raise HTTPError(422, unmarshal_error(value, f"struct field {field} of type {go_type}"))
    return value


def length_errors(fields: Sequence[str], filters: Sequence[Any], limit: int = 0) -> str:
    """Return the text about lists and names that are too long or too short, or "" for valid parameters.

    Args:
        fields: Field names: at most 255, of 1 to 255 characters each.
        filters: At most 255.
        limit: At most 100.
    """
    errors = []
    if len(fields) > 255:
        errors.append(("Fields", "max"))
    else:
        errors += [
            (f"Fields[{number}]", "max" if name else "min")
            for number, name in enumerate(fields)
            if not 1 <= len(name) <= 255
        ]
    if len(filters) > 255:
        errors.append(("Filters", "max"))
    if limit > 100:
        errors.append(("Limit", "max"))
    text = "Key: 'Model.{name}' Error:Field validation for '{name}' failed on the '{tag}' tag"
    return "\n".join(text.format(name=name, tag=tag) for name, tag in errors)
