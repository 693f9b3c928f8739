"""The file name in a `Content-Disposition` header: RFC 6266, with the tolerance that browsers have. Pure."""

import binascii
import codecs
import re
from collections.abc import Iterator
from itertools import count, takewhile
from typing import Final
from urllib.parse import unquote, unquote_to_bytes

_LONGEST: Final = 8192
# A string without a closing quote ends with the header.
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)(?:"|\\?\Z)', re.DOTALL)
_CONTINUATION: Final = re.compile(r"filename\*(0|[1-9]\d?)(\*?)")
_EXTENDED: Final = re.compile(r"([\w!#$%&+^`{}~.-]*)'[^']*'(.*)", re.DOTALL)
_WORD: Final = re.compile(r"=\?([\w.:-]+)(?:\*[\w-]+)?\?([bq])\?([^?]*)\?=", re.IGNORECASE)
_PERCENT: Final = re.compile(r"%[0-9A-Fa-f]{2}")
# Character sets of names. UTF-16 and others that could hide a separator are not accepted.
_CHARSETS: Final = frozenset(
    {
        *("utf-8", "ascii", "gbk", "gb18030", "gb2312", "big5", "shift_jis", "euc_jp", "euc_kr", "koi8-r", "koi8-u"),
        *(f"iso8859-{part}" for part in range(1, 17)),
        *(f"cp{page}" for page in range(1250, 1259)),
    }
)


def disposition_name(header: str) -> str | None:
    """Return the file name that a header suggests, without folders; None if it suggests none.

    `filename*` (RFC 8187) wins over its continuations (RFC 2231), and these over `filename`, in which encoded words
    (RFC 2047), percent-encoding and raw bytes are read as well. Blanks in a value without quotes belong to it, the
    disposition type may be missing, and the content of a quoted string is never a parameter.

    Args:
        header: The value of the header; bytes that are not UTF-8 as surrogates (`surrogateescape`).
    """
    if len(header) > _LONGEST:
        return None
    parameters: dict[str, str] = {}
    for name, value in _parameters(header):
        parameters.setdefault(name, value)
    suggestion = (
        _extended(parameters.get("filename*", "")) or _continued(parameters) or _plain(parameters.get("filename"))
    )
    return re.split(r"[/\\]", suggestion)[-1].strip() or None if suggestion else None


def _parameters(header: str) -> Iterator[tuple[str, str]]:
    """Yield names in lower case, and values without their quotes."""
    at = 0
    while at < len(header):
        stop = _end_of(header, at, "=;")
        name = header[at:stop].strip().lower()
        at = stop + 1
        if header[stop : stop + 1] != "=":
            continue
        while header[at : at + 1] in {" ", "\t"}:
            at += 1
        if header[at : at + 1] == '"':
            content = _quoted(header, at)
            yield name, re.sub(r"\\(.)", r"\1", content[1], flags=re.DOTALL)
            # Anything between the closing quote and the next semicolon is ignored.
            at = _end_of(header, content.end(), ";") + 1
        else:
            stop = header.find(";", at)
            stop = len(header) if stop < 0 else stop
            yield name, header[at:stop].strip()
            at = stop + 1


def _end_of(header: str, at: int, marks: str) -> int:
    """Return the position of the first of some characters outside quoted strings."""
    while at < len(header) and header[at] not in marks:
        at = _quoted(header, at).end() if header[at] == '"' else at + 1
    return at


def _quoted(header: str, at: int) -> re.Match[str]:
    """Match the quoted string that begins at a quote: up to the end of the header without a closing quote."""
    match = _QUOTED.match(header, at)
    assert match is not None
    return match


def _decoded(data: bytes, charset: str) -> str | None:
    """Return decoded bytes; None if the character set is unknown or not accepted."""
    try:
        name = codecs.lookup(charset).name
        return data.decode(name, "replace") if name in _CHARSETS else None
    except (LookupError, ValueError):
        return None


def _extended(value: str) -> str | None:
    match = _EXTENDED.fullmatch(value)
    return _decoded(unquote_to_bytes(match[2]), match[1]) if match else None


def _continued(parameters: dict[str, str]) -> str | None:
    pieces: dict[int, tuple[str, bool]] = {}
    for name, value in parameters.items():
        if match := _CONTINUATION.fullmatch(name):
            pieces.setdefault(int(match[1]), (value, match[2] == "*"))
    charset = "utf-8"
    data = b""
    for number in takewhile(pieces.__contains__, count()):
        value, encoded = pieces[number]
        if number == 0 and encoded:
            match = _EXTENDED.fullmatch(value)
            if match is None:
                return None
            charset, value = match[1], match[2]
        data += unquote_to_bytes(value) if encoded else value.encode("utf-8", "surrogateescape")
    return _decoded(data, charset) if data else None


def _plain(value: str | None) -> str | None:
    if not value:
        return None
    if not value.isascii():
        data = value.encode("utf-8", "surrogateescape")
        try:
            value = data.decode()
        except UnicodeDecodeError:
            # Servers that send neither UTF-8 nor an encoded name send the encoding of their system.
            value = data.decode("cp1252", "replace")
    value = re.sub(r"(\?=)\s+(?==\?)", r"\1", value)
    value = _WORD.sub(lambda match: _word(match) or match[0], value)
    return unquote(value, errors="replace") if _PERCENT.search(value) else value


def _word(match: re.Match[str]) -> str | None:
    """Return a decoded word; None if it is malformed."""
    charset, kind, text = match.groups()
    try:
        if kind.lower() == "b":
            data = binascii.a2b_base64(text + "=" * (-len(text) % 4))
        else:
            data = binascii.a2b_qp(text, header=True)
    except ValueError:
        return None
    return _decoded(data, charset)
