"""What is refused at the call rather than by the first request that it breaks, in another task."""

from collections.abc import Mapping

__all__ = ["check_mappings", "check_numbers", "check_texts"]


def check_numbers(least: float, *, whole: bool = True, **given: object) -> None:
    """Refuse what is no number, or one below the least.

    Raises:
        TypeError: Naming it.
        ValueError: Naming it.
    """
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise TypeError(f"{name} must be a {'whole ' if whole else ''}number, not {value!r}")
        if not value >= least:
            raise ValueError(f"{name} is {least:g} or more, not {value!r}")


def check_texts(**given: object) -> None:
    """Refuse what is no text.

    Raises:
        TypeError: Naming it, without its value, which may be a password.
    """
    for name, value in given.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} must be text, not {type(value).__name__}")


def check_mappings(**given: tuple[object, str]) -> None:
    """Refuse what is neither a mapping nor None.

    Args:
        **given: The value, and what the mapping has, in words.

    Raises:
        TypeError: Naming it.
    """
    for name, (value, words) in given.items():
        if value is not None and not isinstance(value, Mapping):
            raise TypeError(f"{name} must be a dict of {words}, not {value!r}")
