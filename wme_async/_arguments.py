"""Arguments of wrong types, refused in the same words wherever they are given.

What is not refused at the call fails later in the words of Python or of a library, far from who gave it, or does
something else than was meant: a folder of the empty name is the current one, and "no" is true.
"""

import builtins
import types
from collections.abc import AsyncIterable, Iterable
from typing import Any, NewType

__all__ = [
    "check_flags",
    "check_functions",
    "check_path",
    "check_record_type",
    "check_source",
    "check_text",
    "check_url_of",
    "texts_of",
]


def check_flags(**given: object) -> None:
    """Refuse what is neither True nor False, such as "no" from the environment, which counts as true.

    Raises:
        TypeError: Naming it.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, not {value!r}")


def check_functions(**given: object) -> None:
    """Refuse what cannot be called; None is for no function.

    Raises:
        TypeError: Naming it.
    """
    for name, value in given.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} is a function, not {value!r}")


def check_text(**given: object) -> None:
    """Refuse what is no text, or an empty one; None is for nothing.

    Raises:
        TypeError: Naming it.
        ValueError: Naming it.
    """
    for name, value in given.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is text, not {value!r}")
        if value == "":
            raise ValueError(f"{name} is empty")


def check_url_of(name: str, value: object) -> None:
    """Refuse what is no absolute URL of a place on the web; None is for nothing.

    Raises:
        TypeError: It is no text.
        ValueError: It is no URL.
    """
    check_text(**{name: value})
    if isinstance(value, str) and not value.startswith(("http://", "https://")):
        raise ValueError(f"{name} is a URL such as https://example.com/downloads, not {value!r}")


def check_path(name: str, value: object, *, optional: bool = False) -> None:
    """Refuse what is no path, or an empty one, which would be the current folder.

    Args:
        name: Of the argument.
        value: What was given.
        optional: Whether it may be None.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty.
    """
    if value is None and optional:
        return
    path = value.__fspath__() if hasattr(value, "__fspath__") and not isinstance(value, type) else value
    if not isinstance(path, str):
        raise TypeError(f"{name} is a path, as text or as pathlib.Path, not {value!r}")
    if not path:
        raise ValueError(f'{name} is an empty path; the current folder is "."')


def texts_of(name: str, value: object, of: str) -> tuple[str, ...]:
    """Return several texts, of which one alone would be taken for its letters.

    Args:
        name: Of the argument.
        value: What was given.
        of: What the texts are, in words.

    Raises:
        TypeError: One text, no list, or something else among them.
    """
    if isinstance(value, str):
        raise TypeError(f"{name} is a list of {of}, such as [{value!r}], not one string")
    if isinstance(value, bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} is a list of {of}, not {value!r}")
    texts = tuple(value)
    for each in texts:
        if not isinstance(each, str):
            raise TypeError(f"{name} is a list of {of}, and {each!r} is no text")
    return texts


def check_record_type(type: Any) -> None:
    """Refuse what is no type at all: an instance, a name, a number.

    Raises:
        TypeError: Saying what is wanted.
    """
    # Struct[int], A | B and a name for a type are no classes, and types all the same.
    known = isinstance(type, builtins.type | types.UnionType | NewType) or hasattr(type, "__value__")
    if not known and getattr(type, "__origin__", None) is None:
        raise TypeError(f"type is a class to decode into, such as a msgspec Struct, not {type!r}")


def check_source(name: str, value: object, of: str) -> None:
    """Refuse what `async for` cannot be used with.

    Raises:
        TypeError: Naming it.
    """
    if not isinstance(value, AsyncIterable):
        raise TypeError(f"{name} is an async iterable of {of}, not {value!r}")
