"""Names of files: found in headers and URLs, and made safe on every file system. Pure.

What a server calls its file is a stranger's text. It becomes one path component at most, never more: separators,
controls, device names of Windows, leading dots and trailing dots or spaces are taken out.
"""

import hashlib
import mimetypes
import re
import string
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import msgspec

__all__ = [
    "VARIABLES",
    "FileName",
    "check_template",
    "expand",
    "file_key",
    "fitted",
    "name_file",
    "numbered",
    "safe_name",
]

VARIABLES: tuple[str, ...] = ("batch_id", "safe_title", "id", "ext", "uploader", "upload_date")
"""What a path template may contain, in braces."""

_MAX_BYTES = 150
_MAX_DEPTH = 12
_MAX_TEMPLATE = 500
# Reserved on Windows; the colon also names streams there, and a folder separator on old Macs.
_RESERVED = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(
    r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:[. ].*)?$", re.IGNORECASE
)
_DOUBLE = re.compile(r"\.(tar\.[a-z0-9]{1,4}|[a-z0-9]{1,8}\.(?:gz|bz2|xz|zst))$", re.IGNORECASE)
_SINGLE = re.compile(r"\.([A-Za-z0-9]{1,10})$")
_EXTENSION = re.compile(r"[a-z0-9]{1,10}(?:\.[a-z0-9]{1,10})?")

# Only the types that Python itself knows: the machine's own list would give other names on other machines.
_TYPES = mimetypes.MimeTypes(filenames=())
# Types that say nothing, or less than the name does.
_VAGUE = {"application/octet-stream", "binary/octet-stream", "application/gzip", "application/x-gzip", "text/plain"}


class FileName(msgspec.Struct, frozen=True, kw_only=True):
    """What is known about a file for its name. All of it may come from a stranger.

    Args:
        title: Its name without extension.
        ext: Its extension without a dot.
        id: Short and, as far as the source can tell, its own.
        uploader: Whose it is: a channel, or the host.
        upload_date: `YYYYMMDD`; empty where the source does not say.
    """

    title: str
    ext: str
    id: str
    uploader: str
    upload_date: str


def name_file(
    url: str, *, disposition: str | None = None, content_type: str | None = None, upload_date: str
) -> FileName:
    """Find the name of what a URL serves: `Content-Disposition`, then `Content-Type`, then the path.

    Args:
        url: The URL, after redirects.
        disposition: The `Content-Disposition` header.
        content_type: The `Content-Type` header.
        upload_date: `YYYYMMDD`; empty where the source does not say.

    Returns:
        The parts of a name, not yet safe: `expand` makes them so.
    """
    parts = urlsplit(url)
    path_name = unquote(parts.path.rstrip("/").rpartition("/")[2], errors="replace")
    given = _disposition_name(disposition) if disposition else None
    title, ext = _split_extension(given or path_name)
    if given is None or not ext:
        path_ext = ext if given is None else _split_extension(path_name)[1]
        ext = _extension(path_ext, content_type)
    return FileName(
        title=title or parts.hostname or "download",
        ext=ext or "bin",
        id=hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:11],
        uploader=parts.hostname or "unknown",
        upload_date=upload_date,
    )


def _disposition_name(header: str) -> str | None:
    """Return the last part of the name in a `Content-Disposition` header; `filename*` wins (RFC 6266)."""
    if len(header) > 8192:
        return None
    name: str | None = None
    extended = re.search(r";\s*filename\*\s*=\s*([\w!#$%&+^`{}~.-]*)'[^']*'([^;\s]+)", header, re.IGNORECASE)
    if extended:
        charset = extended[1].lower()
        if charset in {"utf-8", "iso-8859-1"}:
            name = unquote_to_bytes(extended[2].strip('"')).decode(charset, "replace")
    if not name:
        plain = re.search(r';\s*filename\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', header, re.IGNORECASE)
        name = _unescaped(plain[1], plain[2]) if plain else None
    if not name:
        return None
    return re.split(r"[/\\]", name)[-1].strip() or None


def _unescaped(quoted: str | None, token: str) -> str:
    name = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    if not name.isascii():
        # Servers that put UTF-8 into a plain header arrive here with surrogates.
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unquote(name, errors="replace") if re.search(r"%[0-9A-Fa-f]{2}", name) else name


def _split_extension(name: str) -> tuple[str, str]:
    for pattern in (_DOUBLE, _SINGLE):
        found = pattern.search(name)
        if found and found.start() > 0:
            return name[: found.start()], found[1].lower()
    return name, ""


def _extension(path_ext: str, content_type: str | None) -> str:
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not kind or (path_ext and kind in _VAGUE):
        return path_ext
    if path_ext and _TYPES.guess_type(f"name.{path_ext}", strict=False)[0] == kind:
        return path_ext
    guessed = _TYPES.guess_extension(kind, strict=False)
    return guessed[1:] if guessed else path_ext


