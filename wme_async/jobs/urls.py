"""URLs of strangers: checked, brought to one form, followed through redirects, and shown without credentials. Pure."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

import idna

from wme_async.jobs.url_policy import check_host

__all__ = ["ascii_host", "check_web_url", "netloc_of", "origin", "redacted", "redacted_url", "redirect_target"]

_MAX_URL: Final = 8192
_MAX_HOST: Final = 253
# White space, controls and characters that a URL must escape; browsers read a backslash as a slash, so hosts differ.
_BAD_CHARACTER: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ufeff<>\"\\^`{|}]")
_HOST_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DOT: Final = re.compile(r"(?:\.|%2e)", re.IGNORECASE)

# Names of query parameters whose values let others use the URL, and values that look like keys or signatures.
_CREDENTIAL_NAME: Final = re.compile(
    r"signature|token|secret|passw|credential|api_?key|access_?key"
    r"|(?:^|[_-])(?:sig|key|pwd|pass|auth|authorization|policy|hmac|session|sid|jwt|ticket)(?:$|[_-])|^code$",
    re.IGNORECASE,
)
_CREDENTIAL_VALUE: Final = re.compile(
    r"[0-9A-Fa-f]{32,}|(?=.*\d)(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/=%]{32,}"
    r"|(?=(?:.*\d){4})(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/=%_.-]{64,}"
)
_HIDDEN: Final = "REDACTED"
_URL_IN_TEXT: Final = re.compile(r"https?://[^\s\"'<>]+", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:%\w+)?)(?![\w:])"
)


def check_web_url(url: str, *, allow: Iterable[str] = (), schemes: Sequence[str] = ("http", "https")) -> str:
    """Check an `http(s)` URL as far as that can be done without asking the network.

    Args:
        url: The URL.
        allow: Hosts that may be fetched though they are private.
        schemes: All schemes that the caller accepts, for the message.

    Returns:
        The URL in the form in which it is compared and fetched: scheme and host in lower case, international names in
        the form of UTS 46 (non-transitional, as browsers encode them), without default port, dot segments (RFC 3986,
        5.2.4) and fragment, and all in ASCII.

    Raises:
        ValueError: Why not, in words that may be shown.
    """
    if not url:
        raise ValueError("it is empty")
    if len(url) > _MAX_URL:
        raise ValueError(f"longer than {_MAX_URL} characters")
    if character := _BAD_CHARACTER.search(url):
        raise ValueError(f"the character U+{ord(character[0]):04X} must be percent-encoded")
    if any(0xD800 <= ord(char) <= 0xDFFF for char in url):
        raise ValueError("it is not text")
    scheme = url.partition(":")[0].lower()
    if scheme not in schemes or ":" not in url:
        raise ValueError(f"it must start with {' or '.join(_opening(name) for name in schemes)}")
    try:
        parts = urlsplit(url)
        port = parts.port
        named = bool(parts.hostname)
    except ValueError as error:
        raise ValueError(f"host or port is malformed ({error})") from None
    if not url[len(scheme) + 1 :].startswith("//") or not named:
        raise ValueError(f"it must be {scheme}://HOST/...")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name or password in a URL would be stored and shown")
    if port == 0:
        raise ValueError("port 0 cannot be connected to")
    # Not `hostname`: Python's lower case of some letters is not that of UTS 46.
    host = _checked_host(parts.netloc)
    if reason := check_host(host, allow=allow):
        raise ValueError(reason)
    shown = f"[{host}]" if ":" in host else host
    netloc = shown if port in {None, _DEFAULT_PORTS[scheme]} else f"{shown}:{port}"
    path = _without_dot_segments(_ascii(parts.path))
    return urlunsplit(SplitResult(scheme, netloc, path or "/", _ascii(parts.query), ""))


def _ascii(text: str) -> str:
    return "".join(char if char.isascii() else quote(char) for char in text)


def _opening(scheme: str) -> str:
    return f"{scheme}:" if scheme == "wme" else f"{scheme}://"


def _without_dot_segments(path: str) -> str:
    """Resolve `.` and `..`, also percent-encoded, as every browser does before it sends a path."""
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        plain = _DOT.sub(".", segment)
        if plain == "..":
            segments = segments[:-1]
        elif plain != ".":
            segments.append(segment)
    if path.rpartition("/")[2] and _DOT.sub(".", path.rpartition("/")[2]) in {".", ".."}:
        segments.append("")
    return "/" + "/".join(segments)


def _checked_host(netloc: str) -> str:
    """Return the ASCII form of a host, which is looked up.

    Raises:
        ValueError: It cannot be a host.
    """
    if netloc.startswith("["):
        try:
            address = ipaddress.IPv6Address(netloc[1:].partition("]")[0])
        except ValueError:
            raise ValueError("the address in brackets is not IPv6") from None
        if address.scope_id is not None:
            raise ValueError("an address with a zone is local")
        return address.compressed
    name = ascii_host(netloc.partition(":")[0])
    if len(name) > _MAX_HOST or not all(_HOST_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError("the host name is not valid")
    return name


def ascii_host(name: str) -> str:
    """Return a host name in lower case, and an international one in the ASCII form of UTS 46, without a final dot.

    Raises:
        ValueError: It is not a name that can be encoded.
    """
    if name.isascii():
        return name.lower().rstrip(".")
    if len(name) > _MAX_HOST:
        raise ValueError("the host name is not valid")
    try:
        return idna.encode(name, uts46=True).decode("ascii").lower().rstrip(".")
    except (UnicodeError, ValueError, IndexError):
        raise ValueError("the host name is not valid") from None


def redirect_target(base: str, location: str, *, allow: Iterable[str] = ()) -> str:
    """Return the checked URL of a `Location` header.

    Servers send characters there that must be percent-encoded, and raw bytes of any encoding. They are encoded, as
    browsers do, and what comes out is checked like a submitted URL.

    Args:
        base: The URL that redirects.
        location: The header's value; bytes that are not UTF-8 as surrogates (`surrogateescape`).
        allow: Hosts that may be fetched though they are private.

    Raises:
        ValueError: Why it must not be followed.
    """
    if len(location) > _MAX_URL:
        raise ValueError(f"longer than {_MAX_URL} characters")
    text = location.strip("\x00\t\n\r\x0b\x0c ").replace("\t", "")
    text = re.sub("[\ud800-\udfff]", _quoted_byte, text)
    text = _BAD_CHARACTER.sub(lambda match: quote(match[0], safe=""), text)
    return check_web_url(urljoin(base, text), allow=allow)


def _quoted_byte(match: re.Match[str]) -> str:
    return quote(match[0].encode("utf-8", "surrogateescape" if "\udc80" <= match[0] <= "\udcff" else "replace"))


def origin(url: str) -> str:
    """Return scheme, host and port of a URL: what may be logged where the path itself is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def netloc_of(url: str) -> str:
    """Return host and port of a URL; empty if it has none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def redacted_url(url: str) -> str:
    """Return a URL whose query shows no signatures, tokens and keys, for whoever is not the one that submitted it."""
    address, mark, query = url.partition("?")
    address = re.sub(r"//[^/?#]*@", f"//{_HIDDEN}@", address)
    if not mark:
        return address
    pairs = []
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        secret = value and (_CREDENTIAL_NAME.search(name) or _CREDENTIAL_VALUE.fullmatch(value))
        # A query that is one long value has no names.
        bare = not equals and _CREDENTIAL_VALUE.fullmatch(name)
        pairs.append(f"{name}={_HIDDEN}" if secret else _HIDDEN if bare else pair)
    return f"{address}?{'&'.join(pairs)}"


def redacted(text: str, *, url: str = "") -> str:
    """Return a message for callers: its URLs show no credentials, and names do not show where they lead to.

    Args:
        text: The message.
        url: The URL that it is about; its own host is shown.
    """
    try:
        own = (urlsplit(url).hostname or "") if url else ""
    except ValueError:
        own = ""
    text = _URL_IN_TEXT.sub(lambda match: redacted_url(match[0]), text)
    return _ADDRESS.sub(lambda match: match[0] if match[0] == own else _hidden_address(match[0]), text)


def _hidden_address(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return text
    return "(address)"
