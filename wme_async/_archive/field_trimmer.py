r"""Very long lines without the text that nobody asked for.

Nearly all of a very long line is one string: the HTML or the wikitext of a page. Where the type does not name its
field, its characters are dropped as they come, so that a line takes the memory of what is wanted of it. What is left is
JSON that decodes to the same value.

Nothing is parsed but where strings begin and end: a quote outside a string begins one, and inside it one that no
backslash stands before ends it. A string is dropped only if it is the value of a key that the type names nowhere.
"""

import re
from typing import Final

import msgspec

from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

__all__ = ["FieldTrimmer"]

# In front of its quote, since inside a longer key than is looked at a quote may stand too, behind a backslash.
_KEY: Final = re.compile(rb'[{,\s]"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*\Z', re.DOTALL)
_STRING: Final = msgspec.json.Decoder(str)
_LONGEST_KEY: Final = 256  # bytes looked back for a key and its colon


class FieldTrimmer:
    """Takes one line, a piece at a time, and keeps what is wanted of it.

    Args:
        names: The keys whose values are wanted, wherever they stand.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._inside = False  # a string
        self._dropping = False  # the rest of that string is not wanted
        self._escaped = False  # the next byte belongs to the backslash before it

    def take(self, line: bytearray, piece: bytes) -> int:
        """Add to the line what is wanted of its next piece, and take off its end what turns out not to be.

        Returns:
            How many bytes were dropped.
        """
        clean = self._clean(piece)
        start = 0
        if self._dropping:
            start = clean.find(b'"')
            if start < 0:
                return len(piece)
            self._dropping = False
        line += memoryview(piece)[start:]
        quotes = clean.count(b'"', start)
        self._inside ^= bool(quotes & 1)
        if not (self._inside and quotes):
            return start
        # A string goes on beyond this piece; those that do not are left to the decoder, which skips them quickly.
        opened = len(line) - (len(piece) - clean.rfind(b'"'))
        if not self._unwanted(line[max(0, opened - _LONGEST_KEY) : opened]):
            return start
        dropped = len(line) - opened - 1
        del line[opened + 1 :]
        self._dropping = True
        return start + dropped

    def _clean(self, piece: bytes) -> bytes:
        """Return bytes of the same length where only quotes that begin or end a string are left."""
        text = b" " + piece[1:] if piece and self._escaped else piece
        text = text.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        if piece:
            self._escaped = text.endswith(b"\\")
        return text

    def _unwanted(self, before: bytearray) -> bool:
        """Say whether what stands before a string is a key that is not wanted."""
        match = _KEY.search(before)
        if match is None:
            return False
        try:
            return decode_json(b'"%b"' % match[1], _STRING) not in self._names
        except DecodeError:
            return False
