"""Which URLs and addresses may be fetched when strangers name them, and how URLs are shown. Pure.

A server that fetches any URL it receives can be made to fetch from behind its own firewall: the metadata service of a
cloud with its credentials, a router's page, a database. So only addresses of the public internet pass, in whatever form
they are written, unless a host is allowed by name. A URL is checked when it is submitted, each redirect before it is
followed, and each address before it is connected to.
"""

import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

import idna

from wme_async.errors import WMEError

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_MAX_URL: Final = 8192
_MAX_HOST: Final = 253
# White space, controls and characters that a URL must escape; browsers read a backslash as a slash, so hosts differ.
_BAD_CHARACTER: Final = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\ufeff<>\"\\^`{|}]")
_HOST_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DOT: Final = re.compile(r"(?:\.|%2e)", re.IGNORECASE)

# Names of query parameters whose values give access.
_CREDENTIAL_NAME: Final = re.compile(
    r"signature|token|secret|passw|credential|api_?key|access_?key|auth_?key"
    r"|(?:^|-)(?:sig|sign|key|pwd|pw|pass|auth|authorization|bearer|policy|hash|hmac|session|sid|jwt|ticket)(?:$|-)"
    r"|^code$",
    re.IGNORECASE,
)
# Words, numbers, short names of formats and versions, and times. Signatures may have any name, so a value of another
# shape is not shown, whatever its name is.
_PLAIN_WORD: Final = re.compile(r"[A-Za-z]?[a-z]{0,23}|[A-Z]{1,12}|\d{1,14}|[0-9A-Za-z]{1,6}|\d{8}T\d{6}Z?")
_LONGEST_WORD: Final = 40  # letters, in scripts other than the Latin one
_HIDDEN: Final = "REDACTED"
_URL_IN_TEXT: Final = re.compile(r"https?://[^\s\"'<>]+", re.IGNORECASE)
_ADDRESS: Final = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:%\w+)?)(?![\w:])"
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Ranges that Python's `is_global` accepts or describes less clearly.
_BLOCKED: tuple[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "a cloud's metadata service"),
        ("169.254.170.2/32", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("192.0.0.192/32", "a cloud's metadata service"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
        ("fd20:ce::254/128", "a cloud's metadata service"),
        ("100.64.0.0/10", "shared address space of a carrier"),
        ("192.88.99.0/24", "a retired relay range"),
        ("fec0::/10", "site-local"),
        ("5f00::/16", "segment routing"),
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_ISATAP = 0x5EFE

_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp", "private")


class AddressBlocked(WMEError):
    """A URL leads to an address that must not be fetched. Another attempt does not help.

    Args:
        message: Which address and why.
        url: The URL's host.
    """


def check_address(address: str) -> str | None:
    """Return why an IP address must not be connected to.

    Args:
        address: IPv4 or IPv6, a zone allowed.

    Returns:
        The reason; None for an address of the public internet.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return "link-local"
        embedded = _embedded(parsed)
        if embedded is not None and (reason := _reason(embedded)):
            return f"{embedded} written as IPv6, {reason}"
        if embedded is not None and (parsed.ipv4_mapped is not None or parsed in _NAT64):
            # Networks without IPv4 reach the public internet this way; the ranges themselves count as reserved.
            return None
    return _reason(parsed)


def _reason(address: _Address) -> str | None:
    properties = (
        *((address in network, reason) for network, reason in _BLOCKED),
        (address.is_unspecified, "unspecified"),
        (address.is_loopback, "loopback"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (address.is_private, "private"),
        (address.is_reserved, "reserved"),
        (not address.is_global, "not of the public internet"),
    )
    return next((reason for applies, reason in properties if applies), None)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address contains, in any of the seven standard forms."""
    number = int(address)
    client = address.teredo[1] if address.teredo is not None else None
    if (known := address.ipv4_mapped or address.sixtofour or client) is not None:
        return known
    isatap = (number >> 32) & 0xFFFF == _ISATAP and (number >> 48) & 0xFDFF == 0
    translated = any(address in network for network in (_NAT64, _NAT64_LOCAL, _TRANSLATED))
    if translated or isatap or (address in _COMPATIBLE and number > 1):
        return ipaddress.IPv4Address(number & 0xFFFFFFFF)
    return None


def check_host(host: str, *, allow: Iterable[str] = ()) -> str | None:
    """Return why a host in a URL must not be fetched from, as far as its name shows. Its addresses are checked later.

    Args:
        host: A name in ASCII, or an address without brackets.
        allow: Names and addresses that may be fetched although they are private or local.

    Returns:
        The reason; None if it may be fetched from.
    """
    if _allowed(host, frozenset(allow)):
        return None
    if _is_address(host):
        reason = check_address(host)
        return f"{host} is refused: {reason}" if reason else None
    last = host.rstrip(".").rpartition(".")[2].lower()
    if last in _LOCAL_NAMES:
        return f"{host} is refused: a local name"
    # `127.1`, `0x7f000001` and `2130706433` are addresses to the C library, and no real names.
    if last.isdigit() or last.startswith("0x"):
        return f"{host} is refused: an address in disguise"
    return None


def guard(allow: Iterable[str] = ()) -> Callable[[str, str], str | None]:
    """Return a guard for `SessionPool`, which calls it with every address before it connects to it.

    Args:
        allow: Hosts, as written in URLs, whose addresses may be private.

    Returns:
        A function of host and address, which returns None or raises `AddressBlocked`.
    """
    allowed = frozenset(name.lower().rstrip(".") for name in allow)

    def check(host: str, address: str) -> str | None:
        reason = None if _allowed(host, allowed) else check_address(address)
        if reason and host == address:
            raise AddressBlocked(f"{host} is refused: {reason}", url=host)
        if reason:
            # The error does not show callers which addresses the names of this network have; the operator's log does.
            logger.info("%s (%s) is refused: %s", host, address, reason)
            raise AddressBlocked(f"{host} is refused: it leads to an address outside the public internet", url=host)
        return None

    return check


def _allowed(host: str, allow: frozenset[str]) -> bool:
    return host.lower().rstrip(".").strip("[]") in {name.lower().rstrip(".").strip("[]") for name in allow}


def check_web_url(url: str, *, allow: Iterable[str] = (), schemes: Sequence[str] = ("http", "https")) -> str:
    """Check an `http(s)` URL as far as possible without the network.

    Args:
        url: The URL.
        allow: Hosts that may be fetched although they are private.
        schemes: The schemes that the caller accepts, for the message.

    Returns:
        The URL in the form in which it is compared and fetched: scheme and host in lower case, international names in
        the form of UTS 46 (non-transitional, as browsers encode them), without default port, dot segments (RFC 3986,
        5.2.4) and fragment, and all in ASCII.

    Raises:
        ValueError: The URL is not valid or not allowed. The message can be shown to callers.
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
        raise ValueError(
            f"it must start with {' or '.join(f'{name}:' if name == 'wme' else f'{name}://' for name in schemes)}"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname
    except ValueError as error:
        raise ValueError(f"host or port is malformed ({error})") from None
    if not url[len(scheme) + 1 :].startswith("//") or not host:
        raise ValueError(f"it must be {scheme}://HOST/...")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user name or password in a URL would be stored and shown")
    if port == 0:
        raise ValueError("port 0 cannot be connected to")
    # Not `hostname`: Python's lower case of some letters is not that of UTS 46.
    host = _checked_host(parts.netloc)
    if reason := check_host(host, allow=allow):
        raise ValueError(reason)
    netloc = f"[{host}]" if ":" in host else host
    if port not in {None, _DEFAULT_PORTS[scheme]}:
        netloc = f"{netloc}:{port}"
    path = _without_dot_segments(_ascii(parts.path))
    return urlunsplit(SplitResult(scheme, netloc, path or "/", _ascii(parts.query), ""))


def _ascii(text: str) -> str:
    return "".join(char if char.isascii() else quote(char) for char in text)


def _without_dot_segments(path: str) -> str:
    """Resolve `.` and `..`, also percent-encoded, as every browser does before it sends a path."""
    segments: list[str] = []
    for segment in path.split("/")[1:]:
        text = _DOT.sub(".", segment)
        if text == "..":
            segments = segments[:-1]
        elif text != ".":
            segments.append(segment)
    if path and text in {".", ".."}:
        segments.append("")
    return "/" + "/".join(segments)


def _checked_host(netloc: str) -> str:
    """Return the ASCII form of a host, under which it is resolved.

    Raises:
        ValueError: It is not a valid host.
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
        ValueError: The name cannot be encoded.
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

    Servers send characters in it that must be percent-encoded, and raw bytes of any encoding. They are encoded as
    browsers encode them, and the result is checked like a submitted URL.

    Args:
        base: The URL that redirects.
        location: The header's value; bytes that are not UTF-8 as surrogates (`surrogateescape`).
        allow: Hosts that may be fetched although they are private.

    Raises:
        ValueError: The redirect must not be followed. The message says why.
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
    """Return scheme, host and port of a URL, for logs of URLs whose path is a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def netloc_of(url: str) -> str:
    """Return host and port of a URL; empty if it has none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def redacted_url(url: str) -> str:
    """Return a URL without signatures, tokens and keys, to show to others than its submitter.

    Of its query, values are shown that are words, numbers or times, unless the name of their parameter says that they
    are secret. User name, password and fragment are not shown. The path is shown.
    """
    address, mark, query = url.partition("#")[0].partition("?")
    address = re.sub(r"//[^/?#]*@", f"//{_HIDDEN}@", address)
    address = re.sub(r"(?<=;)[^/;]+", lambda match: _redacted_pair(match[0]), address)
    query = re.sub(r"[^&;]+", lambda match: _redacted_pair(match[0]), query)
    return f"{address}{mark}{query}"


def _redacted_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    # Names may be of any letters, such as `AWSAccessKeyId`.
    if not _is_plain(name) and (not equals or any(character.isdigit() for character in name)):
        return _HIDDEN
    words = re.sub(r"[\W_]+", "-", unquote(name))
    secret = value and (_CREDENTIAL_NAME.search(words) or not _is_plain(value))
    return f"{name}={_HIDDEN}" if secret else pair


def _is_plain(text: str) -> bool:
    """Return whether a text has only words, numbers and times in it."""
    return all(
        _PLAIN_WORD.fullmatch(word) or (not word.isascii() and word.isalpha() and len(word) <= _LONGEST_WORD)
        for word in re.split(r"[\W_]+", unquote(text))
    )


def redacted(text: str, *, url: str = "") -> str:
    """Return a message without the credentials of URLs in it, and without addresses that names resolve to.

    Args:
        text: The message.
        url: The URL of the job; its own host is shown.
    """
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    text = _URL_IN_TEXT.sub(lambda match: redacted_url(match[0]), text)
    return _ADDRESS.sub(lambda match: "(address)" if match[0] != host and _is_address(match[0]) else match[0], text)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
