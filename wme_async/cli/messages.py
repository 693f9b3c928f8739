"""Errors in the words of the command line: options and variables in place of the names of Python."""

from collections.abc import Sequence
from typing import Final

from wme_async.errors import Forbidden, VersionConflict

_WORDS: Final[Sequence[tuple[str, str]]] = (
    ("overwrite=True (--force)", "--force"),
    ("if_changed=True", "--if-changed"),
    ("another `name`", "another --name"),
    ("name='", "--name '"),
    ("use wme.wikidata.", "use wme-async wikidata "),
    ("another token_file", "another --token-file"),
)
"""What the library calls an argument, and its option."""


def message_of(error: BaseException) -> str:
    """Return the message of an error for a person at a shell.

    Args:
        error: Any exception.
    """
    if isinstance(error, OSError) and not isinstance(error, VersionConflict) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    text = str(error)
    if isinstance(error, Forbidden):
        text = text.replace("`auth.user()` lists its groups", "`wme-async login` shows its groups")
    for argument, option in _WORDS:
        text = text.replace(argument, option)
    return text
