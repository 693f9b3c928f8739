"""Names to URL paths: titles, identifiers, file names and hours, quoted or rejected.

All functions return text that is already percent-encoded, with no slash at either end. Put it into a URL unchanged
(`yarl.URL(..., encoded=True)`): quoting it again would request another page.
"""

import re
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final
from urllib.parse import quote

from wme_async._arguments import check_type

_HOUR: Final = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[T /](?P<hour>[0-9]{2})"
    r"(?::(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:\.(?P<fraction>[0-9]+))?)?)?"
    r"(?P<zone>[Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)
_RELATIVE_HOUR: Final = re.compile(r"latest|-[0-9]{1,4}h")
_CHUNK: Final = re.compile(r"(?:(?P<snapshot>.+?)_)??(?:chunk_)?(?P<number>[0-9]+)", re.DOTALL)


def article_path(name: str) -> str:
    """Return the path of a page title, for on-demand look-ups.

    The server decodes the path once and takes the result as the exact title, without case folding or redirects. Spaces
    become underscores, as in the URLs of pages. All other characters except letters and digits are percent-encoded, the
    slash too, so that `?`, `#` and `%` stay in the title and `..` is not a directory. The server stores titles in the
    composed Unicode form (NFC), so requests use it too.

    Args:
        name: The title in plain text: `"AC/DC"`, `"Who's Afraid of Virginia Woolf?"`. Not percent-encoded.

    Raises:
        TypeError: `name` is not text.
        ValueError: No page can have this title: it is empty, `.` or `..`, or has control characters in it.
    """
    text = unicodedata.normalize("NFC", _text(name, "a title"))
    if not text.strip(" _"):
        raise ValueError(f"a title is needed, got {name!r}")
    if text in {".", ".."}:
        raise ValueError(f"no page is called {name!r}")
    return quote(text.replace(" ", "_"), safe="")


def file_path(name: str) -> str:
    """Return the path of a media file's name.

    Args:
        name: In plain text: `"Ottawa 0757.jpg"`. Spaces become underscores; nothing else changes, so a name with the
            prefix `File:` requests another object than one without.

    Raises:
        TypeError: `name` is not text.
        ValueError: No file can have this name. A slash is an error because the server cannot route it, not even
            encoded, and would respond with 403.
    """
    text = unicodedata.normalize("NFC", _text(name, "a file name"))
    if "/" in text or "\\" in text:
        raise ValueError(f"a file name has no slash or backslash in it, got {name!r}")
    if not text.strip(" _") or text in {".", ".."}:
        raise ValueError(f"a file name is needed, got {name!r}")
    return quote(text.replace(" ", "_"), safe="")


def identifier_path(identifier: str | int, *, reserved: Collection[str] = ()) -> str:
    """Return the path of an identifier: a project, language, namespace, archive or entity.

    Args:
        identifier: `"enwiki_namespace_0"`, `"Q42"`, `0`, ...: take it from a list rather than composing it.
        reserved: Words that the server takes for the name of another resource.

    Raises:
        TypeError: `identifier` is neither text nor a whole number.
        ValueError: It is empty, reserved, or could lead out of its directory (`..`, slashes, control characters). An
            identifier also names the downloaded file, so this protects the disk as well as the request.
    """
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        if identifier < 0:
            raise ValueError(f"an identifier is not negative, got {identifier}")
        return str(identifier)
    text = _text(identifier, "an identifier")
    if not text.strip():
        raise ValueError("an identifier is needed, got an empty one")
    if "/" in text or "\\" in text or ".." in text or text == ".":
        raise ValueError(f"an identifier has no path in it, got {text!r}")
    if text in reserved:
        raise ValueError(f"{text!r} is not an identifier here: the server has a list of other archives under that name")
    return quote(text, safe="")


def chunk_path(snapshot: str, chunk: str | int) -> str:
    """Return the path of one chunk below its snapshot.

    The server reads only the digits after the last underscore, so it would respond to the identifier of another
    snapshot's chunk with this snapshot's chunk of the same number. That is an error here.

    Args:
        snapshot: Identifier of the snapshot: `"enwiki_namespace_0"`.
        chunk: Its number, or an identifier: `2`, `"chunk_2"`, `"enwiki_namespace_0_chunk_2"`.

    Raises:
        TypeError: `chunk` is neither text nor a whole number.
        ValueError: `chunk` does not end in a number, or belongs to another snapshot.
    """
    path = identifier_path(chunk)
    match = _CHUNK.fullmatch(str(chunk))
    if match is None:
        raise ValueError(f"a chunk is a number or ends in one, got {chunk!r}")
    if match["snapshot"] not in {None, snapshot}:
        raise ValueError(
            f"{chunk!r} is not a chunk of {snapshot!r}: the server would send {match['number']} of it anyway"
        )
    return path


