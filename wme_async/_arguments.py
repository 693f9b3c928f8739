"""Checks of arguments: once, at the public call, with the same messages everywhere.

Without a check, an argument of a wrong type fails later, with a message of Python or of a library and far from the
mistake, or it means something else: the path "" is the current folder, and the text "no" is true.

Each check takes arguments by name and puts the name into its error: `check_numbers(size=size)`. Unless a check has
`optional`, it accepts None, which means that the argument is absent.
"""

import builtins
import math
import types
from collections.abc import AsyncIterable, Collection, Iterable
from datetime import datetime
from typing import Any, NewType


def check_instances(**arguments: tuple[object, type]) -> None:
    """Raise if a value is not an instance of its class.

    Args:
        **arguments: The value and its class, by name.

    Raises:
        TypeError: With the name and the class.
    """
    for name, (value, cls) in arguments.items():
        if value is not None and not isinstance(value, cls):
            raise TypeError(f"{name} must be {cls.__name__}(...) or None, not {value!r}")


def check_type(name: str, value: object, classes: Any, requirement: str, *, secret: bool = False) -> None:
    """Raise if a value is not an instance of one of several classes.

    Args:
        name: Of the argument.
        value: Its value.
        classes: As `isinstance` takes them.
        requirement: The kind of the value, with an example, for the message.
        secret: Name the class of the value, in place of the value.

    Raises:
        TypeError: With the requirement.
    """
    if not isinstance(value, classes):
        shown = type(value).__name__ if secret else repr(value)
        raise TypeError(f"{name} must be {requirement}, not {shown}")


def check_flags(**arguments: object) -> None:
    """Raise if a value is neither True nor False, such as the text "no" from the environment. None is neither.

    Raises:
        TypeError: With the name.
    """
    for name, value in arguments.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")


def check_functions(**arguments: object) -> None:
    """Raise if a value cannot be called.

    Raises:
        TypeError: With the name.
    """
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, not {value!r}")


def check_numbers(
    *,
    whole: bool = False,
    optional: bool = True,
    above: float | None = None,
    minimum: float | None = None,
    unit: str = "",
    owner: str = "",
    **arguments: object,
) -> None:
    """Raise if a value is not a number, as text from the environment is not, or out of range.

    Args:
        whole: Require `int`.
        optional: Accept None.
        above: Require a finite number greater than this.
        minimum: Require a finite number that is at least this.
        unit: The unit of the number, such as "seconds", for the message.
        owner: The class whose attributes they are, for the message.
        **arguments: The values by name.

    Raises:
        TypeError: A value is not a number; booleans are not.
        ValueError: A value is out of range.
    """
    kind = f"a {'whole ' if whole else ''}number{f' of {unit}' if unit else ''}"
    for argument, value in arguments.items():
        if value is None and optional:
            continue
        name = f"{owner}.{argument}" if owner else argument
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise TypeError(f"{name} must be {kind}, not {value!r}")
        if above is not None and not above < value < math.inf:
            raise ValueError(f"{name} must be {kind} above {above:g}, not {value!r}")
        if minimum is not None and not minimum <= value < math.inf:
            raise ValueError(f"{name} must be at least {minimum:g}{f' {unit}' if unit else ''}, not {value!r}")


def check_text(**arguments: object) -> None:
    """Raise if a value is not text, or is empty.

    Raises:
        TypeError: It is not text.
        ValueError: It is empty.
    """
    for name, value in arguments.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} must be text, not {value!r}")
        if value == "":
            raise ValueError(f"{name} is empty")


def check_choice(name: str, value: object, choices: Collection[str], *, function: bool = False) -> None:
    """Raise if a value is not one of several words.

    Args:
        name: Of the argument.
        value: Its value.
        choices: The words.
        function: Accept a function too.

    Raises:
        ValueError: With the choices.
    """
    # A value that cannot be hashed, such as a list, is compared with each word.
    if value not in tuple(choices) and not (function and callable(value)):
        words = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be {words}{' or a function' if function else ''}, not {value!r}")


def check_http_url(name: str, value: object) -> None:
    """Raise if a value is not an absolute URL of HTTP.

    Raises:
        TypeError: It is not text.
        ValueError: It is not a URL.
    """
    check_text(**{name: value})
    if isinstance(value, str) and not value.startswith(("http://", "https://")):
        raise ValueError(f"{name} must be a URL such as https://example.com/downloads, not {value!r}")


def check_path(name: str, value: object, *, optional: bool = False) -> None:
    """Raise if a value is not a path, or an empty one, which would be the current folder.

    Args:
        name: Of the argument.
        value: Its value.
        optional: Accept None.

    Raises:
        TypeError: It is not a path.
        ValueError: It is empty.
    """
    if value is None and optional:
        return
    path = value.__fspath__() if hasattr(value, "__fspath__") and not isinstance(value, type) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} must be a path, as text or as pathlib.Path, not {value!r}")
    if not path:
        raise ValueError(f'{name} is an empty path; the current folder is "."')


def check_aware(name: str, value: object) -> datetime:
    """Return a time that has a time zone.

    Raises:
        TypeError: It is not a datetime.
        ValueError: It has no time zone.
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be a datetime with a time zone, not {value!r}")
    if value.utcoffset() is None:
        raise ValueError(f"{name} needs a time zone: datetime.now(UTC), not datetime.now()")
    return value


def list_of(name: str, value: object, items: str) -> tuple[Any, ...]:
    """Return the items of a list; raise for text, which would be a list of its letters.

    Args:
        name: Of the argument.
        value: Its value: any iterable except text.
        items: The kind of the items, for the message.

    Raises:
        TypeError: It is not a list.
    """
    if isinstance(value, str):
        raise TypeError(f"{name} must be a list of {items}, such as [{value!r}], not one string")
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of {items}, not {value!r}")
    return tuple(value)


def texts_of(name: str, value: object, items: str) -> tuple[str, ...]:
    """Return the items of a list of texts.

    Args:
        name: Of the argument.
        value: Its value.
        items: The kind of the texts, for the message.

    Raises:
        TypeError: It is not a list, or an item is not text.
    """
    texts = list_of(name, value, items)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of {items}, and {text!r} is not text")
    return texts


def check_record_type(type: Any) -> None:
    """Raise if a value is not a type: an instance, a name, a number.

    Raises:
        TypeError: With an example of a type.
    """
    # Struct[int], A | B and a name for a type are not classes, and types all the same.
    is_type = isinstance(type, builtins.type | types.UnionType | NewType) or hasattr(type, "__value__")
    if not is_type and getattr(type, "__origin__", None) is None:
        raise TypeError(f"type must be a class to decode into, such as a msgspec Struct, not {type!r}")


def check_async_iterable(name: str, value: object, items: str) -> None:
    """Raise if `async for` cannot be used with a value.

    Raises:
        TypeError: With the name.
    """
    if not isinstance(value, AsyncIterable):
        raise TypeError(f"{name} must be an async iterable of {items}, not {value!r}")
