"""What a stream may be given, and the check of it before anything is sent."""

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

from wme_async.errors import DecodeError, OffsetGap
from wme_async.settings import Retry

__all__ = ["Commit", "OnBadRecord", "OnGap", "call", "check_arguments", "check_bounds", "check_kinds"]

Commit: TypeAlias = Literal["auto", "ack", "manual"]
"""What counts as processed, and what saves it."""

OnBadRecord: TypeAlias = Literal["raise", "skip"] | Callable[[DecodeError], Awaitable[None] | None]
"""What becomes of a record that does not decode."""

OnGap: TypeAlias = Literal["log", "raise"] | Callable[[OffsetGap], Awaitable[None] | None]
"""Who is told of missing events."""

_CHOICES: Final = {
    "framing": ("ndjson", "sse"),
    "commit": ("auto", "ack", "manual"),
    "on_bad_record": ("raise", "skip"),
    "on_gap": ("log", "raise"),
}


def check_arguments(*, choices: Mapping[str, object], numbers: Mapping[str, object]) -> None:
    """Refuse words that are none of the choices (those that begin with `on_` may be functions), and bad numbers.

    Raises:
        TypeError: What should be a number above 0 is none.
        ValueError: Naming the choices; or a number that is not above 0.
    """
    for word, value in choices.items():
        hook = word.startswith("on_")
        if value not in _CHOICES[word] and not (hook and callable(value)):
            raise ValueError(f"{word} is {', '.join(_CHOICES[word])}{' or a function' if hook else ''}, not {value!r}")
    for word, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{word} must be a number above 0, not {value!r}")
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{word} must be above 0, not {value!r}")


def check_bounds(max_items: object, max_wait: object) -> None:
    """Refuse lists that could have nothing in them, or would have to be there before they were asked for.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of range.
    """
    if isinstance(max_items, bool) or not isinstance(max_items, int):
        raise TypeError(f"max_items must be a whole number, not {max_items!r}")
    if isinstance(max_wait, bool) or not isinstance(max_wait, int | float):
        raise TypeError(f"max_wait must be a number of seconds, not {max_wait!r}")
    if max_items < 1 or not max_wait >= 0:
        raise ValueError(f"max_items is at least 1 and max_wait at least 0 seconds, not {max_items} and {max_wait}")


def check_kinds(*, name: object, offsets: object, retry: object, on_event: object) -> None:
    """Refuse what would fail after the connection was made, or silently have no effect.

    Raises:
        TypeError: Saying what is wanted.
        ValueError: The name is empty.
    """
    if name is None or name == "":
        raise ValueError("name is empty; leave it out for the default")
    if not isinstance(name, str):
        raise TypeError(f"name must be text, not {name!r}")
    if isinstance(offsets, type) or not (hasattr(offsets, "load") and hasattr(offsets, "save")):
        raise TypeError(f'offsets is a store, such as SQLiteOffsets("offsets.db"), not {offsets!r}')
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"retry must be a Retry, such as Retry(attempts=8), or None for ever, not {retry!r}")
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be a function, not {on_event!r}")


async def call(hook: Callable[[Any], Awaitable[None] | None] | str, argument: object) -> None:
    """Call a function that may be a plain or an asynchronous one, or a word, which is none."""
    result = hook(argument) if callable(hook) else None
    if inspect.isawaitable(result):
        await result
