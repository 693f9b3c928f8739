"""Names of files: taken from headers and URLs, and made safe on every file system. Pure.

The name that a server gives its file is a stranger's text. It becomes at most one path component: separators, controls,
device names of Windows, leading dots and trailing dots or spaces are removed.
"""

import hashlib
import mimetypes
import re
import string
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from wme_async.jobs.disposition import disposition_name

VARIABLES: tuple[str, ...] = ("batch_id", "safe_title", "id", "ext", "uploader", "upload_date")
"""The variables of path templates, written in braces."""

_MAX_BYTES = 150
_MAX_DEPTH = 12
_MAX_TEMPLATE = 500
# Reserved on Windows; the colon also names streams there, and a folder separator on old Macs.
_RESERVED = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(
    r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:[. ].*)?$", re.IGNORECASE
)
_DOUBLE = re.compile(r"\.(tar\.[a-z0-9]{1,4}|[a-z0-9]{1,16}\.(?:gz|bz2|xz|zst|lz4|lzma|br|z))$", re.IGNORECASE)
_SINGLE = re.compile(r"\.([A-Za-z0-9]{1,16})$")
_EXTENSION = re.compile(r"[a-z0-9]{1,16}(?:\.[a-z0-9]{1,16})?")

# Only the types of Python itself: the list of the machine would give other names on other machines.
_TYPES = mimetypes.MimeTypes(filenames=())
for _kind, _ext in (
    # Types that are missing in some versions of Python.
    *(("application/epub+zip", "epub"), ("application/xhtml+xml", "xhtml"), ("audio/flac", "flac")),
    *(("audio/mp4", "m4a"), ("audio/opus", "opus"), ("image/avif", "avif"), ("image/heic", "heic")),
    *(("image/webp", "webp"), ("text/markdown", "md"), ("video/webm", "webm"), ("video/x-m4v", "m4v")),
    *(("video/x-matroska", "mkv"), ("font/woff", "woff"), ("font/woff2", "woff2")),
):
    _TYPES.add_type(_kind, f".{_ext}")
# Types for which Python has an unusual extension, or none.
_EXTENSIONS: Mapping[str, str] = {
    "application/geo+json": "geojson",
    "application/gzip": "gz",
    "application/jsonl": "jsonl",
    "application/vnd.apache.parquet": "parquet",
    "application/x-bzip2": "bz2",
    "application/x-gzip": "gz",
    "application/x-gtar": "tar",
    "application/x-javascript": "js",
    "application/x-ndjson": "ndjson",
    "application/x-xz": "xz",
    "application/x-7z-compressed": "7z",
    "application/xml": "xml",
    "application/zstd": "zst",
    "audio/mp4": "m4a",
    "audio/ogg": "ogg",
    "image/jpeg": "jpg",
    "text/plain": "txt",
    "text/xml": "xml",
    "video/ogg": "ogv",
}
# Extensions of programs; the type of their output is in the Content-Type.
_SCRIPTS = frozenset(
    {
        *("action", "ashx", "asmx", "asp", "aspx", "axd", "cfm", "cgi", "do", "fcgi", "jsp", "jspx", "php", "php3"),
        *("php4", "php5", "php7", "phtml", "shtml", "svc"),
    }
)
_PAGES = frozenset({"text/html", "application/xhtml+xml"})
# By type, or by its part before the slash: a server does not confuse types of two groups.
_GROUPS: Mapping[str, str] = {
    **dict.fromkeys(_PAGES, "page"),
    "application/pdf": "document",
    "application/postscript": "document",
    "audio": "media",
    "video": "media",
    "image": "image",
    "font": "font",
}


