"""What a stream may be given, and the check of it before anything is sent."""

import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

from wme_async.errors import DecodeError, OffsetGap

__all__ = ["Commit", "OnBadRecord", "OnGap", "call", "check_choices", "check_numbers"]

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


def check_choices(**given: object) -> None:
    """Refuse words that are none of the choices; those that begin with `on_` may be functions.

    Raises:
        ValueError: Naming the choices.
    """
    for word, value in given.items():
        hook = word.startswith("on_")
        if value not in _CHOICES[word] and not (hook and callable(value)):
            raise ValueError(f"{word} is {', '.join(_CHOICES[word])}{' or a function' if hook else ''}, not {value!r}")


def check_numbers(**given: float) -> None:
    """Refuse what is not a number above 0.

    Raises:
        ValueError: Naming it.
    """
    for word, value in given.items():
        if not value > 0 or math.isinf(value):
            raise ValueError(f"{word} must be above 0, not {value!r}")


async def call(hook: Callable[[Any], Awaitable[None] | None] | str, argument: object) -> None:
    """Call a function that may be a plain or an asynchronous one, or a word, which is none."""
    result = hook(argument) if callable(hook) else None
    if inspect.isawaitable(result):
        await result