def chunk_number(chunk: str | int) -> int:
    """Return the number of a chunk, the only part of its identifier that the server reads.

    Args:
        chunk: One that `chunk_path` accepts.

    Raises:
        ValueError: `chunk` does not end in a number.
    """
    match = _CHUNK.fullmatch(str(chunk))
    if match is None:
        raise ValueError(f"a chunk is a number or ends in one, got {chunk!r}")
    return int(match["number"])


def hour_path(hour: str | datetime) -> str:
    """Return the path of an hour, UTC: `"2025-07-16/05"`, the hour always with two digits.

    Args:
        hour: `"2025-07-16T05"`, `"2025-07-16/05"` or `"2025-07-16T05:00:00Z"`; without a zone it is UTC, with another
            one it is converted. Text that is not on the hour raises, since it may mean the hour before or after. Or an
            aware datetime, whose minutes and seconds are ignored: `datetime.now(UTC)` is the current hour.

    Raises:
        TypeError: `hour` is neither text nor a datetime (a date alone does not say which of 24 hours).
        ValueError: A naive datetime, which may mean any zone; text of another form; a day or an hour that does not
            exist; minutes or seconds that are not zero.
    """
    if isinstance(hour, datetime):
        if hour.utcoffset() is None:
            raise ValueError(f"a naive datetime can mean any zone: give it one, as in {hour!r}.replace(tzinfo=UTC)")
        return _in_utc(hour)
    check_type("an hour", hour, str, "text such as '2025-07-16T05' or an aware datetime")
    match = _HOUR.fullmatch(hour.strip())
    if match is None:
        raise ValueError(f"an hour looks like '2025-07-16T05', 'latest' or '-3h', got {hour!r}")
    try:
        clock = f"{match['hour']}:{match['minute'] or '00'}:{match['second'] or '00'}"
        moment = datetime.fromisoformat(f"{match['date']}T{clock}").replace(tzinfo=_zone(match["zone"])).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"there is no such hour as {hour!r}: {error}") from None
    if moment.minute or moment.second or int(match["fraction"] or 0):
        raise ValueError(f"batches are made by the hour, UTC: {hour!r} is not on the hour")
    return _in_utc(moment)


def is_relative_hour(hour: str) -> bool:
    """Return whether an hour depends on when it is looked up: `latest`, or so many hours ago (`-3h`)."""
    return _RELATIVE_HOUR.fullmatch(hour) is not None


def hour_of(path: str) -> datetime:
    """Return the beginning of an hour, UTC.

    Args:
        path: From `hour_path`.
    """
    return datetime.fromisoformat(f"{path.replace('/', 'T')}:00:00+00:00")


def hour_advice(hour: datetime, now: datetime) -> str:
    """Return why the batches of an hour may not exist, and what to do.

    Args:
        hour: The beginning of the hour, UTC.
        now: The server's clock.
    """
    rule = "batches of an hour appear some 25 minutes after its end and stay for 48 hours"
    if now < hour + timedelta(hours=1):
        return f"this hour has not ended; {rule}: try 'latest'"
    if now < hour + timedelta(hours=2):
        return f"{rule}: try again later, or 'latest'"
    if now > hour + timedelta(hours=48):
        return f"this hour was {(now - hour) // timedelta(hours=1):,} hours ago; {rule}: try 'latest', or a snapshot"
    return ""


def _in_utc(moment: datetime) -> str:
    # Not strftime: it does not pad years below 1000 on every platform.
    return moment.astimezone(UTC).isoformat()[:13].replace("T", "/")


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    offset = timedelta(hours=int(text[1:3]), minutes=int(text[-2:]))
    return timezone(-offset if text[0] == "-" else offset)


def _text(value: Any, label: str) -> str:
    check_type(label, value, str, "text")
    if not value.isprintable() and any(
        unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value
    ):
        raise ValueError(f"{label} has no control characters or lone surrogates in it, got {value!r}")
    return str(value)
