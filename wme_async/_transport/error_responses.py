"""From an error answer to an error: `(status, headers, body)` in, one exception out."""

import html
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final
from urllib.parse import urljoin, urlsplit, urlunsplit

import msgspec

from wme_async._transport.retry import parse_retry_after
from wme_async.errors import DecodeError, StatusError, TransportError, error_for_status
from wme_async.models.decoding import decode_json, decoding

__all__ = [
    "REDIRECTS",
    "bare_url",
    "error_from_response",
    "error_in_place_of",
    "is_accepted",
    "is_error_document",
    "redirect_target",
    "server_message",
]

_EXCERPT = 2000
_ANY_JSON = msgspec.json.Decoder()

_FIRST_KEY = re.compile(rb'[\s\[]*\{\s*"([^"\\]*)"')
# What gateways name their errors with. No record of the services has one of these and nothing else that is known.
_ERROR_KEYS = frozenset({"code", "detail", "error", "errors", "fault", "message", "status"})


REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses that send a client elsewhere, if there is a `Location`."""

_WITHOUT_BODY: Final = frozenset({204, 205})


def is_accepted(status: int, headers: Mapping[str, str], accepts: str) -> bool:
    """Say whether a status is an answer to what was asked for; every other one is an error.

    A redirect or a 204 without a body would otherwise pass for "nothing found", which is what an empty 200 means.

    Args:
        status: HTTP status.
        headers: Looked up without regard to case.
        accepts: `body`: 200-299 but for 204 and 205. `empty`: all of 200-299. `redirect`: like `body`, and redirects
            with a `Location`. `any`: everything below 400, for a caller that judges by itself.
    """
    if accepts == "any":
        return status < 400
    if accepts == "redirect" and status in REDIRECTS:
        return bool(headers.get("Location"))
    return 200 <= status < 300 and (accepts == "empty" or status not in _WITHOUT_BODY)


def bare_url(url: str) -> str:
    """Return a URL without query, fragment and user: what may be shown, since queries carry signatures."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not a URL)"
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return urlunsplit((parts.scheme, host + port, parts.path, "", ""))


def redirect_target(url: str, location: str) -> str:
    """Return the absolute URL that a redirect leads to.

    Args:
        url: What was asked.
        location: The `Location` of the answer.

    Raises:
        TransportError: It is not a URL of HTTP, or leads from `https` to `http`, where anybody in between could read
            and change what comes.
    """
    try:
        target = urljoin(url, location)
        parts = urlsplit(target)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    shown = bare_url(url)
    if not usable:
        problem = "to what is not an http(s) URL"
    elif parts.scheme == "http" and urlsplit(url).scheme == "https":
        problem = f"from https to {bare_url(target)}, where anybody in between could change what comes"
    else:
        return target
    error = TransportError(f"{shown} redirected {problem}; it is not followed", url=shown)
    error.permanent = True
    raise error


def server_message(body: bytes) -> str:
    """Return what the server says in an error body, in one line: JSON `message`, S3's XML, a page's title, or text."""
    text = body[: 4 * _EXCERPT].decode("utf-8", "replace").strip()
    if not text:
        return ""
    if text.startswith("{"):
        try:
            with decoding():
                document = _ANY_JSON.decode(body)
                message = document.get("message") if isinstance(document, dict) else None
                return " ".join(str(message).split())[:_EXCERPT] if message else ""
        except DecodeError:
            return ""
    if "<Error>" in text:
        found = {tag: _inside(text, tag) for tag in ("Code", "Message")}
        return ": ".join(value for value in found.values() if value)
    if text[:1] == "<":
        title = _inside(text, "title") or _inside(text, "h1")
        return f"an HTML page, not an answer of the API{f': {title}' if title else ''}"
    return " ".join(text.split())[:200]


def is_error_document(body: bytes, known: AbstractSet[str]) -> bool:
    """Say whether an answer with a status of success is an error all the same, as proxies and gateways send it.

    All fields of a record may be missing, so such an object would decode into an empty one. It is an error where it has
    no field that the service could have sent, and one that errors are told in.

    Args:
        body: JSON: an object, or a list of objects.
        known: The names that an object may have in this answer; of flat ones (`size__value`) that of their object.

    Returns:
        False also for what is no JSON: whoever decodes it says so.
    """
    first = _FIRST_KEY.match(body)
    # Nearly every record is known by its first name, so that the rest need not be read twice.
    if first is None or first[1].decode(errors="replace").partition("__")[0] in known:
        return False
    try:
        document = decode_json(body, _ANY_JSON)
    except DecodeError:
        return False
    rows = document if isinstance(document, list) else [document]
    return any(isinstance(row, dict) and _tells(row.keys(), known) for row in rows)


def _tells(keys: AbstractSet[str], known: AbstractSet[str]) -> bool:
    return not any(key.partition("__")[0] in known for key in keys) and any(key.lower() in _ERROR_KEYS for key in keys)


def error_in_place_of(wanted: str, body: bytes) -> str:
    """Return the words for an answer that `is_error_document`, with its beginning in one line."""
    return f"an error in place of {wanted}: {' '.join(body[:_EXCERPT].decode('utf-8', 'replace').split())[:200]}"


def _inside(text: str, tag: str) -> str:
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.IGNORECASE | re.DOTALL)
    return " ".join(html.unescape(found.group(1)).split())[:500] if found else ""


def error_from_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    url: str,
    now: float,
    product: str | None = None,
) -> StatusError:
    """Make the error of an answer that `is_accepted` says is none.

    Args:
        status: HTTP status.
        headers: Its headers, looked up without regard to case.
        body: The body, or its beginning.
        url: What was asked; its query is not kept, since it may carry a signature.
        now: UTC epoch seconds, to read a `Retry-After` that is a date.
        product: What was asked for, in the words of the price list, for the advice on 403.
    """
    shown = bare_url(url)
    words = server_message(body) if status >= 400 else _misplaced(status, headers, url)
    message = f"HTTP {status} from {shown}" + (f": {words}" if words else "")
    advice = _advice(status, product)
    if advice:
        message += f" ({advice})"
    # Error documents of an object store may echo parts of the signature, so only their words are kept.
    excerpt = words if body.lstrip()[:1] == b"<" else body[:_EXCERPT].decode("utf-8", "replace")
    return error_for_status(status)(
        message,
        status=status,
        url=shown,
        request_id=headers.get("X-Request-Id") or headers.get("x-amz-request-id"),
        retry_after=parse_retry_after(headers.get("Retry-After"), now=now),
        body=excerpt,
    )


def _misplaced(status: int, headers: Mapping[str, str], url: str) -> str:
    """Say what is wrong with a status below 400 that was not asked for."""
    location = headers.get("Location")
    if location and status in REDIRECTS:
        try:
            target = bare_url(urljoin(url, location))
        except ValueError:
            target = "(not a URL)"
        return f"redirected to {target} (Location), which is not followed, since credentials would go with it"
    if status in REDIRECTS:
        return "redirected without a Location"
    return "an answer without a body, where one was asked for" if status in _WITHOUT_BODY else "not what was asked for"


def _advice(status: int, product: str | None) -> str:
    if status == 403 and product:
        return f"the account's plan does not include {product}, or the path has changed; `auth.user()` lists its groups"
    if status in REDIRECTS:
        return "check the hosts and paths that the client was given, and what stands in between"
    if status == 401:
        return "sign in again, or check the user name and password"
    if status == 407:
        return "the proxy wants a user name and password"
    return ""