def safe_name(text: str, *, fallback: str = "download", limit: int = _MAX_BYTES) -> str:
    """Make one path component of any text, the same on every file system.

    Args:
        text: Anything.
        fallback: What to use where nothing is left.
        limit: Bytes of UTF-8 at most.

    Returns:
        A name without separators, controls, reserved names, leading dots, trailing dots or spaces; never empty.
    """
    text = unicodedata.normalize("NFC", text[: 4 * limit].encode("utf-8", "replace").decode())
    # Controls, invisible direction marks (which disguise extensions), private and unassigned characters.
    text = "".join(" " if char in "\t\n\r" else char for char in text if char in "\t\n\r" or _visible(char))
    text = _RESERVED.sub("_", text)
    text = re.sub(r"\s+", " ", text).strip().strip(". ").lstrip("~-")
    text = text.encode("utf-8")[:limit].decode("utf-8", "ignore").strip(". ")
    if _DEVICES.match(text):
        text = f"_{text}"
    return text or fallback


def _visible(char: str) -> bool:
    return unicodedata.category(char)[0] != "C" and unicodedata.category(char) not in {"Zl", "Zp"}


def check_template(template: str) -> None:
    """Check a path template, so that no name it can ever give leaves the directory.

    Args:
        template: Such as `batch/{batch_id}/{safe_title}-{id}.{ext}`.

    Raises:
        ValueError: Why not.
    """
    if not template or len(template) > _MAX_TEMPLATE:
        raise ValueError(f"a template has 1 to {_MAX_TEMPLATE} characters")
    if not all(_visible(char) for char in template):
        raise ValueError("a template has no control or invisible characters")
    for literal, field, spec, conversion in _fields(template):
        if field is None:
            pass
        elif field not in VARIABLES or spec or conversion:
            raise ValueError(f"{{{field}}} is unknown: use {', '.join('{' + name + '}' for name in VARIABLES)}")
        # The slash alone has a meaning here. What the variables bring is made safe when it is known.
        if _RESERVED.search(literal.replace("/", "")):
            raise ValueError('a template has none of < > : " \\ | ? *')
    parts = template.split("/")
    if len(parts) > _MAX_DEPTH:
        raise ValueError(f"a template has at most {_MAX_DEPTH} levels")
    for part in parts:
        if not part:
            raise ValueError("a template is relative, with no empty level and a file name at its end")
        if part in {".", ".."} or part.startswith((".", "~", " ")) or part.endswith((".", " ")):
            raise ValueError("no level of a template starts with a dot, ~ or space, or ends in a dot or space")
        if _DEVICES.match(part):
            raise ValueError(f"{part!r} is a device on Windows")


def _fields(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"a brace is missing ({error}); write {{{{ for a brace itself") from None


def expand(template: str, name: FileName, *, batch_id: str, submitted: datetime | None = None) -> PurePosixPath:
    """Fill in a path template.

    The name depends on the file and its batch alone, never on the time of the attempt: a retry on the next day writes
    the same name.

    Args:
        template: One that `check_template` lets pass.
        name: What is known about the file.
        batch_id: The batch.
        submitted: When the batch was submitted, UTC: the date of a file whose source has none.

    Returns:
        A relative path whose every level is safe.
    """
    ext = name.ext.lower()
    date = name.upload_date or (submitted.strftime("%Y%m%d") if submitted else "")
    values: Mapping[str, str] = {
        "batch_id": safe_name(batch_id, fallback="batch"),
        "safe_title": safe_name(name.title),
        "id": safe_name(name.id, fallback="unknown", limit=60),
        "ext": ext if _EXTENSION.fullmatch(ext) else "bin",
        "uploader": safe_name(name.uploader, fallback="unknown", limit=80),
        "upload_date": safe_name(date, fallback="unknown", limit=20),
    }
    # Safe values hold no separator, so the levels of the template are the levels of the path.
    levels = template.split("/")
    filled = [level.format_map(values) for level in levels]
    *folders, last = filled
    return PurePosixPath(*(safe_name(folder, fallback="_", limit=200) for folder in folders), _keep_end(last, values))


def _keep_end(name: str, values: Mapping[str, str]) -> str:
    """Shorten a file name, if it must be, in front of its extension."""
    end = f".{values['ext']}"
    if name.endswith(end):
        return safe_name(name[: -len(end)], limit=200 - len(end)) + end
    return safe_name(name, limit=200)


def numbered(path: PurePosixPath, number: int) -> PurePosixPath:
    """Return the name to try when others have it already: `a.tar.gz`, `a (2).tar.gz`, `a (3).tar.gz`."""
    if number < 2:
        return path
    title, ext = _split_extension(path.name)
    return path.with_name(f"{title} ({number}){'.' if ext else ''}{ext}")


def fitted(path: PurePosixPath, limit: int) -> PurePosixPath:
    """Return a path of which no level is too long for a file system, with the extension of the file.

    Args:
        path: The path.
        limit: Bytes that a level may have.
    """
    title, ext = _split_extension(path.name)
    end = f".{ext}" if ext else ""
    folders = (_cut(folder, limit) for folder in path.parts[:-1])
    return PurePosixPath(*folders, _cut(title, limit - len(end.encode())) + end)


def _cut(text: str, limit: int) -> str:
    data = text.encode()
    # Neither half a character nor a dot or space, which Windows drops, at the end.
    return text if len(data) <= limit else data[:limit].decode(errors="ignore").rstrip(". ")


def file_key(path: PurePosixPath) -> str:
    """Return what is equal for names that some file system takes for one: by case or by composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", str(path)).casefold())