class FileName(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a file's name. All of them may come from a stranger.

    Args:
        title: Its name without extension.
        ext: Its extension without a dot. If it is empty, the dot in front of it is omitted too.
        id: Short and, as far as the source can tell, unique.
        uploader: The channel, or the host.
        upload_date: `YYYYMMDD`; empty if unknown.
        path: The complete path of an archive of `wme:`, instead of a template.
    """

    title: str
    ext: str
    id: str
    uploader: str
    upload_date: str
    path: str = ""


def name_file(
    url: str, *, disposition: str | None = None, content_type: str | None = None, upload_date: str
) -> FileName:
    """Return the name of a file at a URL: by `Content-Disposition`, then `Content-Type`, then the path.

    Args:
        url: The URL, after redirects.
        disposition: The `Content-Disposition` header.
        content_type: The `Content-Type` header.
        upload_date: `YYYYMMDD`; empty if unknown.

    Returns:
        The parts of a name, not yet safe: `expand` makes them so.
    """
    parts = urlsplit(url)
    suggestion = disposition_name(disposition) if disposition else None
    if suggestion is not None:
        # A name may have no extension, such as README.
        title, ext = _split_extension(suggestion)
    else:
        path_name = unquote(parts.path.rstrip("/").rpartition("/")[2], errors="replace")
        title, ext = _with_extension(path_name, (content_type or "").partition(";")[0].strip().lower())
        ext = ext or "bin"
    return FileName(
        title=title or parts.hostname or "download",
        ext=ext,
        id=hashlib.sha256(url.encode("utf-8", "replace")).hexdigest()[:11],
        uploader=parts.hostname or "unknown",
        upload_date=upload_date,
    )


def _split_extension(name: str) -> tuple[str, str]:
    for pattern in (_DOUBLE, _SINGLE):
        match = pattern.search(name)
        if match and match.start() > 0:
            return name[: match.start()], match[1].lower()
    return name, ""


def _with_extension(name: str, kind: str) -> tuple[str, str]:
    """Return title and extension of a name in a URL, for bytes of a type.

    The extension of a URL says more than most types: those of containers (zip, gzip, mp4) and general ones (JSON, XML,
    plain text) are those of many formats. It is replaced if it is that of a program, or if the type is of another kind:
    a page, a document or a picture under the name of something else.
    """
    title, ext = _split_extension(name)
    guess = _EXTENSIONS.get(kind) or (_TYPES.guess_extension(kind, strict=False) or "")[1:]
    if not ext:
        return title, guess
    if not guess or kind in {"application/octet-stream", "binary/octet-stream"}:
        return title, "bin" if ext in _SCRIPTS and kind and "php" not in kind else ext
    if ext in _SCRIPTS:
        return title, guess
    implied, encoding = _TYPES.guess_type(f"name.{ext}", strict=False)
    if implied is None and encoding is None:
        # Not an extension but a part of the name, such as a version number or the end of a title.
        return (name, guess) if kind in _PAGES or (ext.isdigit() and len(ext) < 3) else (title, ext)
    container = implied or "" if encoding is None else "application/gzip"
    return title, guess if implied != kind and _contradicts(kind, container) else ext


def _contradicts(kind: str, implied: str) -> bool:
    """Return whether bytes of a type cannot be a file whose extension implies another type."""
    implied_group, group = _group(implied), _group(kind)
    if group == "image":
        # A drawing is also XML. Servers convert pictures, and keep their names.
        return not (kind == "image/svg+xml" and implied.endswith("xml"))
    return group is not None and group != implied_group


def _group(kind: str) -> str | None:
    return _GROUPS.get(kind) or _GROUPS.get(kind.partition("/")[0])


def safe_name(text: str, *, fallback: str = "download", limit: int = _MAX_BYTES) -> str:
    """Make one path component of any text, the same on every file system.

    Args:
        text: Anything.
        fallback: The name if nothing remains.
        limit: Bytes of UTF-8 at most.

    Returns:
        A name without separators, controls, reserved names, leading dots, trailing dots or spaces; never empty.
    """
    text = unicodedata.normalize("NFC", text[: 4 * limit].encode("utf-8", "replace").decode())
    # Controls, invisible direction marks (which disguise extensions), private and unassigned characters.
    text = "".join(" " if char in "\t\n\r" else char for char in text if char in "\t\n\r" or _visible(char))
    text = _RESERVED.sub("_", text)
    text = re.sub(r"\s+", " ", text).strip().strip(". ").lstrip("~-")
    if _DEVICES.match(text):
        text = f"_{text}"
    text = text.encode("utf-8")[:limit].decode("utf-8", "ignore").strip(". ")
    if _DEVICES.match(text):
        # The cut made it the name of a device.
        text = f"_{text}".encode()[:limit].decode("utf-8", "ignore").strip(". ")
    return text or fallback


def _visible(char: str) -> bool:
    return unicodedata.category(char)[0] != "C" and unicodedata.category(char) not in {"Zl", "Zp"}


def check_template(template: str) -> None:
    """Check a path template, so that no name it can ever give leaves the directory.

    Args:
        template: Such as `batch/{batch_id}/{safe_title}-{id}.{ext}`.

    Raises:
        ValueError: The template is not valid. The message says why.
    """
    if not template or len(template) > _MAX_TEMPLATE:
        raise ValueError(f"a template has 1 to {_MAX_TEMPLATE} characters")
    if not all(_visible(char) for char in template):
        raise ValueError("a template has no control or invisible characters")
    for literal, field, spec, conversion in _fields(template):
        if field is not None and (field not in VARIABLES or spec or conversion):
            raise ValueError(f"{{{field}}} is unknown: use {', '.join('{' + name + '}' for name in VARIABLES)}")
        # The slash alone has a meaning here. The values of variables are made safe when they are known.
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
        name: The parts of its name.
        batch_id: The batch.
        submitted: When the batch was submitted, UTC: the date of a file without one.

    Returns:
        A relative path whose every level is safe.
    """
    if name.path:
        return PurePosixPath(*(safe_name(level, fallback="_", limit=200) for level in name.path.split("/")))
    ext = name.ext.lower()
    date = name.upload_date or (submitted.strftime("%Y%m%d") if submitted else "")
    values: Mapping[str, str] = {
        "batch_id": safe_name(batch_id, fallback="batch"),
        "safe_title": safe_name(name.title),
        "id": safe_name(name.id, fallback="unknown", limit=60),
        "ext": ext if not ext or _EXTENSION.fullmatch(ext) else "bin",
        "uploader": safe_name(name.uploader, fallback="unknown", limit=80),
        "upload_date": safe_name(date, fallback="unknown", limit=20),
    }
    # Safe values hold no separator, so the levels of the template are the levels of the path.
    levels = (template if ext else template.replace(".{ext}", "")).split("/")
    *folders, last = (level.format_map(values) for level in levels)
    return PurePosixPath(*(safe_name(folder, fallback="_", limit=200) for folder in folders), _keep_end(last, values))


def _keep_end(name: str, values: Mapping[str, str]) -> str:
    """Shorten a file name, if it must be, in front of its extension."""
    end = f".{values['ext']}"
    if values["ext"] and name.endswith(end):
        return safe_name(name[: -len(end)], limit=200 - len(end)) + end
    return safe_name(name, limit=200)


def numbered(path: PurePosixPath, number: int) -> PurePosixPath:
    """Return the variant of a name with a number: `a.tar.gz`, `a (2).tar.gz`, `a (3).tar.gz`."""
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
    """Return a key that is equal for names that some file system treats as one, by case or by composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", str(path)).casefold())
