"""Checks of arguments at the call, before a wrong one breaks a request in another task."""

from collections.abc import Mapping

__all__ = ["check_mapping", "check_numbers", "check_texts"]


def check_numbers(minimum: float, *, integer: bool = True, **values: object) -> None:
    """Check numbers.

    Raises:
        TypeError: A value is not a number, or not an integer.
        ValueError: A value is below the minimum.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
            raise TypeError(f"{name} must be a {'whole ' if integer else ''}number, not {value!r}")
        if not value >= minimum:
            raise ValueError(f"{name} is {minimum:g} or more, not {value!r}")


def check_texts(**values: object) -> None:
    """Check strings.

    Raises:
        TypeError: A value is not a string; the message leaves the value out, which may be a password.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} must be text, not {type(value).__name__}")


def check_mapping(name: str, value: object, contents: str) -> None:
    """Check an optional mapping.

    Args:
        name: The name of the argument.
        value: A mapping, or None.
        contents: Keys and values of the mapping, for the message.

    Raises:
        TypeError: The value is neither.
    """
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of {contents}, not {value!r}")
