r"""Drops unneeded strings from very long lines.

Nearly all of a very long line is one string: the HTML or the wikitext of a page. If the type does not name its field,
its characters are dropped as they arrive, so that a line takes only the memory of its needed fields. The remaining JSON
decodes to the same value.

The only parsing finds the ends of strings: a quote outside a string starts one, and a quote without a backslash before
it ends it. A string is dropped only if it is the value of a key that the type names nowhere.
"""

import re
from typing import Final

import msgspec

from wme_async.errors import DecodeError
from wme_async.models.decoding import decode_json

# With the character before its quote: a key longer than `_MAX_KEY` may contain a quote too, after a backslash.
_KEY: Final = re.compile(rb'[{,\s]"((?:[^"\\]|\\.)*)"[ \t\r\n]*:[ \t\r\n]*\Z', re.DOTALL)
_STRING: Final = msgspec.json.Decoder(str)
_MAX_KEY: Final = 256  # bytes before a string that are searched for its key and colon


class FieldTrimmer:
    """Takes one line, a piece at a time, and drops the strings of unneeded keys.

    Args:
        names: The keys whose values are needed, at any depth.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._inside = False  # a string
        self._dropping = False  # the remaining characters of that string
        self._escaped = False  # the next byte belongs to the backslash before it

    def take(self, line: bytearray, piece: bytes) -> int:
        """Add the needed part of the next piece to the line, and remove the start of an unneeded string from its end.

        Returns:
            The number of dropped bytes.
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
        # This string continues in the next piece; the decoder quickly skips those that end in this one.
        quote = len(line) - (len(piece) - clean.rfind(b'"'))
        if not self._is_unneeded_key(line[max(0, quote - _MAX_KEY) : quote]):
            return start
        dropped = len(line) - quote - 1
        del line[quote + 1 :]
        self._dropping = True
        return start + dropped

    def _clean(self, piece: bytes) -> bytes:
        """Return bytes of the same length, without the quotes that are part of a string."""
        text = b" " + piece[1:] if piece and self._escaped else piece
        text = text.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        if piece:
            self._escaped = text.endswith(b"\\")
        return text

    def _is_unneeded_key(self, before: bytearray) -> bool:
        """Return whether a string follows an unneeded key."""
        match = _KEY.search(before)
        if match is None:
            return False
        try:
            return decode_json(b'"%b"' % match[1], _STRING) not in self._names
        except DecodeError:
            return False
