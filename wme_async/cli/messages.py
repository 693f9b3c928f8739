"""Errors in the words of the command line: options and variables in place of the names of Python."""

import re
from collections.abc import Sequence
from typing import Final

from wme_async.errors import VersionConflict

# The library names an argument, and in brackets its option: `overwrite=True (--force)`.
_BOTH: Final = re.compile(r"\w+(?:=\w+)? \((--[a-z-]+)\)")
# What the service's object store adds for its operators; the advice after it is for the reader.
_STORE_DETAILS: Final = re.compile(r"\.?\s*status code: \d+, request id: [^\s,;]*(?:, host id: [^\s;]*)?")
_REFUSED: Final = re.compile(r"(\S+) is refused: ")
_WORDS: Final[Sequence[tuple[str, str]]] = (
    ("if_changed=True", "--if-changed"),
    ("another `name`", "another --name"),
    ("another name=", "another --name"),
    ("to name=", "to --name"),
    ("with filters=", "with --where"),
    ("max_delete=", "--max-delete "),
    ("another name keeps both", "another --name keeps both"),
    ("another token_file", "another --token-file"),
    ("name='", "--name '"),
    ("use wme.wikidata.", "use wme-async wikidata "),
    ("`auth.user()` lists its groups", "`wme-async login` shows its groups"),
)
"""What else the library says, and the same for a shell."""


def message_of(error: BaseException) -> str:
    """Return the message of an error for a person at a shell.

    Args:
        error: Any exception.
    """
    if isinstance(error, OSError) and not isinstance(error, VersionConflict) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    text = _STORE_DETAILS.sub("", _BOTH.sub(r"\1", str(error)))
    for argument, option in _WORDS:
        text = text.replace(argument, option)
    refused = _REFUSED.search(text)
    return text if refused is None else f"{text}; --allow-host {refused[1]} lets it be fetched"
